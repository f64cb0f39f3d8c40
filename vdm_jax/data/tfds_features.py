"""Features of a data set prepared by TensorFlow Datasets: what its records hold.

features.json names a class for every feature, and TFDS would import its module from
wherever Python finds it. How a feature is stored follows from its content alone: that
is read here, and nothing that a data set names is imported. A record is an `Example` of
TensorFlow: lists of numbers or bytes under the path of each feature.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from vdm_jax import files
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError

CAPTION_NAMES = ("caption", "captions", "text", "description")
VIDEO_NAMES = ("video", "mp4", "clip")  # bytes of these names are video files
MAX_LABEL_VALUES = 100_000  # features.json may declare any number

messages: Any = tf_example_pb2  # its classes are made at import


@dataclasses.dataclass(frozen=True)
class VideoStorage:
    """How a video is stored.

    kind: "images", "tensor" or "file". shape: of a tensor, -1 for any length.
    encoding: of a tensor: "bytes", "zlib", or none.
    """

    kind: str
    shape: tuple[int, ...] = ()
    encoding: str = ""


@dataclasses.dataclass
class ExampleLayout:
    """The paths of videos, labels and captions in an example: names joined by "/".

    labels: path -> number of values.
    """

    videos: dict[str, VideoStorage] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    captions: list[str] = dataclasses.field(default_factory=list)

    def add(self, feature: dict, path: str = "", repeated: bool = False) -> None:
        """Add a feature of features.json. repeated: whether it is inside a sequence.

        Features of other contents are left out.
        """
        name = path.rpartition("/")[2]
        if "featuresDict" in feature:
            for key, value in sorted(feature["featuresDict"]["features"].items()):
                self.add(value, f"{path}/{key}".lstrip("/"), repeated)
        elif "sequence" in feature:
            self.add(feature["sequence"]["feature"], path, True)
        elif "text" in feature and name in CAPTION_NAMES:
            self.captions.append(path)
        elif "video" in feature or ("image" in feature and repeated):
            self.videos[path] = VideoStorage("images")
        elif repeated:
            return
        elif "classLabel" in feature:
            self.labels[path] = int(feature["classLabel"]["numClasses"])
        elif "text" in feature and name in VIDEO_NAMES:
            self.videos[path] = VideoStorage("file")
        elif "tensor" in feature:
            tensor = feature["tensor"]
            shape = tuple(map(int, tensor["shape"].get("dimensions", ())))
            if len(shape) == 4 and tensor["dtype"] == "uint8":
                encoding = tensor.get("encoding", "")
                self.videos[path] = VideoStorage("tensor", shape, encoding)
            elif not shape and tensor["dtype"] == "string" and name in VIDEO_NAMES:
                self.videos[path] = VideoStorage("file")


def choose_video(layout: ExampleLayout, feature: str, directory: Path) -> str:
    """Return the path of the video feature. Raises UserError if it is ambiguous.

    feature: the path that the user chose, or "".
    """
    names = list(layout.videos)
    default = "video" if "video" in names else names[0] if len(names) == 1 else ""
    if (feature or default) in names:
        return feature or default
    if not names:
        raise UserError(
            f"{directory} has no video feature: Video, a sequence of Images, a uint8 "
            f"Tensor of 4 dimensions, or bytes named {', '.join(VIDEO_NAMES)}"
        )
    raise UserError(
        f"{directory}: {feature or 'which feature'} is the video? add one of "
        f"{', '.join('@' + name for name in names)} to config.data.tfds_name"
    )


def label_names(path: str, count: int, directory: Path) -> tuple[str, ...]:
    """Return the names of a label's values from its file, or numbers without a file.

    TFDS ignores a file that it cannot read, and accepts one of another length. Both
    raise an error here: OSError, CorruptFile.
    """
    file = directory / f"{path.replace('/', '-')}.labels.txt"
    if file.exists():
        names = tuple(filter(None, map(str.strip, files.read_text(file).split("\n"))))
    else:
        names = tuple(map(str, range(min(count, MAX_LABEL_VALUES))))
    if not len(names) == len(set(names)) == count > 0:
        found = f"{len(set(names))} different names in {len(names)} lines"
        raise files.CorruptFile(f"label {path} has {count} values, {file.name} {found}")
    return names


def read_example(
    name: str, record: bytes, layout: ExampleLayout, path: str
) -> tuple[Any, list[str], list[int]]:
    """Return the stored video, the captions and the label of a record.

    The video is a list of the bytes of images, a uint8 array, or the bytes of a file.

    Raises BadClip for a record that does not have the declared features.
    """
    label = []
    try:
        features = dict(messages.Example.FromString(record).features.feature)
        for key in layout.labels:
            (value,) = features[key].int64_list.value
            label.append(value)
        captions = [features[key].bytes_list.value for key in layout.captions[:1]]
        texts = [text.decode() for values in captions for text in values]
        storage = layout.videos[path]
        if storage.kind == "tensor":
            video = _decode_tensor(features, path, storage)
        elif storage.kind == "images":
            video = features[path].bytes_list.value
        else:
            (video,) = features[path].bytes_list.value
    except (ArithmeticError, DecodeError, LookupError, ValueError, zlib.error) as error:
        text = str(error).splitlines()[:1] or [type(error).__name__]
        raise BadClip(name, f"does not match features.json: {text[0]}") from error
    for text in texts:
        if reason := files.why_invalid_text(text):
            raise BadClip(name, f"a caption {reason}")
    return video, texts, label


def _decode_tensor(features: dict, path: str, storage: VideoStorage) -> np.ndarray:
    shape = storage.shape
    if shape.count(-1) > 1:  # stored with each record
        shape, path = features[f"{path}/shape"].int64_list.value, f"{path}/value"
    if storage.encoding not in ("bytes", "zlib"):
        return np.array(features[path].int64_list.value, np.uint8).reshape(shape)
    (content,) = features[path].bytes_list.value
    if storage.encoding == "zlib":
        content = zlib.decompress(content)
    return np.frombuffer(content, np.uint8).reshape(shape)
