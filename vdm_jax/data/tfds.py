"""A data set that TensorFlow Datasets has prepared, read without tensorflow.

features.json describes the records, and array_record files give random access to them.
Most data sets need tensorflow to be prepared, once, on any machine:

    tfds build ucf101 --file_format=array_record --data_dir=DIR
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import prepared, tfds_files
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.prepared import Prepared
from vdm_jax.data.source import BadClip, Clip, mentions_left_or_right
from vdm_jax.data.tfds_files import ExampleLayout, Records
from vdm_jax.errors import UserError
from vdm_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class Tfds:
    """The source; data/source.py defines the protocol.

    Further attributes:
      path: of the video in an example.
      parts: the training and the held-out records.
    """

    name: str
    label_vocabulary: tuple[tuple[str, ...], ...]
    layout: ExampleLayout
    path: str
    parts: tuple[Records, Records]
    shape: ClipShape
    held_out: bool = False

    @property
    def flip(self) -> bool:
        """False if there are captions, or if a label mentions left or right."""
        values = repr(self.label_vocabulary)
        return not self.layout.captions and not mentions_left_or_right(values)

    @property
    def part(self) -> Records:
        """The records of this part."""
        return self.parts[self.held_out]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(Path(file).name for file in self.part.files)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the files."""
        return tuple(os.path.getsize(file) for file in self.part.files)

    def __len__(self) -> int:
        return len(self.part.index)

    def split(self, held_out: bool) -> "Tfds":
        """Return the held-out part or the training part."""
        return dataclasses.replace(self, held_out=held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load a random clip of record `index`. Raises BadClip."""
        name, record = self.part.read(index)
        stored, captions, label = tfds_files.read_example(
            name, record, self.layout, self.path
        )
        shape = self.shape
        number = len(stored)
        span = (shape.frames - 1) * shape.stride + 1
        if number < span:
            raise BadClip(name, f"too short: {number} frames, a clip spans {span}")
        numbers = np.arange(shape.frames) * shape.stride
        numbers += int(rng.integers(number - span + 1))
        if frames == 1:
            numbers = numbers[[rng.integers(len(numbers))]]
        video = tfds_files.select_frames(name, stored, numbers)
        if video_io.is_flat(video):
            raise BadClip(name, "constant")
        video = shape.crop_frames(video_io.resize(video, shape.size), rng)
        return shape.make_clip(video, captions, label, rng)


def open_tfds(config) -> Tfds | Prepared:
    """Open the data set config.data.tfds_name in the folder config.data.path.

    Without a name the path may be a folder of `data.prepared`.

    Raises:
      UserError: not prepared, corrupt, in another file format, or without a video.
    """
    data = config.data
    if not data.tfds_name and prepared.is_prepared(data.path):
        return prepared.open_prepared(config)
    directory, chosen = tfds_files.find_dataset(data.tfds_name, data.path)
    shape = ClipShape.from_config(config)
    return open_directory(directory, chosen, data.validation_fraction, shape)


def open_directory(
    directory: Path, chosen: str, fraction: float, shape: ClipShape
) -> Tfds:
    """Open the directory of a data set. Raises UserError as `open_tfds`.

    chosen: the feature of the video; "" if there is one. fraction: that is held out.
    """
    if shape.fps:
        raise UserError(
            "config.data.target_fps: examples of TFDS have no frame rate: set it to 0"
        )
    try:
        return _open(directory, chosen, fraction, shape)
    except (
        ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{directory} cannot be read ({reason:.300}): prepare the data set again, "
            "with TFDS 4.3 or newer"
        ) from error


def _open(directory: Path, chosen: str, fraction: float, shape: ClipShape) -> Tfds:
    """Open a directory. Any error but UserError means that TFDS has not written it."""
    info = read_json(directory / "dataset_info.json")
    file_format = info.get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{directory} is in {file_format} format, which needs tensorflow: prepare "
            "it again with tfds build --file_format=array_record"
        )
    layout = ExampleLayout()
    layout.add(read_json(directory / "features.json"))
    names = (info["name"], info.get("configName", ""), info["version"])
    return Tfds(
        name=" ".join(["tfds", *filter(None, names)]),
        label_vocabulary=tuple(
            tfds_files.label_names(path, count, directory)
            for path, count in layout.labels.items()
        ),
        layout=layout,
        path=layout.choose_video(chosen),
        parts=tfds_files.split_records(info, fraction, directory),
        shape=shape,
    )
