"""Items of a data set that TFDS has prepared, to be prepared at the size of training.

Their tasks import this package, and so JAX, but start no device.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vdm_jax import video_io
from vdm_jax.clip_shards.items import ClipFormat, Item
from vdm_jax.clip_shards.records import Record
from vdm_jax.data import tfds, tfds_files
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.prepare_items import Items
from vdm_jax.data.source import BadClip
from vdm_jax.data.tfds_files import ExampleLayout
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo, VideoInfo


def is_data_set(source: Path) -> bool:
    """Return whether SRC is a folder of TFDS, or the name of one in its data_dir."""
    if source.exists():
        return (source / "dataset_info.json").is_file()
    match = tfds_files.NAME.fullmatch(str(source))
    return match is not None and (tfds_files.data_dir_path("") / match[1]).is_dir()


def tfds_items(config: Any, source: Path) -> Items:
    """Return the items of SRC, one a record. Captions and labels are in the records.

    Raises:
      UserError: the data set cannot be read, has labels of several attributes, or the
        config selects frames by time, which its records do not have.
    """
    directory, chosen = source, ""
    if not source.exists():
        directory, chosen = tfds_files.find_dataset(str(source), "")
    shape = ClipShape.from_config(config)
    opened = tfds.open_directory(
        directory, chosen, config.data.validation_fraction, shape
    )
    if len(opened.label_vocabulary) > 1:
        raise UserError(f"{source} has several labels: one can be prepared")
    train, validation = (
        [
            Item(name, path, member=(number, 1))
            for name, path, number in map(part.place, range(len(part.index)))
        ]
        for part in opened.parts
    )
    num_bytes = sum(opened.sizes) + sum(opened.split(True).sizes)
    vocabulary = opened.label_vocabulary[0] if opened.label_vocabulary else ()
    reader = functools.partial(TfdsReader, opened.layout, opened.path)
    return Items(
        opened.name, train, validation, [], num_bytes, opened.flip, vocabulary,
        reader=reader,
    )  # fmt: skip


class TfdsReader:
    """Reads the clips of records; as `clip_shards.items.ItemReader`.

    layout, path: of an example, and of its video.
    """

    def __init__(self, layout: ExampleLayout, path: str, shape: ClipFormat, _: str):
        self._layout, self._path, self._shape = layout, path, shape
        self._open = functools.lru_cache(8)(lambda file: ArrayRecordDataSource([file]))

    def records(self, item: Item) -> Iterator[Record | BadVideo]:
        """Yield the records of an item. Raises BadVideo if it has no clip."""
        assert item.member
        try:
            record = self._open(item.path)[item.member[0]]
            stored, captions, label = tfds_files.read_example(
                item.name, record, self._layout, self._path
            )
            every = np.arange(len(stored))
            info = VideoInfo(item.path, "frames", "frames", 1, 1, 0, every, None, every)
            selection = self._shape.selection
            for low, high in selection.start_ranges(info):
                numbers = selection.range_numbers(info, low, high)
                video = tfds_files.select_frames(item.name, stored, numbers)
                video = video_io.resize(video, self._shape.size)
                if self._shape.center_crop:
                    video = video_io.crop(video, self._shape.size)
                if video_io.is_flat(video):
                    frames = f"frames {numbers[0]} to {numbers[-1]}"
                    yield BadVideo(item.name, f"constant: {frames}")
                    continue
                yield Record(
                    video, np.zeros(0), numbers, tuple(captions), item.name,
                    label[0] if label else -1, (),
                )  # fmt: skip
        except BadClip as error:
            raise BadVideo(item.name, error.reason) from error
        except RuntimeError as error:  # from the array_record reader
            raise BadVideo(item.name, str(error).split(";")[0]) from error
