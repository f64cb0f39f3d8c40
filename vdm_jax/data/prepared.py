"""A prepared data set: clips at the size of training, in shards that TFDS reads too.

    DIR/prepared.json                               what was prepared, and how
    DIR/clips-train.array_record-00000-of-00016     the clips; validation: the held-out
    DIR/order-train.npy                             the records in the order of the data
    DIR/dataset_info.json, features.json            the data set for TFDS

`python -m vdm_jax.data prepare` writes the folder. config.data.source="tfds" with
config.data.path=DIR reads it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import tfds_files
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.source import BadClip, Clip
from vdm_jax.data.tfds_files import ExampleLayout, Records
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, read_json

MANIFEST, VERSION = "prepared.json", 1
SPLITS = ("train", "validation")
# Fields of config.data that decide which frames of the files are in the clips.
CLIP_FIELDS = ("stride", "target_fps", "validation_fraction")
MAX_DRAWS = 4  # starts tried before a record with blank segments counts as unusable
RULE = "the same command of python -m vdm_jax.data prepare completes it"


def is_prepared(path: str) -> bool:
    """Return whether a path is a prepared folder."""
    return bool(path) and (Path(path) / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of prepared.json.

    Raises:
      UserError: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        version = manifest["version"]
    except (CorruptFile, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): prepare another --out"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version}, this program reads {VERSION}")
    return manifest


def order_file(split: str) -> str:
    """Return the name of the file of the order of a split."""
    return f"order-{split}.npy"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The source; data/source.py defines the protocol.

    Clips are drawn from a record as those of data/folder.py from the range of a file.
    If training uses every frame of the files, they are the same.
    """

    name: str
    names: tuple[str, ...]
    label_vocabulary: tuple[tuple[str, ...], ...]
    flip: bool
    layout: ExampleLayout
    parts: tuple[Records, Records]
    shape: ClipShape
    held_out: bool = False

    sizes = ()

    def __len__(self) -> int:
        return len(self.parts[self.held_out].index)

    def split(self, held_out: bool) -> "Prepared":
        """Return the held-out part or the training part."""
        return dataclasses.replace(self, held_out=held_out)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load a clip with a random start in a record. Raises BadClip."""
        name, record = self.parts[self.held_out].read(index)
        stored, captions, label = tfds_files.read_example(
            name, record, self.layout, "video"
        )
        starts = len(stored) - self.shape.frames + 1
        for _ in range(MAX_DRAWS):
            if frames == 1:
                numbers = rng.integers(len(stored), size=1)
            else:
                numbers = int(rng.integers(starts)) + np.arange(frames)
            video = tfds_files.select_frames(name, stored, numbers)
            video = video_io.resize(video, self.shape.size)
            video = self.shape.crop_frames(video, rng)
            if not video_io.is_flat(video):
                return self.shape.make_clip(video, captions, label, rng)
        raise BadClip(name, f"constant: {MAX_DRAWS} random clips are blank")


def open_prepared(config: Any) -> Prepared:
    """Open the prepared folder config.data.path.

    Raises:
      UserError: it is incomplete or damaged, or has clips of another size, of fewer
        frames, or other frames than the config trains on.
    """
    folder = Path(config.data.path)
    manifest = read_manifest(folder)
    if "result" not in manifest:
        raise UserError(f"{folder} is not complete: {RULE}")
    check_fits(config, manifest)
    layout = ExampleLayout()
    try:
        layout.add(read_json(folder / "features.json"))
        info = read_json(folder / "dataset_info.json")
        parts = tuple(_open_part(folder, info, split) for split in SPLITS)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{folder} is damaged ({reason:.300}): {RULE}") from error
    vocabulary = tuple(manifest["label_vocabulary"])
    return Prepared(
        name=f"prepared {manifest['source']}",
        names=(manifest["result"]["content"],),
        label_vocabulary=(vocabulary,) if vocabulary else (),
        flip=manifest["flip"],
        layout=layout,
        parts=(parts[0], parts[1]),
        shape=ClipShape.from_config(config),
    )


def _open_part(folder: Path, info: dict, name: str) -> Records:
    """Return the records of a split, in the order of the data set."""
    splits = {split["name"]: split for split in info["splits"]}
    empty = {"name": name, "shardLengths": []}
    records = tfds_files.open_split(info, splits.get(name, empty), folder)
    order = np.load(folder / order_file(name), mmap_mode="r")
    return dataclasses.replace(records, index=order)


def check_fits(config: Any, manifest: dict[str, Any]) -> None:
    """Raise UserError unless the clips of a config are in a folder."""
    folder, video, data = config.data.path, config.video, config.data
    frames, *size = manifest["video"]
    short_side = manifest["short_side"]
    wanted = [video.height, video.width]
    if wanted != size if not short_side else min(wanted) > short_side:
        height, width = size
        have = f"{short_side} or less" if short_side else f"{height}x{width}"
        raise UserError(
            f"{folder} has clips of {have}, not of config.video's {video.height}x"
            f"{video.width}: set that, or prepare another folder"
        )
    if video.frames > frames:
        raise UserError(
            f"{folder} has clips of {frames} frames, fewer than config.video.frames="
            f"{video.frames}: set that, or prepare another folder"
        )
    for name in CLIP_FIELDS:
        if data[name] != manifest["data"][name]:
            raise UserError(
                f"{folder} was prepared with data.{name}={manifest['data'][name]!r}, "
                f"not config.data.{name}={data[name]!r}: set it to that"
            )
    is_cropped = manifest["data"]["crop"] == "center" and not short_side
    if data.crop == "random" and is_cropped:
        raise UserError(
            f"{folder} has clips cropped to their center: set config.data.crop=center, "
            "or prepare another folder"
        )
