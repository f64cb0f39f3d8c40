"""What a run says: a progress bar or lines, metrics.jsonl, TensorBoard."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tqdm import tqdm


class Logger:
    """Scalars and videos of a run. On processes other than 0 it does nothing.

    Args:
      workdir: gets metrics.jsonl, one JSON object per call of `scalars`, and logs/ for
        TensorBoard.
      step: the step that the run goes on from; what an earlier, killed run logged
        after it is dropped, since those steps are made again.
    """

    def __init__(self, workdir: str | Path, step: int = 0):
        self.active = jax.process_index() == 0
        self._bar: tqdm | None = None
        if not self.active:
            return
        path = Path(workdir) / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a")
        logs = Path(workdir) / "logs"
        self._writer = SummaryWriter(str(logs), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name, as in {"train/loss": 0.1}; non-finite ones as null."""
        if not (self.active and values):
            return
        row = {name: float(value) for name, value in values.items()}
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        row = {n: value if math.isfinite(value) else None for n, value in row.items()}
        line = {"step": step, "time": round(time.time(), 3), **row}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def video(self, step: int, name: str, video: np.ndarray, fps: float) -> None:
        """A video that plays in TensorBoard's image tab: uint8 [f, h, w, 1 or 3]."""
        if not self.active:
            return
        # The writer's own add_video needs moviepy; a GIF is an image to TensorBoard.
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
        self._writer._get_file_writer().add_summary(summary, step)

    def say(self, text: str) -> None:
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

    def doing(self, what: str) -> None:
        """Name the work that holds up the bar."""
        if self._bar is not None:
            self._bar.set_description_str(what)

    def status(self, step: int, until: int, loss: float, rate: float, left: float):
        """Loss, clips/s and seconds left: in the bar, or as a line."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} clips/s")
        else:
            self.say(
                f"step {step}/{until}  loss {loss:.4f}  {rate:.1f} clips/s  "
                f"{tqdm.format_interval(left)} left"
            )

    def close(self) -> None:
        """Flush everything."""
        if self.active:
            self._file.close()
            self._writer.close()


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`; a line that a kill cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    new = path.with_suffix(".tmp")
    new.write_text("".join(kept))
    os.replace(new, path)
