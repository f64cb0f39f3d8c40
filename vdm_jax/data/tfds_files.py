"""A data set prepared by TensorFlow Datasets, without tensorflow: files and features.

features.json names a class for every feature, and TFDS would import its module from
wherever Python finds it. How a feature is stored follows from its content alone: that
is read here, and nothing that a data set names is imported. A record is an `Example` of
TensorFlow: lists of numbers or bytes under the path of each feature.
"""

import dataclasses
import io
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from vdm_jax import video_io
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, read_text, user_path
from vdm_jax.video_io import images

NAME = re.compile(r"(\w+(?:/\w+)?)(?::(\d+\.\d+\.\d+))?(?:@([\w/]+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
CAPTION_NAMES = ("caption", "captions", "text", "description")
MAX_LABEL_VALUES = 100_000  # features.json may declare any number

messages: Any = tf_example_pb2  # its classes are made at import


def find_dataset(name: str, data_dir: str) -> tuple[Path, str]:
    """Return the directory of a prepared data set, and the chosen feature.

    The feature is "" if none is chosen.

    Args:
      name: NAME[/CONFIG][:VERSION][@FEATURE]; the default is the newest version.
      data_dir: "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"config.data.tfds_name={name!r}: NAME[/CONFIG][:VERSION][@FEATURE]"
        )
    name, version, feature = match.groups(default="")
    root = data_dir_path(data_dir)
    prepared = [path.parent for path in (root / name).glob("**/dataset_info.json")]
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in prepared
        if path.parent == root / name and VERSION.fullmatch(path.name)
        if version in ("", path.name)
    }
    if versions:
        return versions[max(versions)], feature
    wanted = f"{name}:{version}" if version else name
    others = "".join(sorted(f" {path.relative_to(root)}" for path in prepared))
    if others:
        others = f" (it has{others})"
    raise UserError(
        f"no prepared data set {wanted} in {root}{others}: preparing it needs "
        f"tensorflow, once, on any machine: tfds build {name} "
        f"--file_format=array_record --data_dir={root}"
    )


def data_dir_path(data_dir: str) -> Path:
    """Return the folder of all data sets; "" is $TFDS_DATA_DIR or the one of TFDS."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return user_path(data_dir or default, "TFDS_DATA_DIR")


@dataclasses.dataclass(frozen=True)
class Records:
    """The training or the held-out records, in the files of one split.

    Attributes:
      index: int [n], the records of ``records`` that belong to this part.
      ends: int, the number of records up to the end of each file.
    """

    records: ArrayRecordDataSource
    index: np.ndarray
    files: tuple[str, ...]
    ends: np.ndarray

    def place(self, item: int) -> tuple[str, str, int]:
        """Return the name of a record, its file, and its number in it."""
        key = int(self.index[item])
        file = int(np.searchsorted(self.ends, key, side="right"))
        number = key - int(self.ends[file - 1] if file else 0)
        return (
            f"{Path(self.files[file]).name} record {number}",
            self.files[file],
            number,
        )

    def read(self, item: int) -> tuple[str, bytes]:
        """Return the name and the bytes of a record.

        Raises BadClip if its checksum is wrong.
        """
        name, *_ = self.place(item)
        try:
            return name, self.records[int(self.index[item])]
        except RuntimeError as error:  # from the array_record reader
            raise BadClip(name, str(error).split(";")[0].split(" (")[0]) from error


def open_split(info: dict, split: dict, directory: Path) -> Records:
    """Return all records of a split, whose files have the names that TFDS gives.

    Raises CorruptFile, or an error of the files, if they are not as info says.
    """
    lengths = list(map(int, split["shardLengths"]))
    stem = f"{info['name']}-{split['name']}.array_record"
    names = (f"{stem}-{i:05}-of-{len(lengths):05}" for i in range(len(lengths)))
    paths = tuple(str(directory / name) for name in names)
    records: Any = ArrayRecordDataSource(paths) if paths else ()
    if len(records) != sum(lengths):
        raise CorruptFile(f"{sum(lengths)} records in {stem}, not {len(records)}")
    return Records(records, np.arange(len(records)), paths, np.cumsum(lengths))


def split_records(
    info: dict, fraction: float, directory: Path
) -> tuple[Records, Records]:
    """Return the training and the held-out part.

    Held out is the split `validation`, else `test`, else a fraction of the records at
    equal distances. info: the content of dataset_info.json.
    """
    splits = {split["name"]: split for split in info["splits"]}
    train = "train" if "train" in splits else list(splits)[0]
    part = open_split(info, splits[train], directory)
    for name in ("validation", "test"):
        if name in splits and name != train:
            return part, open_split(info, splits[name], directory)
    period = max(round(1 / fraction), 2) if fraction else len(part.index) + 1
    mask = part.index % period == period - 1
    replace = dataclasses.replace
    return replace(part, index=part.index[~mask]), replace(part, index=part.index[mask])


@dataclasses.dataclass
class ExampleLayout:
    """The paths of videos, labels and captions in an example: names joined by "/".

    videos: path -> the tensor of features.json; {} for a list of images.
    labels: path -> number of values.
    """

    videos: dict[str, dict] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    captions: list[str] = dataclasses.field(default_factory=list)

    def add(self, feature: dict, path: str = "", repeated: bool = False) -> None:
        """Add a feature of features.json. repeated: whether it is inside a sequence.

        Features of other contents are left out.
        """
        if "featuresDict" in feature:
            for key, value in sorted(feature["featuresDict"]["features"].items()):
                self.add(value, f"{path}/{key}".lstrip("/"), repeated)
        elif "sequence" in feature:
            self.add(feature["sequence"]["feature"], path, True)
        elif "text" in feature and path.rpartition("/")[2] in CAPTION_NAMES:
            self.captions.append(path)
        elif "video" in feature or ("image" in feature and repeated):
            self.videos[path] = {}
        elif "classLabel" in feature and not repeated:
            self.labels[path] = int(feature["classLabel"]["numClasses"])
        elif "tensor" in feature and not repeated:
            tensor = feature["tensor"]
            shape = [int(size) for size in tensor["shape"].get("dimensions", ())]
            if len(shape) == 4 and tensor["dtype"] == "uint8":
                self.videos[path] = tensor | {"shape": shape}

    def choose_video(self, feature: str) -> str:
        """Return the path of the video feature. Raises UserError if it is ambiguous.

        feature: the path that the user chose, or "".
        """
        names = list(self.videos)
        default = "video" if "video" in names or len(names) != 1 else names[0]
        if (feature or default) in names:
            return feature or default
        choices = ", ".join(f"@{name}" for name in names) or "none"
        raise UserError(
            f"config.data.tfds_name: {feature or 'which'} is the video? add one of "
            f"{choices} (a Video, a sequence of Images, or a uint8 Tensor of 4 axes)"
        )


def label_names(path: str, count: int, directory: Path) -> tuple[str, ...]:
    """Return the names of a label's values from its file, or numbers without a file.

    TFDS ignores a file that it cannot read, and accepts one of another length. Both
    raise an error here: OSError, CorruptFile.
    """
    file = directory / f"{path.replace('/', '-')}.labels.txt"
    if file.exists():
        names = tuple(filter(None, map(str.strip, read_text(file).split("\n"))))
    else:
        names = tuple(map(str, range(min(count, MAX_LABEL_VALUES))))
    if not len(names) == len(set(names)) == count > 0:
        found = f"{len(set(names))} different names in {len(names)} lines"
        raise CorruptFile(f"label {path} has {count} values, {file.name} {found}")
    return names


def read_example(
    name: str, record: bytes, layout: ExampleLayout, path: str
) -> tuple[Any, list[str], list[int]]:
    """Return the stored video, the captions and the label of a record.

    The video is a list of the bytes of images, or a uint8 array.

    Raises BadClip for a record that does not have the declared features.
    """
    label = []
    try:
        features = dict(messages.Example.FromString(record).features.feature)
        for key, count in layout.labels.items():
            (value,) = features[key].int64_list.value
            if not -1 <= value < count:
                raise ValueError(f"label {value} of {count}")
            label.append(value)
        captions = [features[key].bytes_list.value for key in layout.captions[:1]]
        texts = [text.decode() for values in captions for text in values]
        if tensor := layout.videos[path]:
            video = _decode_tensor(features, path, tensor)
        else:
            video = features[path].bytes_list.value
    except (ArithmeticError, DecodeError, LookupError, ValueError, zlib.error) as error:
        text = str(error).splitlines()[:1] or [type(error).__name__]
        raise BadClip(name, f"does not match features.json: {text[0]}") from error
    return video, texts, label


def _decode_tensor(features: dict, path: str, tensor: dict) -> np.ndarray:
    shape, encoding = tensor["shape"], tensor.get("encoding")
    if shape.count(-1) > 1:  # stored with each record
        shape = features[f"{path}/shape"].int64_list.value
        path = f"{path}/value"
    if encoding not in ("bytes", "zlib"):
        return np.array(features[path].int64_list.value, np.uint8).reshape(shape)
    (content,) = features[path].bytes_list.value
    content = zlib.decompress(content) if encoding == "zlib" else content
    return np.frombuffer(content, np.uint8).reshape(shape)


def select_frames(name: str, stored: Any, numbers: np.ndarray) -> np.ndarray:
    """Return frames of a stored video, uint8 [f, h, w, 3], at their original size.

    Raises BadClip.
    """
    if isinstance(stored, np.ndarray):
        video = stored[numbers]
        if video.shape[-1] not in (1, 3, 4) or not video.size:
            raise BadClip(name, f"a tensor {stored.shape}: 1, 3 or 4 channels")
        return np.broadcast_to(video[..., :3], (*video.shape[:3], 3))
    try:
        frames = [images.read_image(io.BytesIO(stored[i])) for i in numbers]
    except video_io.BadVideo as error:
        raise BadClip(name, error.reason) from error
    if len({frame.shape for frame in frames}) > 1:
        raise BadClip(name, "its frames differ in size")
    return np.stack(frames)
