"""Videos to latents and back by a trained autoencoder, in chunks of frames.

    autoencoder, params = latents.load(Path("stable-diffusion-v1-5/vae"))
    z = autoencoder.encode(params, video)                       # inside of a jit, too
    for frames in autoencoder.stream_decode(params, z[0]): ...  # to the host

Frames are encoded one by one, so that nothing but the result grows with the length of
a video. Within a program a loop runs over chunks of frames. A stream calls one compiled
program for each chunk. Frames that are too large for that are encoded and
decoded in tiles.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import UserError, printable
from vdm_jax.networks import autoencoder
from vdm_jax.networks.autoencoder import AutoencoderKL, AutoencoderSpec
from vdm_jax.pretrained import config_json, name_maps, safetensors_io, sd_pipeline
from vdm_jax.pretrained.config_json import ConfigFile

SCALE = 0.18215  # of Stable Diffusion 1, whose config does not have it
TILE_OVERLAP = 0.25  # fraction of a tile
MAX_CHUNK, CHUNK_PIXELS = 8, 512 * 512
MAX_LEVELS, MAX_BLOCKS = 10, 20  # a config.json may declare any number

Frames = Any  # array [n, h, w, c]


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A network and the scale of its latents; parameters are arguments.

    z = (latent - shift) * scale has a variance near 1.

    dtype: of the activations; z and videos are float32 or wider.
    chunk: frames of each video that are in memory at a time; 0 for MAX_CHUNK, or fewer
      of large frames.
    tile: side in pixels of the squares in which a stream encodes and decodes larger
      frames; 0 for whole frames. Seams between tiles are blended, and norms have the
      statistics of a tile, so values differ from those of whole frames.
    """

    network: AutoencoderKL
    scale: float = SCALE
    shift: float = 0.0
    dtype: str = "float32"
    chunk: int = 0
    tile: int = 0

    def __post_init__(self):
        """Raise ValueError for a tile whose overlap is no whole number of latents."""
        if self.tile % self.tile_unit:
            raise ValueError(f"tile={self.tile} is no multiple of {self.tile_unit}")

    @property
    def tile_unit(self) -> int:
        """Return what a tile is a multiple of: its overlap is in whole latents."""
        return int(self.network.spec.factor / TILE_OVERLAP)

    def encode(self, params: Any, video: jax.Array, key: Any = None) -> jax.Array:
        """Video [b, f, h, w, c] in [-1, 1] -> z [b, f, h', w', k].

        key: of the draw from the posterior; None for its mean.

        Raises:
          UserError: the height or width is no multiple of the factor.
        """
        return draw(self.moments(params, video), key)

    def moments(self, params: Any, video: jax.Array) -> jax.Array:
        """Return mean and deviation of z of a video, [b, f, h', w', 2 k].

        Channels 0 .. k - 1 are the mean of the posterior, the others its standard
        deviation. Arguments and errors are those of `encode`.
        """
        autoencoder.check(self.network.spec, *video.shape[2:4])
        encode = functools.partial(self._apply, params, "encode")
        posterior = map_chunks(encode, video, self._chunk(*video.shape[2:4]))
        mean = (posterior.mean - self.shift) * self.scale
        deviation = jnp.exp(0.5 * posterior.log_variance) * self.scale
        return jnp.concatenate([mean, deviation], axis=-1)

    def decode(self, params: Any, z: jax.Array) -> jax.Array:
        """Return the video [b, f, h, w, c] of z, around [-1, 1]."""

        def decode(z):
            latent = z / self.scale + self.shift
            return self._apply(params, "decode", latent)

        return map_chunks(decode, z, self.chunk_of_z(z))

    def stream_encode(self, params: Any, frames: Frames) -> Iterator[np.ndarray]:
        """Yield the mean z of chunks of frames [n, h, w, c], in order.

        Raises:
          UserError: the height or width is no multiple of the factor, or a z is not
            finite.
        """
        return self._stream("encode", params, frames)

    def stream_moments(self, params: Any, frames: Frames) -> Iterator[np.ndarray]:
        """Yield `moments` of chunks of frames; errors are those of `stream_encode`."""
        return self._stream("moments", params, frames)

    def _stream(self, method: str, params: Any, frames: Frames) -> Iterator[np.ndarray]:
        autoencoder.check(self.network.spec, *frames.shape[1:3])
        encode = functools.partial(_run, method, self, params)
        encode = in_tiles(encode, self.tile, self.tile // self.network.spec.factor)
        return stream(encode, frames, self._chunk(*frames.shape[1:3]), "encoder")

    def stream_decode(self, params: Any, z: Frames) -> Iterator[np.ndarray]:
        """Yield chunks of frames, each [<= chunk, h, w, c], of z [n, h', w', k].

        Raises:
          UserError: frames are not finite; it names them.
        """
        decode = functools.partial(_run, "decode", self, params)
        decode = in_tiles(decode, self.tile // self.network.spec.factor, self.tile)
        return stream(decode, z, self.chunk_of_z(z), "decoder")

    def _chunk(self, height: int, width: int) -> int:
        """Return how many frames of a size in pixels are in memory at a time."""
        most = CHUNK_PIXELS // (height * width)
        return self.chunk or min(MAX_CHUNK, max(1, most))

    def chunk_of_z(self, z: Frames) -> int:
        """Return how many frames of z [..., h, w, k] are decoded at a time."""
        factor = self.network.spec.factor
        return self._chunk(z.shape[-3] * factor, z.shape[-2] * factor)

    def _apply(self, params: Any, method: str, x: jax.Array) -> Any:
        """Call a method of the network in the dtype of activations, or wider."""
        # Float64 in tests stays float64.
        narrow = x.dtype == jnp.float32
        x = x.astype(self.dtype) if narrow else x
        return self.network.apply({"params": params}, x, method=method)


def draw(moments: jax.Array, key: Any = None) -> jax.Array:
    """Return z [..., k] drawn from moments [..., 2 k]; their mean if key is None."""
    mean, deviation = jnp.split(moments, 2, axis=-1)
    if key is None:
        return mean
    return mean + deviation * jax.random.normal(key, mean.shape, mean.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(method: str, autoencoder: Autoencoder, params: Any, frames: jax.Array):
    """Encode or decode frames [n, ...] as one chunk."""
    whole = dataclasses.replace(autoencoder, chunk=len(frames))
    return getattr(whole, method)(params, frames[None])[0]


def map_chunks(fn: Callable, video: jax.Array, chunk: int) -> Any:
    """Return fn(video), computed for `chunk` frames of every video at a time.

    fn: [b, chunk, ...] -> a tree of arrays [b, chunk, ...]; a frame of its result
      depends on that frame alone. The last chunk overlaps the one before it, so that
      all have one shape and fn is compiled once.
    """
    frames = video.shape[1]
    if frames <= chunk:
        return fn(video)
    starts = jnp.minimum(jnp.arange(0, frames, chunk), frames - chunk)

    def run(i, results):  # writes into the results: no copy of a whole video
        part = fn(jax.lax.dynamic_slice_in_dim(video, starts[i], chunk, axis=1))
        write = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=starts[i], axis=1
        )
        return jax.tree.map(write, results, part)

    first = jax.eval_shape(fn, video[:, :chunk])
    results = jax.tree.map(
        lambda leaf: jnp.zeros((leaf.shape[0], frames, *leaf.shape[2:]), leaf.dtype),
        first,
    )
    return jax.lax.fori_loop(0, len(starts), run, results)


def stream(fn: Callable, frames: Frames, chunk: int, part: str) -> Iterator[np.ndarray]:
    """Yield fn of chunks of frames as host arrays; the next one is computed meanwhile.

    fn: called with `chunk` frames, or all if they are fewer; the last may be copies
      that fill up.
    part: its name, for messages.

    Raises:
      UserError: frames of the result are not finite; it names them.
    """
    n, pending = len(frames), None
    chunk = max(1, min(chunk, n))
    for start in (*range(0, n, chunk), n):
        before, pending = pending, None
        if start < n:
            index = np.minimum(np.arange(start, start + chunk), n - 1)
            pending = start, fn(frames[index])
        if before is not None:
            first, result = before[0], np.asarray(before[1])[: n - before[0]]
            check_finite(result, part, first, n)
            yield result


def check_finite(frames: np.ndarray, part: str, first: int = 0, total: int = 0) -> None:
    """Raise UserError for frames that are not finite; it names them.

    part: of the autoencoder. first, total: the number of frames before these and of
      all, which are these by default.
    """
    finite = np.isfinite(frames).reshape(len(frames), -1).all(1)
    if not finite.all():
        bad = ", ".join(map(str, first + np.flatnonzero(~finite)))
        raise UserError(
            f"the autoencoder's {part} gives values that are not finite in "
            f"frames {bad} of {total or len(frames)}: compute in float32, or check its "
            "input"
        )


def in_tiles(fn: Callable, size: int, size_out: int) -> Callable:
    """Return fn of frames in overlapping tiles, blended linearly where they overlap.

    fn: frames [n, h, w, c] -> [n, h', w', c'], with h' / h = size_out / size. It sees
      at most four shapes: of a tile, and of those cut at the bottom, the right or both.
    size, size_out: of a tile, which fn takes and returns; 0 for whole frames. Sizes and
      seams are those of diffusers.
    """

    def tiled(frames: Frames) -> jax.Array:
        if not size or max(frames.shape[1:3]) <= size:
            return fn(frames)
        step = int(size * (1 - TILE_OVERLAP))
        overlap = int(size_out * TILE_OVERLAP)
        kept, rows = size_out - overlap, []
        for y in range(0, frames.shape[1], step):
            row = []
            for x in range(0, frames.shape[2], step):
                tile = fn(frames[:, y : y + size, x : x + size])
                if rows:
                    tile = _blend(rows[-1][len(row)], tile, overlap, axis=1)
                if row:
                    tile = _blend(row[-1], tile, overlap, axis=2)
                row.append(tile)
            rows.append(row)
        return jnp.concatenate(
            [jnp.concatenate([t[:, :kept, :kept] for t in row], 2) for row in rows], 1
        )

    return tiled


def _blend(before: jax.Array, tile: jax.Array, overlap: int, axis: int) -> jax.Array:
    """Return a tile whose first values fade in from the last ones of the one before."""
    overlap = min(overlap, before.shape[axis], tile.shape[axis])
    shape = [1] * tile.ndim
    shape[axis] = overlap
    weight = jnp.arange(overlap, dtype=tile.dtype).reshape(shape) / overlap
    last = jax.lax.slice_in_dim(before, -overlap % before.shape[axis], None, axis=axis)
    first, rest = jnp.split(tile, [overlap], axis=axis)
    faded = last * (1 - weight) + first * weight
    return jnp.concatenate([faded, rest], axis=axis)


def load(
    folder: Path, variant: str = "", dtype: str = "float32"
) -> tuple[Autoencoder, Any]:
    """Return an AutoencoderKL in diffusers' format, and its parameters in float32.

    Args:
      folder: with config.json and diffusion_pytorch_model.safetensors or its shards.
      variant: suffix of the files that are preferred, as "fp16".
      dtype: of the activations. float32 is taken where the config says that half
        precision is not enough (force_upcast, which is true by default).

    Raises:
      UserError: a file is missing or invalid, or it is another kind of autoencoder.
    """
    autoencoder = read_config(folder, dtype)
    return autoencoder, read_params(autoencoder, folder, variant)


def read_config(folder: Path, dtype: str = "float32") -> Autoencoder:
    """Return the autoencoder of a folder; arguments and errors are those of `load`."""
    if sd_pipeline.is_pipeline(folder):
        raise UserError(f"{folder} is a whole pipeline: give its {folder / 'vae'}")
    config = config_json.read(folder / "config.json")
    scale = config.number("scaling_factor", SCALE, 1e-6, 1e6)
    shift = config.values.get("shift_factor")  # may be null
    shift = 0.0 if shift is None else config.number("shift_factor", 0.0, -1e6, 1e6)
    if config.one_of("force_upcast", (True, False)):
        dtype = "float32"
    return Autoencoder(AutoencoderKL(spec_from_config(config)), scale, shift, dtype)


def read_params(autoencoder: Autoencoder, folder: Path, variant: str = "") -> Any:
    """Return its parameters; arguments and errors are those of `load`.

    A line on stderr says if the scale of the latents is not in the config.
    """
    path = folder / "config.json"
    if "scaling_factor" not in config_json.read(path).values:
        reason = f"{path} has no scaling_factor: {SCALE} is used"
        print(printable(reason), file=sys.stderr)
    like = param_shapes(autoencoder)
    paths = safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS, variant)
    maps = name_maps.AUTOENCODER_KL, name_maps.AUTOENCODER_KL_WRITTEN
    return safetensors_io.read(paths, like, maps[0], jnp.float32, maps[1])


def param_shapes(autoencoder: Autoencoder) -> Any:
    """Return the shapes of its parameters, in float32."""
    network = autoencoder.network
    size = network.spec.factor
    frame = jax.ShapeDtypeStruct((1, 1, size, size, network.spec.in_channels), "f4")
    return jax.eval_shape(network.init, jax.random.key(0), frame)["params"]


def fingerprint(folder: Path) -> str:
    """Return the sha256 of what an autoencoder's z depend on: its config and tensors.

    Errors are those of `load`.
    """
    values = config_json.read(folder / "config.json").values
    # Names such as _name_or_path differ between copies.
    values = {name: v for name, v in values.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def spec_from_config(config: ConfigFile) -> AutoencoderSpec:
    """Return the sizes of diffusers' config. Raises UserError for another network."""
    config.values.setdefault("_class_name")  # which has no default
    config.one_of("_class_name", ("AutoencoderKL",))
    config.one_of("act_fn", ("silu",))
    channels = config.numbers("block_out_channels", (64,))
    if len(channels) > MAX_LEVELS:
        raise UserError(f"{config.path}: {len(channels)} levels, at most {MAX_LEVELS}")
    for key, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        if config.values.get(key, [block]) != [block] * len(channels):
            raise UserError(f"{config.path}: {key} must be {block}, one per level")
    groups = config.number("norm_num_groups", 32)
    if any(width % groups for width in channels):
        raise UserError(
            f"{config.path}: norm_num_groups={groups} does not divide "
            f"block_out_channels={list(channels)}"
        )
    inputs = config.number("in_channels", 3)
    if (outputs := config.number("out_channels", 3)) != inputs:
        raise UserError(f"{config.path}: out_channels={outputs}: in_channels={inputs}")
    for key in ("latents_mean", "latents_std"):
        config.one_of(key, (None,))
    flags = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    return AutoencoderSpec(
        inputs, outputs, config.number("latent_channels", 4), channels,
        config.number("layers_per_block", 1, most=MAX_BLOCKS), groups,
        *(config.one_of(key, (True, False)) for key in flags),
    )  # fmt: skip
