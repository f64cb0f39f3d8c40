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
from vdm_jax.data.tfds_files import corrupt_file_error, proto, read_message
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


def read_layout(directory: Path) -> ExampleLayout:
    """Return the layout of the records of a data set, from its features.json."""
    layout = ExampleLayout()
    message = read_message(directory / "features.json", proto.feature_pb2.Feature())
    _scan(message, layout)
    return layout


def _scan(feature: Any, layout: ExampleLayout, path: str = "", repeated: bool = False):
    """Add a feature to the layout. repeated: whether it is inside a sequence."""
    content, name = feature.WhichOneof("content"), path.rpartition("/")[2]
    if content == "features_dict":
        for key, value in sorted(feature.features_dict.features.items()):
            _scan(value, layout, f"{path}/{key}".lstrip("/"), repeated)
    elif content == "sequence":
        _scan(feature.sequence.feature, layout, path, True)
    elif content == "video" or (content == "image" and repeated):
        layout.videos[path] = VideoStorage("images")
    elif content == "class_label" and not repeated:
        layout.labels[path] = feature.class_label.num_classes
    elif content == "tensor" and not repeated:
        shape = tuple(feature.tensor.shape.dimensions)
        dtype, encoding = feature.tensor.dtype, feature.tensor.encoding
        if len(shape) == 4 and dtype == "uint8":
            layout.videos[path] = VideoStorage("tensor", shape, encoding)
        elif not shape and dtype == "string" and name in VIDEO_NAMES:
            layout.videos[path] = VideoStorage("file")
    elif content == "text" and name in CAPTION_NAMES:
        layout.captions.append(path)
    elif content == "text" and name in VIDEO_NAMES and not repeated:
        layout.videos[path] = VideoStorage("file")


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
    raise UserError here.
    """
    if not 0 < count <= MAX_LABEL_VALUES:
        raise UserError(
            f"{directory / 'features.json'}: {path} has {count} values: from 1 to "
            f"{MAX_LABEL_VALUES}"
        )
    file = directory / f"{path.replace('/', '-')}.labels.txt"
    if not file.exists():
        return tuple(map(str, range(count)))
    try:
        files.check_regular(file)
        rows = [row.strip() for row in files.read_text(file).split("\n")]
        names = tuple(filter(None, rows))
        if not len(names) == len(set(names)) == count:
            raise files.CorruptFile(
                f"{len(set(names))} different names in {len(names)} lines, "
                f"features.json says {count}"
            )
    except (OSError, files.CorruptFile) as error:
        raise corrupt_file_error(file, error) from error
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
