"""A data set that TensorFlow Datasets has prepared, read without tensorflow.

features.json describes the records, and array_record files give random access to them.
`features.Video` cannot be constructed without tensorflow, but it is stored and read as
a sequence of images. Most data sets need tensorflow to be prepared, once, on any
machine:

    tfds build ucf101 --file_format=array_record --data_dir=DIR
"""

import dataclasses
import io
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.core import example_parser, features

from vdm_jax import files, video_io
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.source import BadClip, Clip, mentions_left_or_right
from vdm_jax.data.tfds_features import (
    ExampleLayout,
    Feature,
    FeaturePath,
    choose_video,
    get_path,
    label_names,
    make_connector,
    proto,
    scan_features,
    supported_feature,
)
from vdm_jax.data.tfds_files import (
    Records,
    find_dataset,
    read_message,
    read_splits,
    split_records,
)
from vdm_jax.errors import UserError
from vdm_jax.video_io import images
from vdm_jax.video_io.sandbox import SandboxedDecoder

# Raised by TFDS for a record that does not have the declared features.
RECORD_ERRORS = (
    AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError,
    DecodeError, zlib.error,
)  # fmt: skip


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
    path: FeaturePath
    parser: example_parser.ExampleParserNp
    features: features.FeatureConnector
    parts: tuple[Records, Records]
    shape: ClipShape
    decoder: SandboxedDecoder
    held_out: bool = False

    @property
    def flip(self) -> bool:
        """False if there are captions, or if a label mentions left or right."""
        values = " ".join(value for names in self.label_vocabulary for value in names)
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
        stored, texts, label = self._parse(name, record)

        def select(number: int) -> np.ndarray:
            span = (self.shape.frames - 1) * self.shape.stride + 1
            if number < span:
                raise BadClip(name, f"too short: {number} frames, a clip spans {span}")
            start = int(rng.integers(number - span + 1))
            clip = start + self.shape.stride * np.arange(self.shape.frames)
            return clip if frames > 1 else clip[[rng.integers(len(clip))]]

        try:
            video = self._read_frames(name, stored, select)
        except video_io.BadVideo as error:
            raise BadClip(name, error.reason) from error
        if video_io.is_flat(video):
            raise BadClip(name, "constant")
        size = self.shape.size
        crop_rng = rng if self.shape.crop == "random" else None
        video = video_io.crop(video_io.resize(video, size), size, crop_rng)
        if self.shape.channels == 1:
            video = video_io.to_gray(video)
        caption = texts[int(rng.integers(len(texts)))] if texts else ""
        clip = Clip(video=video, caption=caption)
        if self.label_vocabulary:
            clip["label"] = np.array(label, np.int32)
        return clip

    def _parse(self, name: str, record: bytes) -> tuple[Any, list[str], list[int]]:
        """Return the stored video, the captions and the label. Raises BadClip."""
        layout = self.layout
        try:
            example = self.parser.parse_example(record)
            stored = get_path(example, self.path)
            if layout.videos[self.path] == "tensor":
                stored = get_path(self.features, self.path).decode_example_np(stored)
            captions = (
                get_path(example, layout.captions[0]) if layout.captions else None
            )
            captions = [] if captions is None else captions
            texts = [text.decode() for text in np.atleast_1d(captions)]
            label = [int(get_path(example, path)) for path in layout.labels]
        except RECORD_ERRORS as error:
            text = str(error).splitlines()[:1] or [type(error).__name__]
            reason = f"does not match features.json: {text[0]}"
            raise BadClip(name, reason) from error
        if stored is None:
            raise BadClip(name, "contains no video")
        for text in texts:
            if reason := files.why_invalid_text(text):
                raise BadClip(name, f"a caption {reason}")
        for value, names in zip(label, self.label_vocabulary, strict=True):
            if not -1 <= value < len(names):
                raise BadClip(name, f"label {value} of {len(names)}")
        return stored, texts, label

    def _read_frames(
        self, name: str, stored: Any, select: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        """Return the frames of one clip, uint8 [f, h, w, 3], at their original size.

        select: number of frames of the video -> numbers of the clip's frames.
        """
        kind = self.layout.videos[self.path]
        if kind == "tensor":
            video = stored[select(len(stored))]
            if video.shape[-1] not in (1, 3, 4) or not video.size:
                raise BadClip(name, f"a tensor {stored.shape}: 1, 3 or 4 channels")
            return np.broadcast_to(video[..., :3], (*video.shape[:3], 3))
        if kind == "images":
            selected = [stored[i] for i in select(len(stored))]
            frames = [images.read_image(io.BytesIO(image)) for image in selected]
            if len({frame.shape for frame in frames}) > 1:
                raise BadClip(name, "its frames differ in size")
            return np.stack(frames)
        with tempfile.NamedTemporaryFile() as file:
            file.write(stored)
            file.flush()
            info = self.decoder.inspect(file.name)
            return self.decoder.read_frames(info, select(info.frames).tolist())


def open_tfds(config) -> Tfds:
    """Open the data set config.data.tfds_name in the folder config.data.path.

    Raises:
      UserError: not prepared, corrupt, in another file format, or without a video.
    """
    data = config.data
    shape = ClipShape.from_config(config)
    if shape.fps:
        raise UserError(
            "config.data.target_fps: examples of TFDS have no frame rate; set it to 0 "
            "and use config.data.stride"
        )
    directory, chosen = find_dataset(data.tfds_name, data.path)
    info = read_message(
        directory / "dataset_info.json", proto.dataset_info_pb2.DatasetInfo()
    )
    if info.file_format != "array_record":
        raise UserError(
            f"{directory} is in {info.file_format or 'tfrecord'} format, which needs "
            "tensorflow: prepare it again with tfds build --file_format=array_record"
        )
    declared = read_message(directory / "features.json", Feature())
    feature = supported_feature(declared) or Feature()
    layout = ExampleLayout()
    scan_features(feature, layout)
    path = choose_video(layout, chosen, directory)
    vocabulary = tuple(label_names(feature, p, directory) for p in layout.labels)
    connector = make_connector(feature, directory)
    infos = read_splits(info, directory)
    return Tfds(
        name=f"tfds {info.name} {info.config_name} {info.version}".replace("  ", " "),
        label_vocabulary=vocabulary,
        layout=layout,
        path=path,
        parser=example_parser.ExampleParserNp(connector.get_serialized_info()),
        features=connector,
        parts=split_records(infos, data.validation_fraction, directory),
        shape=shape,
        decoder=SandboxedDecoder(),
    )
