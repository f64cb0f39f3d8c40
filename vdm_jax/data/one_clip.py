"""One clip with a caption: the data of one-shot tuning (Tune-A-Video)."""

import contextlib
import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo
from vdm_jax.video_io.sandbox import SandboxedDecoder

DECODER = SandboxedDecoder()


@dataclasses.dataclass(frozen=True)
class OneClip:
    """The source; data/source.py defines the protocol. No part of it is held out.

    Each example of a batch is the clip, with noise of its own.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    caption: str
    edited_caption: str  # of the edits that are previews
    video: np.ndarray  # uint8 [f, h, w, c]
    batch_size: int = 1
    held_out: bool = False

    name = "one_clip"
    label_vocabulary = ()
    flip = False

    @property
    def captions(self) -> list[str]:
        """All captions."""
        return [self.caption, self.edited_caption]

    def __len__(self) -> int:
        return 0 if self.held_out else self.batch_size

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip, or one of its frames."""
        if frames > 1:
            return Clip(video=self.video, caption=self.caption)
        number = rng.integers(len(self.video))
        return Clip(video=self.video[number : number + 1], caption=self.caption)

    def split(self, held_out: bool) -> "OneClip":
        """Return the held-out part, which is empty, or the clip."""
        return dataclasses.replace(self, held_out=held_out)


def open_one_clip(config) -> OneClip:
    """Open the first frames of the video config.data.path.

    They are taken at the stride or the rate of config.data, as edit.py takes those of
    the clip that it edits (`sampling.observations`), resized to cover config.video and
    cropped at the centre.

    Raises:
      UserError: no video, no caption, or one that is too short.
    """
    data = config.data
    if not data.path or not data.caption:
        raise UserError(
            f"config.data.path={data.path}, config.data.caption={data.caption!r:.60}: "
            "give a video and what it shows, as --config.data.caption='a cat runs'"
        )
    shape = ClipShape.from_config(config)
    try:
        info = DECODER.probe(data.path)
        shape.num_starts(info)  # raises if the clip is too short
        numbers = shape.frame_numbers(info, 0)
        video = DECODER.read_frames(info, numbers.tolist(), shape.size)
    except BadVideo as error:
        raise UserError(str(error)) from error
    video = video_io.crop(video, shape.size)
    if shape.channels == 1:
        video = video_io.to_gray(video)
    # The pixels, not the file's bytes: other settings take other frames of it.
    checksum = zlib.crc32(video.tobytes())
    captions = data.caption, data.edited_caption or data.caption
    name = Path(data.path).name
    return OneClip((name,), (checksum,), *captions, video, data.batch_size)


def fill_in(config: Any, workdir: Path) -> None:
    """Fill in fields of a config that are those of its clip, where they are not set.

    The rate of the files written is that of the frames that are taken. The caption's
    text is in the workdir: another clip has another.
    """
    data, video = config.data, config.video
    with config.unlocked(), contextlib.suppress(BadVideo):  # `open_one_clip` raises it
        data.text_embeddings_dir = data.text_embeddings_dir or str(workdir / "text")
        if video.fps is None and data.path:
            rate = (DECODER.probe(data.path).fps or 0) / data.stride
            video.fps = data.target_fps or round(rate, 3) or None
