"""A data set that TensorFlow Datasets has prepared, read without tensorflow.

What is on disk is read as it is: features.json says how, array_record files give random
access. `features.Video` cannot even be constructed without tensorflow, but it is stored
as a sequence of pictures, and is read as one. Preparing a data set does need tensorflow
in most cases, once, on any machine:

    tfds build ucf101 --file_format=array_record --data_dir=DIR
"""

import dataclasses
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow_datasets.core import example_parser, features, naming, splits
from tensorflow_datasets.core import proto as untyped
from tensorflow_datasets.core.features.feature import convert_feature_name_to_filename

from vdm_jax import files, video_io
, ClipShape
from vdm_jax.data.source import BadClip, Clip
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.video_io import images
from vdm_jax.video_io.sandbox import SandboxedDecoder

NAME = re.compile(r"(\w+(?:/\w+)?)(?::(\d+\.\d+\.\d+))?(?:@([\w/]+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
CAPTION_NAMES = ("caption", "captions", "text", "description")
VIDEO_NAMES = (
    "video",
    "mp4",
    "clip",
)  # names under which bytes are taken for a video file

MAX_LABEL_VALUES = 100_000  # of a label; features.json may declare any number
# How a feature is stored -> the class that reads it. Custom ones have a JSON of their
# own ("json_feature") or the content of one of these.
CLASSES = {
    "features_dict": features.FeaturesDict,
    "sequence": features.Sequence,
    "tensor": features.Tensor,
    "image": features.Image,
    "class_label": features.ClassLabel,
    "text": features.Text,
    "bounding_box": features.BBoxFeature,
    "audio": features.Audio,
    "translation": features.Translation,
}

# What TFDS raises on a record that holds something else than it was told.
RECORD_ERRORS = (
    AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError,
    DecodeError, zlib.error,
)  # fmt: skip

FeaturePath = tuple[str, ...]  # of a feature inside nested dictionaries

proto: Any = untyped  # classes made from .proto files when they are imported
Feature: Any = proto.feature_pb2.Feature


@dataclasses.dataclass
class ExampleLayout:
    """Where in an example the video, the labels and the captions are."""

    videos: dict[FeaturePath, str] = dataclasses.field(default_factory=dict)  # -> kind
    labels: list[FeaturePath] = dataclasses.field(default_factory=list)
    captions: list[FeaturePath] = dataclasses.field(default_factory=list)


def supported_feature(feature: Any) -> Any:
    """Return what of a feature is read, in classes of TFDS's own; None for nothing.

    features.json names a class for every feature, and TFDS imports the module of that
    name, from wherever Python finds one. How a feature is stored follows from its
    content alone: the class is taken from our table, the name is not looked at, and
    what has none of these contents is left out.
    """
    content = feature.WhichOneof("content")
    if content == "video":
        return _as_pictures(feature.video)
    if content not in CLASSES:
        return None
    ours = Feature(python_class_name=_name(CLASSES[content]))
    if content == "features_dict":
        inner = feature.features_dict.features
        read = {key: supported_feature(value) for key, value in inner.items()}
        for key in sorted(key for key, value in read.items() if value is not None):
            ours.features_dict.features[key].CopyFrom(read[key])
        return ours
    getattr(ours, content).CopyFrom(getattr(feature, content))
    if content == "sequence":
        inner = supported_feature(feature.sequence.feature)
        if inner is None:
            return None
        ours.sequence.feature.CopyFrom(inner)
    return ours


def _as_pictures(video: Any) -> Any:
    """Video -> Sequence(Image): the same bytes, and no tensorflow to construct."""
    length, *shape = video.shape.dimensions or (-1, -1, -1, 3)
    picture = Feature(
        python_class_name=_name(features.Image),
        image=proto.feature_pb2.ImageFeature(
            shape=proto.feature_pb2.Shape(dimensions=shape),
            dtype=video.dtype or "uint8",
            encoding_format=video.encoding_format or "png",
        ),
    )
    sequence = proto.feature_pb2.Sequence(feature=picture, length=length)
    return Feature(python_class_name=_name(features.Sequence), sequence=sequence)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def scan_features(feature: Any, layout: ExampleLayout, path=(), repeated=False):
    """Fill in the layout from what `readable` has left."""
    content = feature.WhichOneof("content")
    name = path[-1] if path else ""
    if content == "features_dict":
        for key, value in sorted(feature.features_dict.features.items()):
            scan_features(value, layout, (*path, key), repeated)
    elif content == "sequence":
        scan_features(feature.sequence.feature, layout, path, True)
    elif content == "image" and repeated:
        layout.videos[path] = "pictures"
    elif content == "class_label" and not repeated:
        layout.labels.append(path)
    elif content == "tensor" and not repeated:
        tensor = feature.tensor
        if len(tensor.shape.dimensions) == 4 and tensor.dtype == "uint8":
            layout.videos[path] = "tensor"
        elif not tensor.shape.dimensions and name in VIDEO_NAMES:
            layout.videos[path] = "file"
    elif content == "text" and name in CAPTION_NAMES:
        layout.captions.append(path)
    elif content == "text" and name in VIDEO_NAMES and not repeated:
        layout.videos[path] = "file"


@dataclasses.dataclass(frozen=True)
class Records:
    """The training or the held-out records, in the files of one split."""

    records: ArrayRecordDataSource
    index: np.ndarray  # which of them belong to this part
    files: tuple[str, ...]
    ends: np.ndarray  # records up to the end of each file

    def read(self, item: int) -> tuple[str, bytes]:
        """A record and its name. Raises BadClip where its checksum fails."""
        key = int(self.index[item])
        file = int(np.searchsorted(self.ends, key, side="right"))
        first = self.ends[file - 1] if file else 0
        name = f"{Path(self.files[file]).name} record {key - first}"
        try:
            return name, self.records[key]
        except RuntimeError as error:  # of the array_record reader
            raise BadClip(name, str(error).split(";")[0].split(" (")[0]) from error


@dataclasses.dataclass(frozen=True)
class Tfds:
    """The source: see data/source.py for the protocol."""

    name: str
    label_vocabulary: tuple[tuple[str, ...], ...]
    layout: ExampleLayout
    path: FeaturePath  # of the video
    parser: example_parser.ExampleParserNp
    features: features.FeatureConnector
    parts: tuple[Records, Records]
    shape: ClipShape
    guard: SandboxedDecoder
    held_out: bool = False

    @property
    def flip(self) -> bool:
        """Not where a label or a caption may speak of left and right."""
        values = " ".join(value for names in self.label_vocabulary for value in names)
        sided = re.search(r"(?<![a-z])(left|right)", values, re.IGNORECASE)
        return not self.layout.captions and not sided

    @property
    def part(self) -> Records:
        """The one that this view shows."""
        return self.parts[self.held_out]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files."""
        return tuple(Path(file).name for file in self.part.files)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the files, in bytes."""
        return tuple(os.path.getsize(file) for file in self.part.files)

    def __len__(self) -> int:
        return len(self.part.index)

    def split(self, held_out: bool) -> "Tfds":
        """`validation` or `test` where there is one, else every k-th record."""
        return dataclasses.replace(self, held_out=held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """A random clip of record `index`."""
        name, record = self.part.read(index)
        stored, texts, label = self._parse(name, record)

        def pick(number: int) -> np.ndarray:
            span = (self.shape.frames - 1) * self.shape.stride + 1
            if number < span:
                raise BadClip(name, f"too short: {number} frames, a clip spans {span}")
            start = int(rng.integers(number - span + 1))
            every = start + self.shape.stride * np.arange(self.shape.frames)
            return every if frames > 1 else every[[rng.integers(len(every))]]

        try:
            video = self._frames(name, stored, pick)
        except video_io.BadVideo as error:
            raise BadClip(name, error.reason) from error
        if video_io.is_flat(video):
            raise BadClip(name, "constant")
        place = rng if self.shape.crop == "random" else None
        video = video_io.crop(
            video_io.resize(video, self.shape.size), self.shape.size, place
        )
        if self.shape.channels == 1:
            video = video_io.to_gray(video)
        clip = Clip(
            video=video, caption=texts[int(rng.integers(len(texts)))] if texts else ""
        )
        if self.label_vocabulary:
            clip["label"] = np.array(label, np.int32)
        return clip

    def _parse(self, name: str, record: bytes) -> tuple[Any, list[str], list[int]]:
        """The video as it is stored, captions and label. Raises BadClip for others."""
        layout = self.layout
        try:
            example = self.parser.parse_example(record)
            stored = _get(example, self.path)
            if layout.videos[self.path] == "tensor":
                stored = _get(self.features, self.path).decode_example_np(stored)
            told = _get(example, layout.captions[0]) if layout.captions else None
            told = [] if told is None else told
            texts = [text.decode() for text in np.atleast_1d(told)]
            label = [int(_get(example, path)) for path in layout.labels]
        except RECORD_ERRORS as error:
            said = str(error).splitlines()[:1] or [type(error).__name__]
            reason = f"not what features.json says: {said[0]}"
            raise BadClip(name, reason) from error
        if stored is None:
            raise BadClip(name, "holds no video")
        for text in texts:
            if reason := files.why_invalid_text(text):
                raise BadClip(name, f"a caption {reason}")
        for value, names in zip(label, self.label_vocabulary, strict=True):
            if not -1 <= value < len(names):
                raise BadClip(name, f"label {value} of {len(names)}")
        return stored, texts, label

    def _frames(
        self, name: str, stored: Any, pick: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        """The frames of one clip, uint8 [f, h, w, 3], at their own size."""
        kind = self.layout.videos[self.path]
        if kind == "tensor":
            video = stored[pick(len(stored))]
            if video.shape[-1] not in (1, 3, 4) or not video.size:
                raise BadClip(name, f"a tensor {stored.shape}: 1, 3 or 4 channels")
            return np.broadcast_to(video[..., :3], (*video.shape[:3], 3))
        if kind == "pictures":
            chosen = [stored[i] for i in pick(len(stored))]
            frames = [images.read_image(io.BytesIO(picture)) for picture in chosen]
            if len({frame.shape for frame in frames}) > 1:
                raise BadClip(name, "its frames differ in size")
            return np.stack(frames)
        with tempfile.NamedTemporaryFile() as file:
            file.write(stored)
            file.flush()
            info = self.guard.inspect(file.name)
            return self.guard.read_frames(info, pick(info.frames).tolist())


def _get(tree: Any, path: FeaturePath) -> Any:
    """What stands at a path of nested dictionaries, of values or of features."""
    for key in path:
        tree = getattr(tree, "feature", tree)[key]
    return tree


def find_dataset(name: str, data_dir: str) -> tuple[Path, str]:
    """The directory of a prepared data set and the chosen feature ("" = the only one).

    name: NAME[/CONFIG][:VERSION][@FEATURE]; the newest version by default. data_dir:
    "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"config.data.tfds_name={name!r}: NAME[/CONFIG][:VERSION][@FEATURE]"
        )
    name, wanted, feature = match.groups()
    home = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = user_path(data_dir or home, "TFDS_DATA_DIR")
    found = {path.name: path for path in _directories(root / name)}
    versions = [key for key in found if VERSION.fullmatch(key)]
    if wanted in versions or (versions and not wanted):
        newest = max(versions, key=lambda v: [int(n) for n in v.split(".")])
        return found[wanted or newest], feature or ""
    if versions:
        raise UserError(f"{name}: no version {wanted}, but {', '.join(versions)}")
    configs = [k for k, p in found.items() if any(map(_is_version, _directories(p)))]
    if configs:
        choices = ", ".join(f"{name}/{config}" for config in sorted(configs))
        raise UserError(f"config.data.tfds_name={name!r}: one of {choices}")
    raise UserError(
        f"no prepared data set {name} in {root}: preparing needs tensorflow, once, on "
        f"any machine: tfds build {name} --file_format=array_record --data_dir={root}"
    )


def _directories(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []


def _is_version(path: Path) -> bool:
    return VERSION.fullmatch(path.name) is not None


def _read_message(path: Path, message: Any) -> Any:
    """A JSON file of a prepared data set."""
    try:
        content = files.read_json(path)
        if not isinstance(content, dict):
            raise files.CorruptFile("no object")
        # protobuf takes half of a surrogate pair and stumbles over it later
        json.dumps(content, ensure_ascii=False).encode()
        return json_format.ParseDict(content, message)
    except (OSError, ValueError, json_format.ParseError) as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> UserError:
    """What is told of a file that TFDS wrote otherwise."""
    said = str(error).splitlines()[:1] or [type(error).__name__]
    return UserError(
        f"{path} cannot be read ({said[0]:.200}): the data set must be prepared again, "
        "by TFDS 4.3 or newer"
    )


def _splits(info: Any, directory: Path) -> dict[str, Any]:
    """The splits of dataset_info.json by name, the paths of their files filled in."""
    try:
        template = naming.ShardedFileTemplate(
            dataset_name=info.name,
            data_dir=epath.Path(directory),
            filetype_suffix="array_record",
        )
        every = splits.SplitDict.from_proto(info.splits, template)
        for split in every.values():
            for path in split.filepaths:
                Path(path).resolve()
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise _corrupt(directory / "dataset_info.json", error) from error
    return every


def _part(info: Any, directory: Path) -> Records:
    """All records of a split, if they are as many as promised."""
    paths = tuple(os.fspath(path) for path in info.filepaths)
    root = directory.resolve()
    for path in paths:
        if not Path(path).resolve().is_relative_to(root):
            raise UserError(
                f"{directory}: split {info.name}: {path} lies outside of it"
            )
    try:
        records = ArrayRecordDataSource(paths)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{directory}: split {info.name}: {error}") from error
    if len(records) != info.num_examples:
        raise UserError(
            f"{directory}: dataset_info.json counts {info.num_examples} examples in "
            f"split {info.name}, its files hold {len(records)}"
        )
    return Records(
        records, np.arange(len(records)), paths, np.cumsum(info.shard_lengths)
    )


def _split_records(
    every: dict[str, Any], share: float, directory: Path
) -> tuple[Records, Records]:
    """The training and the held-out part."""
    names = list(every)
    if not names:
        raise UserError(f"{directory}: dataset_info.json names no split")
    train = "train" if "train" in names else names[0]
    part = _part(every[train], directory)
    for name in ("validation", "test"):
        if name in names and name != train:
            return part, _part(every[name], directory)
    period = max(round(1 / share), 2) if share else len(part.index) + 1
    held = part.index % period == period - 1
    training, held_out = part.index[~held], part.index[held]
    replace = dataclasses.replace
    return replace(part, index=training), replace(part, index=held_out)


def _choose(layout: ExampleLayout, feature: str, directory: Path) -> FeaturePath:
    """Which feature is the video."""
    paths = {"/".join(path): path for path in layout.videos}
    if feature in paths:
        return paths[feature]
    if not feature and len(paths) == 1:
        return next(iter(paths.values()))
    if not feature and "video" in paths:
        return paths["video"]
    if not paths:
        raise UserError(
            f"{directory} has no video feature: Video, a sequence of Images, a uint8 "
            f"Tensor of 4 dimensions, or bytes under one of {', '.join(VIDEO_NAMES)}"
        )
    raise UserError(
        f"{directory}: {feature or 'which feature'} is the video? add one of "
        f"{', '.join('@' + name for name in paths)} to config.data.tfds_name"
    )


def _label_names(feature: Any, path: FeaturePath, directory: Path) -> tuple[str, ...]:
    """The names of a label's values: those of its file, numbers where there is none.

    TFDS passes over a file that it cannot read, and takes one of another length.
    """
    stem = ""
    for key in path:
        feature = feature.features_dict.features[key]
        stem = convert_feature_name_to_filename(key, stem or None)
    count = feature.class_label.num_classes
    if not 0 < count <= MAX_LABEL_VALUES:
        raise UserError(
            f"{directory / 'features.json'}: {'/'.join(path)} has {count} values: "
            f"from 1 to {MAX_LABEL_VALUES}"
        )
    where = directory / f"{stem}.labels.txt"
    if not where.exists():
        return tuple(map(str, range(count)))
    try:
        if not where.is_file():
            raise files.CorruptFile("not a regular file")
        rows = [row.strip() for row in files.read_text(where).split("\n")]
        names = tuple(filter(None, rows))
        if not len(names) == len(set(names)) == count:
            raise files.CorruptFile(
                f"{len(set(names))} different names in {len(names)} lines, "
                f"features.json says {count}"
            )
    except (OSError, files.CorruptFile) as error:
        raise _corrupt(where, error) from error
    return names


def _connector(feature: Any, directory: Path) -> features.FeatureConnector:
    """What TFDS reads examples by."""
    where = directory / "features.json"
    try:
        connector = features.FeatureConnector.from_proto(feature)
        connector.get_serialized_info()
    except ImportError as error:  # TFDS asks tensorflow for a dtype that numpy lacks
        reason = files.CorruptFile(
            "a feature without a dtype, or of one unknown to numpy"
        )
        raise _corrupt(where, reason) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} describes no features: {error}") from error
    return connector


def open_tfds(config) -> Tfds:
    """The source for a config: config.data.tfds_name in folder config.data.path.

    Raises:
      UserError: not prepared or damaged, another file format, no video in it.
    """
    data, video = config.data, config.video
    shape = ClipShape(
        video.frames, video.height, video.width, video.channels,
        data.stride, data.target_fps or 0.0, data.crop,
    )  # fmt: skip
    shape.check()
    if shape.fps:
        raise UserError(
            "config.data.target_fps: examples of TFDS have no frame rate; set it to 0 "
            "and use config.data.stride"
        )
    directory, chosen = find_dataset(data.tfds_name, data.path)
    info = _read_message(
        directory / "dataset_info.json", proto.dataset_info_pb2.DatasetInfo()
    )
    if info.file_format != "array_record":
        raise UserError(
            f"{directory} is in {info.file_format or 'tfrecord'} format, which needs "
            "tensorflow: prepare it again with tfds build --file_format=array_record"
        )
    feature = (
        supported_feature(_read_message(directory / "features.json", Feature()))
        or Feature()
    )
    layout = ExampleLayout()
    scan_features(feature, layout)
    path = _choose(layout, chosen, directory)
    attributes = tuple(_label_names(feature, p, directory) for p in layout.labels)
    connector = _connector(feature, directory)
    return Tfds(
        name=f"tfds {info.name} {info.config_name} {info.version}".replace("  ", " "),
        label_vocabulary=attributes,
        layout=layout,
        path=path,
        parser=example_parser.ExampleParserNp(connector.get_serialized_info()),
        features=connector,
        parts=_split_records(
            _splits(info, directory), data.validation_fraction, directory
        ),
        shape=shape,
        guard=SandboxedDecoder(),
    )
