"""Features of a data set prepared by TensorFlow Datasets: what its records hold.

TFDS imports the class that features.json names for each feature. Nothing that a data
set names is imported here: a class of TFDS follows from the content of the feature.
"""

import dataclasses
from pathlib import Path
from typing import Any

from tensorflow_datasets.core import features
from tensorflow_datasets.core import proto as untyped
from tensorflow_datasets.core.features.feature import convert_feature_name_to_filename

from vdm_jax import files
from vdm_jax.data.tfds_files import corrupt_file_error
from vdm_jax.errors import UserError

CAPTION_NAMES = ("caption", "captions", "text", "description")
VIDEO_NAMES = ("video", "mp4", "clip")  # bytes of these names are video files
MAX_LABEL_VALUES = 100_000  # features.json may declare any number
# How a feature is stored -> the class that reads it. Custom features have a JSON of
# their own ("json_feature") or one of these contents.
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

FeaturePath = tuple[str, ...]  # keys of nested dictionaries

proto: Any = untyped  # its classes are made from .proto files at import
Feature: Any = proto.feature_pb2.Feature


@dataclasses.dataclass
class ExampleLayout:
    """The paths of videos, labels and captions in an example.

    videos: path -> how the video is stored: "images", "tensor" or "file".
    """

    videos: dict[FeaturePath, str] = dataclasses.field(default_factory=dict)
    labels: list[FeaturePath] = dataclasses.field(default_factory=list)
    captions: list[FeaturePath] = dataclasses.field(default_factory=list)


def supported_feature(feature: Any) -> Any:
    """Return the readable part of a feature, with classes of TFDS; None if none is.

    features.json names a class for every feature, and TFDS would import its module from
    wherever Python finds it. The storage of a feature follows from its content alone:
    the class is taken from CLASSES, and the name is ignored. Features with other
    contents are left out.
    """
    content = feature.WhichOneof("content")
    if content == "video":
        return _as_image_sequence(feature.video)
    if content not in CLASSES:
        return None
    ours = Feature(python_class_name=_class_name(CLASSES[content]))
    if content == "features_dict":
        inner = feature.features_dict.features
        supported = {key: supported_feature(value) for key, value in inner.items()}
        for key in sorted(k for k, value in supported.items() if value is not None):
            ours.features_dict.features[key].CopyFrom(supported[key])
        return ours
    getattr(ours, content).CopyFrom(getattr(feature, content))
    if content == "sequence":
        inner = supported_feature(feature.sequence.feature)
        if inner is None:
            return None
        ours.sequence.feature.CopyFrom(inner)
    return ours


def _as_image_sequence(video: Any) -> Any:
    """Return Sequence(Image) for Video: the same bytes, readable without tensorflow."""
    length, *shape = video.shape.dimensions or (-1, -1, -1, 3)
    image = Feature(
        python_class_name=_class_name(features.Image),
        image=proto.feature_pb2.ImageFeature(
            shape=proto.feature_pb2.Shape(dimensions=shape),
            dtype=video.dtype or "uint8",
            encoding_format=video.encoding_format or "png",
        ),
    )
    sequence = proto.feature_pb2.Sequence(feature=image, length=length)
    return Feature(python_class_name=_class_name(features.Sequence), sequence=sequence)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def scan_features(feature: Any, layout: ExampleLayout, path=(), repeated=False):
    """Fill in the layout from a result of `supported_feature`.

    repeated: whether the feature is inside a sequence.
    """
    content = feature.WhichOneof("content")
    name = path[-1] if path else ""
    if content == "features_dict":
        for key, value in sorted(feature.features_dict.features.items()):
            scan_features(value, layout, (*path, key), repeated)
    elif content == "sequence":
        scan_features(feature.sequence.feature, layout, path, True)
    elif content == "image" and repeated:
        layout.videos[path] = "images"
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


def get_path(tree: Any, path: FeaturePath) -> Any:
    """Return the value at a path of nested dictionaries, of values or of features."""
    for key in path:
        tree = getattr(tree, "feature", tree)[key]
    return tree


def choose_video(layout: ExampleLayout, feature: str, directory: Path) -> FeaturePath:
    """Return the path of the video feature. Raises UserError if it is ambiguous.

    feature: the path that the user chose, or "".
    """
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
            f"Tensor of 4 dimensions, or bytes named {', '.join(VIDEO_NAMES)}"
        )
    raise UserError(
        f"{directory}: {feature or 'which feature'} is the video? add one of "
        f"{', '.join('@' + name for name in paths)} to config.data.tfds_name"
    )


def label_names(feature: Any, path: FeaturePath, directory: Path) -> tuple[str, ...]:
    """Return the names of a label's values from its file, or numbers without a file.

    TFDS ignores a file that it cannot read, and accepts one of another length. Both
    raise UserError here.
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
    file = directory / f"{stem}.labels.txt"
    if not file.exists():
        return tuple(map(str, range(count)))
    try:
        if not file.is_file():
            raise files.CorruptFile("not a regular file")
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


def make_connector(feature: Any, directory: Path) -> features.FeatureConnector:
    """Return the object with which TFDS parses examples."""
    file = directory / "features.json"
    try:
        connector = features.FeatureConnector.from_proto(feature)
        connector.get_serialized_info()
    except ImportError as error:  # TFDS needs tensorflow for dtypes unknown to numpy
        reason = files.CorruptFile(
            "a feature without a dtype, or with one unknown to numpy"
        )
        raise corrupt_file_error(file, reason) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} describes no features: {error}") from error
    return connector
