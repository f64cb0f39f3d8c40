"""Output of a run: a progress bar or lines, metrics.jsonl, TensorBoard."""

import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from vdm_jax import files, scalars
from vdm_jax.checkpoint import on_first_process
from vdm_jax.errors import UserError

Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


class Logger:
    """Logs scalars and videos of a run. On processes other than 0 it does nothing.

    All is written immediately and without a thread, so that a full disk is noticed. An
    error does not interrupt a step: it is kept as `failure`, and `train_loop` saves the
    state before it raises it.

    Args:
      workdir: gets metrics.jsonl, one JSON object per call of `scalars`, and logs/ for
        TensorBoard.
      step: the step that the run resumes from. Rows of later steps, which an earlier,
        killed process logged, are dropped, since these steps are made again.

    Raises:
      UserError: a log cannot be written. All processes raise it, and all of them must
        make a logger together.
    """

    def __init__(self, workdir: str | Path, step: int = 0):
        self.active = jax.process_index() == 0
        self.failure: UserError | None = None  # the first error of writing
        self._bar = tqdm(disable=True)
        self._rows = Path(workdir) / "metrics.jsonl"
        name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._events = Path(workdir) / "logs" / f"events.out.tfevents.{name}"
        on_first_process(lambda: self._begin(step))

    def _begin(self, step: int) -> None:
        _drop_rows_after(self._rows, step)
        files.make_folder(self._events.parent)
        version = Event(step=step + 1, file_version="brain.Event:2")
        # It makes TensorBoard hide the later steps of earlier files.
        start = SessionLog(status=SessionLog.START)
        self._add(version, Event(step=step + 1, session_log=start))

    def _add(self, *events) -> None:
        """Append events in TensorBoard's format: length, checksum, bytes, checksum."""
        records = []
        for event in events:
            event.wall_time = time.time()
            content = event.SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                records += [part, struct.pack("<I", masked_crc32c(part))]
        files.append_bytes(self._events, b"".join(records))

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Keep a UserError as `failure`, unless there is one, instead of raising it."""
        try:
            yield
        except UserError as error:
            self.failure = self.failure or error

    def check(self) -> None:
        """Raise the first error of writing, if there was one."""
        if self.failure is not None:
            raise self.failure

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers by name, as in {"train/loss": 0.1}.

        Those that are not finite become null in metrics.jsonl.
        """
        if not (self.active and values):
            return
        row = {name: float(value) for name, value in values.items()}
        tagged = [Summary.Value(tag=n, simple_value=value) for n, value in row.items()]
        row = {n: value if math.isfinite(value) else None for n, value in row.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n"
        with self.recording_failure():
            files.append_bytes(self._rows, line.encode())
            self._add(Event(step=step, summary=Summary(value=tagged)))

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a PNG or a GIF, which plays in TensorBoard's image tab. Raises errors."""
        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(
            height=height, width=width, colorspace=3,
            encoded_image_string=path.read_bytes(),
        )  # fmt: skip
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._add(Event(step=step, summary=summary))

    def info(self, text: str) -> None:
        """Print a line on standard output, above the bar if there is one."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextmanager
    def progress(self, step: int, num_steps: int) -> Iterator[None]:
        """Show a bar from `step` to `num_steps` if standard error is a terminal."""
        disable = None if self.active else True  # None: unless it is a terminal
        with tqdm(
            initial=step, total=num_steps, disable=disable, dynamic_ncols=True,
            unit="step",
        ) as self._bar:  # fmt: skip
            yield

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self._bar.update(step - self._bar.n)

    def phase(self, name: str) -> None:
        """Show the name of the work between two steps next to the bar."""
        self._bar.set_description_str(name)

    def status(self, step: int, num_steps: int, loss: float, rate: float, left: float):
        """Show loss, clips per second and seconds left: in the bar, or as a line."""
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} clips/s")
        else:
            self.info(
                f"step {step}/{num_steps}  loss {loss:.4f}  {rate:.1f} clips/s  "
                f"{tqdm.format_interval(left)} left"
            )


def _drop_rows_after(path: Path, step: int) -> None:
    """Drop the rows of later steps from a metrics.jsonl.

    A line that was cut short by a kill is dropped too. If other lines are not rows, as
    a failing disk leaves them, the file is set aside first.
    """
    with files.explain_write_errors(path):
        if not os.path.lexists(path):
            return
        if not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{path} is no plain file: move it away")
        lines = list(scalars.read_rows(path))
        kept = [line for line, row in lines if row and row["step"] <= step]
        content = b"".join(line + b"\n" for line in kept)
        # Without a change nothing is written, which a full disk would refuse.
        if len(content) != path.stat().st_size:
            if bad := sum(row is None for _, row in lines[:-1]):
                files.set_aside(path, f"{bad} of its {len(lines)} lines are no rows")
            files.write_bytes(path, content, overwrite=True)
