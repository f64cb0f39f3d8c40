"""Stored latents: the clips of a data set, encoded once by an autoencoder.

    DIR/latents.json                                what was encoded, and by what
    DIR/training-00000-of-00012.array_record        clips of the training part
    DIR/held-out-00000-of-00002.array_record        clips of the held-out part

A record is mean and deviation of z [frames, h', w', 2 k], then the label int32
[attributes], then the caption in UTF-8. `python -m vdm_jax.data latents` writes the
folder (`data.encode`); given as config.data.path it becomes config.data.latents_dir.
"""

import bisect
import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from vdm_jax import codec as codecs
from vdm_jax.data.source import BadClip, LatentClip
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, read_json

MANIFEST, VERSION = "latents.json", 1
PARTS = ("training", "held-out")
DTYPES = ("float16", "float32")
UNREADABLE = (LookupError, OSError, RuntimeError, ValueError)  # a file is corrupt
# Fields of config.data that decide which frames of the data set a clip has.
CLIP_FIELDS = (
    "source", "tfds_name", "stride", "target_fps", "flip", "held_out_combinations",
    "crop", "validation_fraction",
)  # fmt: skip
PLACES = ("path", "codec_path", "complete", "digest")
RULE = "write them again with python -m vdm_jax.data latents"


class Record(NamedTuple):
    """One stored clip; the fields are those of `LatentClip`."""

    latents: np.ndarray
    label: np.ndarray
    caption: str


class Format:
    """The records of a folder.

    manifest: the content of latents.json.
    """

    def __init__(self, manifest: dict[str, Any]):
        *size, channels = manifest["z_shape"]
        self.shape = (*size, 2 * channels)  # (frames, h', w', 2 k)
        self.dtype = np.dtype(manifest["dtype"])
        self.num_attributes = len(manifest["label_vocabulary"])
        self.latent_bytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def to_bytes(self, record: Record) -> bytes:
        """Return a record as it is stored. Raises UserError if float16 overflows."""
        with np.errstate(over="ignore"):
            values = record.latents.astype(self.dtype)
        if not np.isfinite(values).all():
            raise UserError(
                f"latents up to {abs(record.latents).max():.3g} overflow {self.dtype}: "
                "--dtype=float32"
            )
        label = np.asarray(record.label, np.int32).tobytes()
        return values.tobytes() + label + record.caption.encode()

    def from_bytes(self, stored: bytes) -> Record:
        """Return the record of bytes. Raises CorruptFile for others."""
        caption = self.latent_bytes + 4 * self.num_attributes
        if len(stored) < caption:
            raise CorruptFile(f"{len(stored)} bytes, fewer than {caption}")
        values = int(np.prod(self.shape))
        latents = np.frombuffer(stored, self.dtype, values).reshape(self.shape)
        label = np.frombuffer(stored[:caption], np.int32, offset=self.latent_bytes)
        return Record(latents, label, stored[caption:].decode())


def shard_names(manifest: dict[str, Any], part: str) -> list[str]:
    """Return the names of the shards of a part, in order."""
    clips, each = manifest["clips"][part], manifest["clips_per_shard"]
    number = -(-clips // each)
    return [f"{part}-{i:05}-of-{number:05}.array_record" for i in range(number)]


def is_stored(path: str) -> bool:
    """Return whether a path is a folder of stored latents."""
    return bool(path) and (Path(path) / MANIFEST).is_file()


def resolve_path(section: Any) -> None:
    """Set latents_dir of config.data to a path of latents, path to their data set."""
    if is_stored(section.path):
        section.latents_dir = section.path
        section.path = read_manifest(Path(section.path))["path"]


def digest(manifest: dict[str, Any]) -> str:
    """Return the sha256 of all other entries of a manifest."""
    others = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def without_paths(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what of a manifest says which clips there are, wherever they came from."""
    return {n: v for n, v in manifest.items() if n not in PLACES}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of latents.json.

    Raises:
      UserError: the file is missing, of another version, or not as it was written.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        version = manifest.get("version") if isinstance(manifest, dict) else None
        if isinstance(version, int) and version != VERSION:
            raise UserError(
                f"{path} is of version {version}, this program reads {VERSION}: {RULE}"
            )
        if version is None or manifest.get("digest") != digest(manifest):
            raise CorruptFile("changed after it was written")
    except CorruptFile as error:
        raise UserError(f"{path} is {error}: {RULE}") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): python -m vdm_jax.data latents "
            "writes it"
        ) from error
    return manifest


def read_complete_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of latents.json, as `read_manifest`, of a complete folder."""
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise UserError(
            f"{folder} is not complete: the command that wrote it continues it"
        )
    return manifest


class Shards:
    """The records of some shards, by number. It can be pickled for worker processes.

    Raises:
      UserError: a shard is missing, truncated or has another number of records.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], part: str):
        self.clips, each = manifest["clips"][part], manifest["clips_per_shard"]
        names = shard_names(manifest, part)
        self._paths = [folder / name for name in names]
        self._ends = [min((i + 1) * each, self.clips) for i in range(len(names))]
        for path, start, end in zip(
            self._paths, [0, *self._ends][:-1], self._ends, strict=True
        ):
            if reason := shard_damage(path, end - start):
                raise UserError(
                    f"{path} {reason}: {RULE}, which keeps the other shards"
                )
        self._records = (
            ArrayRecordDataSource(list(map(str, self._paths))) if names else None
        )

    def path(self, index: int) -> Path:
        """Return the shard of a record."""
        return self._paths[bisect.bisect_right(self._ends, index)]

    def __getitem__(self, index: int) -> bytes:
        """Return a record. Raises CorruptFile if its checksum is wrong."""
        assert self._records is not None
        try:
            return self._records[index]
        except UNREADABLE as error:
            raise CorruptFile(str(error).splitlines()[0]) from error


def shard_damage(path: Path, clips: int) -> str:
    """Return what is wrong with a shard of so many clips, "" for nothing."""
    if not path.is_file():
        return "is missing"
    try:
        number = len(ArrayRecordDataSource([str(path)]))
    except UNREADABLE:
        return "is not a whole shard"
    return "" if number == clips else f"has {number} clips, not {clips}"


class StoredLatents:
    """The source; data/source.py defines the protocol.

    Further attributes:
      dtype: of the stored arrays.
    """

    flip = True  # clips were mirrored before they were encoded

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self._format = Format(manifest)
        self._parts = [Shards(folder, manifest, part) for part in PARTS]
        self._shards = self._parts[0]
        self.dtype = self._format.dtype
        self.name = f"latents of {manifest['identity']['training']['source']}"
        self.names, self.sizes = (digest(without_paths(manifest)),), ()
        self.label_vocabulary = tuple(map(tuple, manifest["label_vocabulary"]))

    def __len__(self) -> int:
        return self._shards.clips

    def split(self, held_out: bool) -> "StoredLatents":
        """Return the held-out part or the training part."""
        part = copy.copy(self)
        part._shards = self._parts[held_out]
        return part

    def load(self, index: int, rng: np.random.Generator, frames: int) -> LatentClip:
        """Load consecutive frames of a clip. Raises BadClip for a damaged record."""
        try:
            record = self._format.from_bytes(self._shards[index])
        except (CorruptFile, UnicodeDecodeError) as error:
            name = f"clip {index} of {self._shards.path(index)}"
            raise BadClip(name, f"damaged ({error})") from error
        start = int(rng.integers(len(record.latents) - frames + 1))
        latents = record.latents[start : start + frames]
        clip = LatentClip(latents=latents, caption=record.caption)
        if len(record.label):
            clip["label"] = record.label
        return clip


def open_latents(config: Any) -> StoredLatents:
    """Open the folder config.data.latents_dir.

    Raises:
      UserError: it is incomplete or damaged, or does not fit the config: latents of
        another autoencoder, of videos of another size, or of other clips.
    """
    folder = Path(config.data.latents_dir)
    manifest = read_complete_manifest(folder)
    check_fits(config, manifest)
    return StoredLatents(folder, manifest)


def check_fits(config: Any, manifest: dict[str, Any]) -> None:
    """Raise UserError unless a config's clips and codec are those of a manifest."""
    folder, video = config.data.latents_dir, config.video
    frames, *size = manifest["video"]
    if [video.height, video.width, video.channels] != size or video.frames > frames:
        height, width, channels = size
        raise UserError(
            f"{folder} has latents of {frames} frames of {height}x{width}, {channels} "
            f"channels, not config.video's {video.frames} of {video.height}x"
            f"{video.width}, {video.channels}: set those"
        )
    for name in CLIP_FIELDS:
        if config.data[name] != manifest["data"][name]:
            raise UserError(
                f"{folder} has latents with data.{name}={manifest['data'][name]!r}, "
                f"not config.data.{name}={config.data[name]!r}: set it to that"
            )
    codec = codecs.from_config(config)
    if codec.fingerprint() != manifest["autoencoder"]:
        raise UserError(
            f"{folder} has latents of another autoencoder than that of "
            f"config.codec.kind={config.codec.kind!r}, path={config.codec.path!r}: "
            f"give {manifest['codec_path']}, or a copy of it"
        )


def statistics(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and mean square [k] of z drawn from moments [..., 2 k]."""
    mean, deviation = np.split(moments.astype(np.float64), 2, axis=-1)
    axes = tuple(range(mean.ndim - 1))
    return mean.mean(axes), (mean**2 + deviation**2).mean(axes)
