"""What a run says: a progress bar or lines, metrics.jsonl, TensorBoard."""

import io
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

import jax
import numpy as np
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
    """Scalars and videos of a run. On processes other than 0 it does nothing.

    All is written at once, by no thread: a disk that is full is noticed. It does not
    raise in the middle of a step: `fit` looks at `failure` and saves the state first.

    Args:
      workdir: gets metrics.jsonl, one JSON object per call of `scalars`, and logs/ for
        TensorBoard.
      step: the step that the run goes on from; what an earlier, killed run logged
        after it is dropped, since those steps are made again.

    Raises UserError on every process, which make it together, if it cannot write.
    """

    def __init__(self, workdir: str | Path, step: int = 0):
        self.active = jax.process_index() == 0
        self.failure: UserError | None = None  # the first that was met in writing
        self._bar: tqdm | None = None
        self._rows = Path(workdir) / "metrics.jsonl"
        name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._events = Path(workdir) / "logs" / f"events.out.tfevents.{name}"
        on_first_process(lambda: self._begin(step))

    def _begin(self, step: int) -> None:
        _drop_rows_after(self._rows, step)
        files.make_folder(self._events.parent)
        begun = Event(step=step + 1, file_version="brain.Event:2")
        hide = SessionLog(status=SessionLog.START)  # TensorBoard hides what came after
        self._add(begun, Event(step=step + 1, session_log=hide))

    def _add(self, *events) -> None:
        """Write events in TensorBoard's format: length, checksum, bytes, checksum."""
        records = []
        for event in events:
            event.wall_time = time.time()
            content = event.SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                records += [part, struct.pack("<I", masked_crc32c(part))]
        files.append_bytes(self._events, b"".join(records))

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Keep a UserError of the block as `failure`, unless there is one already."""
        try:
            yield
        except UserError as error:
            self.failure = self.failure or error

    def check(self) -> None:
        """Raise what went wrong in writing, if anything did."""
        if self.failure is not None:
            raise self.failure

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name, as in {"train/loss": 0.1}; non-finite ones as null."""
        if not (self.active and values):
            return
        row = {name: float(value) for name, value in values.items()}
        tagged = [Summary.Value(tag=n, simple_value=value) for n, value in row.items()]
        row = {n: value if math.isfinite(value) else None for n, value in row.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n"
        with self.recording_failure():
            files.append_bytes(self._rows, line.encode())
            self._add(Event(step=step, summary=Summary(value=tagged)))

    def video(self, step: int, name: str, video: np.ndarray, fps: float) -> None:
        """A video that plays in TensorBoard's image tab: uint8 [f, h, w, 1 or 3]."""
        if not self.active:
            return
        # A GIF is an image to TensorBoard.
        video = np.broadcast_to(video, (*video.shape[:3], 3))
        frames = [Image.fromarray(frame) for frame in video]
        gif = io.BytesIO()
        frames[0].save(
            gif, "GIF", save_all=True, append_images=frames[1:],
            duration=round(1000 / fps), loop=0,
        )  # fmt: skip
        height, width = video.shape[1:3]
        image = Summary.Image(
            height=height, width=width, colorspace=3,
            encoded_image_string=gif.getvalue(),
        )  # fmt: skip
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        with self.recording_failure():
            self._add(Event(step=step, summary=summary))

    def info(self, text: str) -> None:
        """A line on standard output, above the bar if there is one."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextmanager
    def progress(self, step: int, until: int) -> Iterator[None]:
        """A bar from `step` to `until`, if standard error is a terminal."""
        disable = None if self.active else True  # None: unless it is a terminal
        with tqdm(
            initial=step, total=until, disable=disable, dynamic_ncols=True, unit="step"
        ) as self._bar:
            yield
        self._bar = None

    def advance(self, step: int) -> None:
        """Move the bar, if there is one, to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def phase(self, what: str) -> None:
        """Name the work that holds up the bar."""
        if self._bar is not None:
            self._bar.set_description_str(what)

    def status(self, step: int, until: int, loss: float, rate: float, left: float):
        """Loss, clips/s and seconds left: in the bar, or as a line."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} clips/s")
        else:
            self.info(
                f"step {step}/{until}  loss {loss:.4f}  {rate:.1f} clips/s  "
                f"{tqdm.format_interval(left)} left"
            )


def _drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows of steps up to `step`.

    A line that a kill cut short goes. Where other lines are no rows, as a failing disk
    leaves them, the file is set aside first.
    """
    with files.explain_write_errors(path):
        if not os.path.lexists(path):
            return
        if not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} is no plain file: move it away")
        found = list(scalars.read_rows(path))
        kept = [line + b"\n" for line, row in found if row and row["step"] <= step]
        if sum(map(len, kept)) == path.stat().st_size:
            return  # on a disk that is full this is no reason to stop
        if bad := sum(row is None for _, row in found[:-1]):
            files.set_aside(path, f"{bad} of its {len(found)} lines are no rows")
        files.write_bytes(path, b"".join(kept), overwrite=True)
