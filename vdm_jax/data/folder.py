"""A folder of videos, or of pictures, as a data set; docs/data.md describes its layout.

Every file is indexed once; its clips are decoded as they are drawn. A long file has
several items: ranges of first frames, each about one clip long, so that an epoch covers
the whole file. Files that turn out to be corrupt while they are loaded raise BadClip.
"""

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import folder_index
from vdm_jax.data.clip_shape import ClipShape, FrameReader
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.data.layout import Listing
from vdm_jax.data.source import BadClip, Clip, mentions_left_or_right
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo
from vdm_jax.video_io.sandbox import SandboxedDecoder

MAX_DRAWS = 4  # starts tried before a file with blank segments counts as unusable

Parts = tuple[tuple[VideoFile, ...], tuple[VideoFile, ...]]


class Folder:
    """The source; data/source.py defines the protocol.

    Further attributes:
      report: the counts of the folder.
      files: the files of this part.
    """

    name = "folder"

    def __init__(
        self,
        parts: Parts,
        shape: ClipShape,
        report: Listing,
        reader: FrameReader,
        held_out: bool = False,
    ):
        self._parts, self._shape, self._reader = parts, shape, reader
        self.report = report
        self.files = parts[held_out]
        files = parts[0] + parts[1]
        values = tuple(sorted({file.label for file in files if file.label is not None}))
        self.label_vocabulary = (values,) if values else ()
        texts = " ".join([*values, *(c for file in files for c in file.captions)])
        self.flip = not mentions_left_or_right(texts)
        self._items = []
        names = []
        for file in self.files:
            ranges = folder_index.clip_ranges(file, shape)
            self._items += [(file, low, high) for low, high in ranges]
            numbered = [f"{file.name} [{i + 1}]" for i in range(len(ranges))]
            names += [file.name] if len(ranges) == 1 else numbered
        self.names = tuple(names)
        self.sizes = tuple(file.num_bytes for file, _, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def split(self, held_out: bool) -> "Folder":
        """Return the held-out part or the training part."""
        return Folder(self._parts, self._shape, self.report, self._reader, held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load a clip with a random start in the range of an item. Raises BadClip."""
        file = self._items[index][0]
        label = []
        try:
            video = self._draw(index, rng, frames)
        except BadVideo as error:
            raise BadClip(self.names[index], error.reason) from error
        if self.label_vocabulary:
            values = self.label_vocabulary[0]
            label = [-1 if file.label is None else values.index(file.label)]
        return self._shape.make_clip(video, file.captions, label, rng)

    def _draw(self, index: int, rng: np.random.Generator, frames: int) -> np.ndarray:
        """Return cropped frames from a random start. Raises BadClip, BadVideo."""
        file, low, high = self._items[index]
        shape = self._shape
        for _ in range(MAX_DRAWS):
            if frames == 1:  # any frame of the clips of this range
                last = file.frame_numbers(high - 1, shape)[-1]
                numbers = rng.integers(low, last + 1, size=1)
            else:
                first = int(rng.integers(low, high))
                numbers = file.frame_numbers(first, shape)[:frames]
            video = self._reader.read(file.info, numbers.tolist())
            video = shape.crop_frames(video, rng)
            if not video_io.is_flat(video):
                return video
        reason = f"constant: {MAX_DRAWS} random clips are blank"
        raise BadClip(self.names[index], reason)


def open_folder(config) -> Folder:
    """Open the folder config.data.path.

    Raises:
      UserError: no such folder, no usable video in it, or settings out of range.
    """
    data = config.data
    if not data.path:
        raise UserError("config.data.path is empty: --config.data.path=FOLDER")
    shape = ClipShape.from_config(config)
    decoder = SandboxedDecoder()
    files, report = folder_index.scan(data.path, shape, data.cache_dir, decoder)
    skipped, total = report.skipped, report.num_videos
    if len(skipped) > data.max_bad_fraction * total:
        raise UserError(
            f"{data.path}: {len(skipped)} of {total} {report.noun} cannot be used, "
            f"more than config.data.max_bad_fraction={data.max_bad_fraction}; "
            f"{folder_index.most_common_reason(skipped)}; "
            "`python -m vdm_jax.data check` names all"
        )
    reader = FrameReader([file.info for file in files], shape, data, decoder)
    parts = folder_index.split_files(files, data.validation_fraction, shape)
    return Folder(parts, shape, report, reader)
