"""Records of clips: their features in TensorFlow Datasets, and the encodings of frames.

A record is a `tf.train.Example` that `tfds.features.FeaturesDict` serialises, so that
every reader of TFDS reads it:

    video            the frames, in one of ENCODINGS
    times            float64 [n], seconds since the start of the file; none of a picture
    frame_numbers    int64 [n], of the frames in the file
    captions         texts
    file             name of the file within the data set
    label            index of its name, -1 = unknown; only if there are labels
    scores/NAME      float32, NaN = unknown; only if there are scores
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

F = tfds.features
messages: Any = tf_example_pb2  # its classes are made at import


class Record(NamedTuple):
    """One clip; video: uint8 [n, h, w, 3]. The others are features of this module."""

    video: np.ndarray
    times: np.ndarray
    frame_numbers: np.ndarray
    captions: tuple[str, ...]
    file: str
    label: int
    scores: tuple[float, ...]


class Encoding(NamedTuple):
    """How the frames of a record are stored.

    Attributes:
      feature: () -> the feature of TFDS.
      encode: video uint8 [n, h, w, 3] -> the value of the feature.
      options: of ArrayRecordWriter. A group is a record, so that one is read alone.
    """

    feature: Callable[[], Any]
    encode: Callable[[np.ndarray], Any]
    options: str


def _raw_feature() -> Any:
    return F.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes")


def _jpeg_feature() -> Any:
    return F.Sequence(F.Image(shape=(None, None, 3), encoding_format="jpeg"))


def _jpeg(video: np.ndarray) -> list[io.BytesIO]:
    files = []
    for frame in video:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
        file.seek(0)
        files.append(file)
    return files


# perf/frame_encodings.json compares these and others.
ENCODINGS = {
    # zstd is the compression of the shard.
    "raw": Encoding(_raw_feature, lambda video: video, "group_size:1,zstd:1"),
    "jpeg": Encoding(_jpeg_feature, _jpeg, "group_size:1,uncompressed"),
}


class Format:
    """The features of the records of a data set.

    Args:
      encoding: a name of ENCODINGS.
      label_vocabulary: names of the values of the label; () for none.
      scores: names of the scores.
    """

    def __init__(
        self, encoding: str, label_vocabulary: Sequence[str], scores: Sequence[str]
    ):
        self.encoding = ENCODINGS[encoding]
        self._label_vocabulary, self._scores = label_vocabulary, scores
        features = {
            "video": self.encoding.feature(),
            "times": F.Tensor(shape=(None,), dtype=np.float64),
            "frame_numbers": F.Tensor(shape=(None,), dtype=np.int64),
            "captions": F.Sequence(F.Text()),
            "file": F.Text(),
        }
        if label_vocabulary:
            features["label"] = F.ClassLabel(names=list(label_vocabulary))
        if scores:
            features["scores"] = F.FeaturesDict(dict.fromkeys(scores, np.float32))
        self.features = F.FeaturesDict(features)

    def to_bytes(self, record: Record) -> bytes:
        """Return a record as it is stored."""
        example = record._asdict() | {"video": self.encoding.encode(record.video)}
        label, scores = example.pop("label"), example.pop("scores")
        if self._label_vocabulary:
            example["label"] = label
        if self._scores:
            example["scores"] = dict(zip(self._scores, scores, strict=True))
        stored = self.features.serialize_example(example)
        # The order of a map differs between processes, and a shard's bytes must not.
        return messages.Example.FromString(stored).SerializeToString(deterministic=True)
