"""Encode the clips of a data set once, to train from their latents.

``python -m vdm_jax.data latents --config=FILE --autoencoder=DIR --out=DIR`` writes
shards of mean and deviation of z, captions and labels. The same command continues after
a stop. Training then reads them by --config.data.path=DIR.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from vdm_jax import agreement, data, runtime, settings
from vdm_jax import codec as codecs
from vdm_jax.codec import Latents
from vdm_jax.data import check, check_latents, mixed_sizes, pipeline, stored_latents
from vdm_jax.data.source import Source
from vdm_jax.data.stored_latents import CLIP_FIELDS, DTYPES, MANIFEST, PARTS, Format
from vdm_jax.errors import UserError
from vdm_jax.files import atomic_write, make_folder, user_path, write_json

MAX_CLIPS = 2**30  # of a part; more are an infinite set
MIN_HELD_OUT = 64  # clips, those of the validation loss
PIXELS, MAX_BATCH = 1 << 19, 64  # encoded at once: 8 frames of 256x256; clips
# A stop loses less than a shard. Every shard is an open file of each reader.
SHARD_BYTES, SHARD_CLIPS, MAX_SHARDS = 256 << 20, 4096, 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``latents``, but for those of the config."""
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]",
        help="config of train.py, with the data set; --config.a.b=value too",
    )  # fmt: skip
    parser.add_argument(
        "--autoencoder", type=runtime.path_type,
        help="folder of the autoencoder (default: config.codec.path)",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=runtime.path_type, help="folder for the latents"
    )
    parser.add_argument(
        "--num_clips", type=int, default=0,
        help="clips of the training part; more than it has are drawn again (default: "
        "each once)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float16", choices=DTYPES)


def run(config: Any, flags: argparse.Namespace) -> str:
    """Write the latents of a config's data set; return the text to print.

    With config.mixed_sizes they are those of each of its sizes, in a folder of its own.

    Raises:
      UserError: the config or the folders are wrong, or they do not fit what the folder
        holds already; a clip's z is not finite.
    """
    check_config(config, flags.autoencoder)
    if "mixed_sizes" not in config:
        return _run(config, flags)
    texts = []
    for row in config.mixed_sizes.rows:
        out = mixed_sizes.latents_folder(flags.out, row)
        own = argparse.Namespace(**{**vars(flags), "out": out})
        texts.append(_run(mixed_sizes.at_size(config, row), own))
    return "\n".join(texts)


def _run(config: Any, flags: argparse.Namespace) -> str:
    """Write the latents of clips of one size; as `run`."""
    codec = codecs.from_config(config)
    assert isinstance(codec, Latents)
    video = config.video
    shape = video.frames, video.height, video.width, video.channels
    z_shape = codec.z_shape(shape)
    source = data.open_source(config)
    manifest = make_manifest(config, codec, source, z_shape, flags)
    out = make_folder(flags.out)
    start(out, manifest)
    writer = Writer(config, codec, source, out, manifest)
    seconds = writer.write()
    manifest["complete"] = True
    write_json(out / MANIFEST, manifest | {"digest": stored_latents.digest(manifest)})
    return describe(out, seconds, writer.encoded)


def check_config(config: Any, autoencoder: Path | None) -> None:
    """Complete and check a config. Raises UserError."""
    if config is None:
        raise UserError("--config=FILE: the config of train.py that has the data set")
    missing = {"video", "data", "codec"} - set(config)
    if missing or "stage" in config:
        raise UserError(
            "--config: a config of train.py, and of no stage of a cascade: a stage is "
            "trained on videos"
        )
    config.unlock()
    if autoencoder is not None:
        config.codec.update(kind="autoencoder", path=str(autoencoder))
    settings.check_config(config, settings.TRAINING)
    if config.codec.kind != "autoencoder":
        raise UserError("--autoencoder=DIR: the autoencoder that encodes the clips")
    if "mixed_sizes" in config:  # of the latents that are written now
        mixed_sizes.check(config)
        config.data.latents_dir = ""
    for section, name in (("data", "path"), ("data", "cache_dir"), ("codec", "path")):
        if text := config[section][name]:
            path = user_path(text, f"config.{section}.{name}")
            config[section][name] = str(path)
    if stored_latents.is_stored(config.data.path) or config.data.latents_dir:
        raise UserError(
            f"config.data.path={config.data.path}, latents_dir="
            f"{config.data.latents_dir!r}: latents are made of the data set, not of "
            "latents"
        )


def make_manifest(
    config: Any, codec: Latents, source: Source, z_shape: tuple, flags: Any
) -> dict[str, Any]:
    """Return the content of latents.json, but for its digest.

    Raises:
      UserError: the data set is infinite and the number of clips is not given.
    """
    parts = [source.split(held_out) for held_out in (False, True)]
    clips = flags.num_clips or len(parts[0])
    if not 0 < clips <= MAX_CLIPS:
        raise UserError(
            f"{source.name}: --num_clips=N, from 1 to {MAX_CLIPS}: how many clips of "
            f"the training part to encode, which has {len(parts[0]):,}"
        )
    held_out = min(len(parts[1]), max(MIN_HELD_OUT, clips // 10))
    path = config.data.path
    path = str(Path(path).absolute()) if path and Path(path).exists() else path
    video = config.video
    manifest = {
        "version": stored_latents.VERSION,
        "autoencoder": codec.fingerprint(),
        "codec_path": str(Path(codec.path).absolute()),
        "dtype": flags.dtype,
        "z_shape": list(z_shape),
        "video": [video.frames, video.height, video.width, video.channels],
        "data": {name: config.data[name] for name in CLIP_FIELDS},
        "seed": config.seed,
        "identity": {
            part: pipeline.identity(each)
            for part, each in zip(PARTS, parts, strict=True)
        },
        "path": path,
        "label_vocabulary": [list(names) for names in source.label_vocabulary],
        "clips": dict(zip(PARTS, (clips, held_out), strict=True)),
    }
    each = clips_per_shard(manifest, clips)
    return manifest | {"clips_per_shard": each, "complete": False}


def clips_per_shard(manifest: dict[str, Any], clips: int) -> int:
    """Return the clips of a shard, a multiple of a batch, for so many clips."""
    each = min(SHARD_CLIPS, SHARD_BYTES // Format(manifest).latent_bytes)
    each = max(each, -(-clips // MAX_SHARDS), 1)
    return each + -each % clips_per_batch(manifest)


def clips_per_batch(manifest: dict[str, Any]) -> int:
    """Return the number of clips that are loaded and encoded together."""
    frames, height, width, _ = manifest["video"]
    return min(MAX_BATCH, max(1, PIXELS // (frames * height * width)))


def start(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a new folder, or compare it with that of an older one.

    Raises:
      UserError: the folder has latents of something else, or other files.
    """
    if not stored_latents.is_stored(str(out)):
        if any(out.iterdir()):
            raise UserError(f"{out} has other files: give a new folder as --out")
        write_json(
            out / MANIFEST, manifest | {"digest": stored_latents.digest(manifest)}
        )
        return
    stored = stored_latents.read_manifest(out)
    before, now = (
        dict(agreement.flatten(stored_latents.without_paths(each)))
        for each in (stored, manifest)
    )
    for name, a, b in agreement.differences(before, now):
        raise UserError(
            f"{out} was started with another {name}, {a!r:.60} and not {b!r:.60}: give "
            "that, or another --out"
        )


class Writer:
    """Writes the shards that are missing.

    Attributes:
      encoded: number of clips that were encoded.
    """

    def __init__(
        self, config: Any, codec: Latents, source: Source, out: Path, manifest: dict
    ):
        self._config, self._source = config, source
        self._out, self._manifest = out, manifest
        self._format = Format(manifest)
        self._batch = clips_per_batch(manifest)
        frames, height, width, _ = manifest["video"]
        most = max(1, PIXELS // (height * width))
        self._codec = codec.with_chunk(min(self._batch * frames, most))
        self.encoded, self._seconds = 0, 0.0

    def write(self) -> float:
        """Write all parts; return the seconds that the encoder took."""
        self._params = self._codec.load_params()
        total = sum(self._manifest["clips"].values())
        with tqdm(total=total, unit="clip", desc="encoding", disable=None) as bar:
            for part in PARTS:
                self._write_part(part, bar)
        return self._seconds

    def _write_part(self, part: str, bar: Any) -> None:
        clips = self._manifest["clips"][part]
        each = self._manifest["clips_per_shard"]
        source = self._source.split(part == PARTS[1])
        if not clips:
            return
        batches = pipeline.clip_batches(self._config, source, self._batch)
        with contextlib.closing(batches):
            for i, name in enumerate(stored_latents.shard_names(self._manifest, part)):
                first, path = i * each, self._out / name
                number = min(each, clips - first)
                if stored_latents.shard_damage(path, number):
                    if batches.get_state()["batches"] * self._batch != first:
                        batches.set_state({"batches": first // self._batch})
                    with atomic_write(path, overwrite=True) as temporary:
                        self._write_shard(temporary, batches, number, bar)
                else:
                    bar.update(number)
                    bar.unpause()

    def _write_shard(self, path: Path, batches: Any, number: int, bar: Any) -> None:
        # Records are read one by one, and floats do not compress.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        with contextlib.closing(writer):
            while number:
                done = min(number, self._batch)
                batch = {name: array[:done] for name, array in next(batches).items()}
                for record in self._encode(batch):
                    writer.write(self._format.to_bytes(record))
                number -= done
                self.encoded += done
                bar.update(done)

    def _encode(self, batch: pipeline.Batch) -> Iterator[stored_latents.Record]:
        """Yield the records of a batch."""
        started = time.perf_counter()
        videos = batch["video"].astype(np.float32) / 127.5 - 1
        latents = self._codec.moments_on_host(videos, self._params)
        self._seconds += time.perf_counter() - started
        for i, moments in enumerate(latents):
            label = batch["label"][i] if "label" in batch else np.zeros(0, np.int32)
            yield stored_latents.Record(moments, label, str(batch["caption"][i]))


def describe(out: Path, seconds: float, encoded: int) -> str:
    """Return what a folder has, and the statistics of z, as text."""
    text = check.as_text(check_latents.facts(out, data.STATS_CLIPS))
    each = f"encoder: {seconds / encoded:.3g} s a clip" if encoded else "nothing to do"
    return f"{text}\n{each} -> {out}"
