"""A data set that TensorFlow Datasets has prepared, read without tensorflow.

What is on disk is read as it is: features.json says how, array_record files give random
access. `features.Video` cannot even be constructed without tensorflow, but it is stored
as a sequence of pictures, and is read as one. Preparing a data set does need tensorflow
in most cases, once, on any machine:

    tfds build ucf101 --file_format=array_record --data_dir=DIR
"""

import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf import json_format
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.core import example_parser, features, naming, splits
from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2

from vdm_jax import video_io
from vdm_jax.data.folder import LUMA, ClipShape
from vdm_jax.data.source import BadClip, Clip
from vdm_jax.errors import UserError
from vdm_jax.video_io.guard import Guard
from vdm_jax.video_io.stills import rgb

NAME = re.compile(r"(\w+(?:/\w+)?)(?::(\d+\.\d+\.\d+))?(?:@([\w/]+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
CAPTIONS = ("caption", "captions", "text", "description")
VIDEOS = ("video", "mp4", "clip")  # names under which bytes are taken for a video file

Path_ = tuple[str, ...]  # of a feature inside nested dictionaries
Pick = Callable[[int], np.ndarray]  # number of frames -> frames of the clip


@dataclasses.dataclass
class Layout:
    """Where in an example the video, the labels and the captions are."""

    videos: dict[Path_, str] = dataclasses.field(default_factory=dict)  # -> kind
    labels: list[Path_] = dataclasses.field(default_factory=list)
    captions: list[Path_] = dataclasses.field(default_factory=list)


def survey(feature: feature_pb2.Feature, layout: Layout, path=(), repeated=False):
    """Fills in the layout; turns every Video into the pictures as which it is stored."""
    content = feature.WhichOneof("content")
    name = path[-1] if path else ""
    if content == "features_dict":
        for key, value in sorted(feature.features_dict.features.items()):
            survey(value, layout, (*path, key), repeated)
    elif content == "sequence":
        survey(feature.sequence.feature, layout, path, True)
    elif content == "video":
        _as_pictures(feature)
        layout.videos[path] = "pictures"
    elif content == "image" and repeated:
        layout.videos[path] = "pictures"
    elif content == "class_label" and not repeated:
        layout.labels.append(path)
    elif content == "tensor" and not repeated:
        tensor = feature.tensor
        if len(tensor.shape.dimensions) == 4 and tensor.dtype == "uint8":
            layout.videos[path] = "tensor"
        elif not tensor.shape.dimensions and name in VIDEOS:
            layout.videos[path] = "file"
    elif content == "text" and name in CAPTIONS:
        layout.captions.append(path)
    elif content == "text" and name in VIDEOS and not repeated:
        layout.videos[path] = "file"


def _as_pictures(feature: feature_pb2.Feature) -> None:
    """Video -> Sequence(Image): the same bytes, and no tensorflow to construct."""
    video, prefix = feature.video, "tensorflow_datasets.core.features."
    length, *shape = video.shape.dimensions or (-1, -1, -1, 3)
    picture = feature_pb2.Feature(
        python_class_name=f"{prefix}image_feature.Image",
        image=feature_pb2.ImageFeature(
            shape=feature_pb2.Shape(dimensions=shape),
            dtype=video.dtype or "uint8",
            encoding_format=video.encoding_format or "png",
        ),
    )
    feature.python_class_name = f"{prefix}sequence_feature.Sequence"
    feature.sequence.feature.CopyFrom(picture)  # a oneof: this clears `video`
    feature.sequence.length = length


class Tfds:
    """The source: see data/source.py for the protocol."""

    flip = True

    def __init__(
        self,
        directory: Path,
        video: str | None,
        shape: ClipShape,
        share: float,
        held_out: bool,
    ):
        self._args = (directory, video, shape, share)
        self._directory, self._shape = directory, shape
        info, feature = _read_metadata(directory)
        layout = Layout()
        survey(feature, layout)
        self._path, self._kind = _choose(layout, video, directory)
        self._features = features.FeatureConnector.from_proto(feature)
        self._features.load_metadata(os.fspath(directory), feature_name=None)
        self._labels = tuple(layout.labels)
        self._captions = tuple(layout.captions)
        self.attributes = tuple(tuple(self._at(p).names) for p in self._labels)
        self.name = f"tfds {directory.parent.name} {directory.name}"
        self._open(info, share, held_out)
        self._start()

    def _open(self, info, share: float, held_out: bool) -> None:
        """The records of one part: a split of the data set, or every k-th record."""
        template = naming.ShardedFileTemplate(
            dataset_name=info.name,
            data_dir=self._directory,
            filetype_suffix=info.file_format,
        )
        every = splits.SplitDict.from_proto(info.splits, template)
        train, held = _parts(list(every), self._directory)
        split = every[held if held_out and held else train]
        paths = [os.fspath(path) for path in split.filepaths]
        try:
            self._records = ArrayRecordDataSource(paths)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self._directory}: {split.name}: {error}") from error
        if len(self._records) != split.num_examples:
            raise UserError(
                f"{self._directory}: dataset_info.json speaks of {split.num_examples} "
                f"examples in {split.name}, its files hold {len(self._records)}"
            )
        self._ends = np.cumsum(split.shard_lengths)
        self._paths = tuple(paths)
        index = np.arange(len(self._records))
        if not held and share:  # no split of its own: every k-th record
            period = max(round(1 / share), 2)
            index = index[(index % period == period - 1) == held_out]
        elif not held and held_out:
            index = index[:0]
        self._index = index
        self.names = tuple(Path(path).name for path in paths)
        self.sizes = tuple(os.path.getsize(path) for path in paths)

    def _start(self) -> None:
        """What does not pickle."""
        serialized = self._features.get_serialized_info()
        self._parser = example_parser.ExampleParserNp(serialized)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_parser"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return len(self._index)

    def split(self, held_out: bool) -> "Tfds":
        """`validation` or `test` where there is one, else every k-th record."""
        return Tfds(*self._args, held_out)

    def _at(self, path: Path_) -> Any:
        feature: Any = self._features
        for key in path:
            feature = getattr(feature, "feature", feature)[key]
        return feature
