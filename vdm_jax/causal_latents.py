"""Videos to latents and back by a causal autoencoder, a latent at a time.

    autoencoder = causal_latents.read_config(Path("Wan2.1-T2V-1.3B-Diffusers/vae"))
    params = causal_latents.read_params(autoencoder, folder)
    z = autoencoder.encode(params, video)     # inside of a jit, too

The first frame is the first latent, and every further latent is of the next frames. A
loop runs over them and carries what the next ones read of those before, so nothing but
the result grows with the length of a video.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.errors import UserError
from vdm_jax.latents import draw
from vdm_jax.networks.wan_autoencoder import WanAutoencoder, WanAutoencoderSpec, check
from vdm_jax.pretrained import safetensors_io, sd_pipeline, sd_unet, wan_vae


@dataclasses.dataclass(frozen=True)
class CausalAutoencoder:
    """A network, and mean and standard deviation of its latents by their channels.

    dtype: of the activations; z and videos are float32 or wider.
    """

    network: WanAutoencoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "float32"

    def normalize(self, latent: jax.Array, inverse: bool = False) -> jax.Array:
        """Return z = (latent - mean) / std, [..., k]; with `inverse` the latent of z.

        All that is diffused, given as a condition or decoded passes here.
        """
        shape = (1,) * (latent.ndim - 1) + (-1,)
        mean, std = (
            jnp.asarray(values, latent.dtype).reshape(shape)
            for values in (self.mean, self.std)
        )
        return latent * std + mean if inverse else (latent - mean) / std

    def encode(self, params: Any, video: jax.Array, key: Any = None) -> jax.Array:
        """Video [b, 1 + 4 n, h, w, c] in [-1, 1] -> z [b, 1 + n, h', w', k].

        key: of the draw from the posterior; None for its mean.

        Raises:
          UserError: frames, height or width that it cannot encode.
        """
        return draw(self.moments(params, video), key)

    def moments(self, params: Any, video: jax.Array) -> jax.Array:
        """Return mean and deviation of z of a video, [b, 1 + n, h', w', 2 k].

        Arguments and errors are those of `encode`.
        """
        spec = self.network.spec
        check(spec, *video.shape[1:4])
        posterior = self._in_chunks(params, "encode", video, spec.frame_factor)
        deviation = jnp.exp(0.5 * posterior.log_variance)
        std = jnp.asarray(self.std, deviation.dtype).reshape(1, 1, 1, 1, -1)
        return jnp.concatenate([self.normalize(posterior.mean), deviation / std], -1)

    def decode(self, params: Any, z: jax.Array) -> jax.Array:
        """Return the video [b, 1 + 4 n, h, w, c] of z, around [-1, 1]."""
        return self._in_chunks(params, "decode", self.normalize(z, inverse=True), 1)

    def _in_chunks(self, params: Any, method: str, x: jax.Array, size: int) -> Any:
        """Call a method for the first frame of x, then for `size` frames at a time."""

        def call(state: Any, chunk: jax.Array, first: bool) -> tuple[Any, Any]:
            y, state = self.network.apply(
                {"params": params, **state}, chunk, first, method=method,
                mutable=["cache"],
            )  # fmt: skip
            return state, y

        # Float64 in tests stays float64.
        x = x.astype(self.dtype) if x.dtype == jnp.float32 else x
        state, start = call({}, x[:, :1], True)
        later = x[:, 1:]
        if not later.shape[1]:
            return start
        later = later.reshape(len(x), -1, size, *x.shape[2:])
        _, parts = jax.lax.scan(
            lambda state, chunk: call(state, chunk, False),
            state, jnp.moveaxis(later, 1, 0),
        )  # fmt: skip

        def join(start: jax.Array, parts: jax.Array) -> jax.Array:
            rest = jnp.moveaxis(parts, 0, 1)  # [b, chunks, frames of each, ...]
            rest = rest.reshape(len(start), -1, *start.shape[2:])
            return jnp.concatenate([start, rest], axis=1)

        return jax.tree.map(join, start, parts)


def read_config(folder: Path, dtype: str = "float32") -> CausalAutoencoder:
    """Return the autoencoder of a folder of diffusers' AutoencoderKLWan.

    Raises:
      UserError: a file is missing or invalid, or it is another kind of autoencoder.
    """
    if sd_pipeline.is_pipeline(folder):
        raise UserError(f"{folder} is a whole pipeline: give its {folder / 'vae'}")
    config = sd_unet.read_config(folder, wan_vae.CLASS)
    try:
        fields = wan_vae.fields(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    network = WanAutoencoder(WanAutoencoderSpec(**fields["spec"]))
    return CausalAutoencoder(network, fields["mean"], fields["std"], dtype)


def read_params(autoencoder: CausalAutoencoder, folder: Path, variant: str = "") -> Any:
    """Return the parameters in a folder, in float32.

    variant: suffix of the files that are preferred, as "fp16".

    Raises:
      UserError: a file is missing or damaged, or of another network.
    """
    paths = safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS, variant)
    names = wan_vae.names(dataclasses.asdict(autoencoder.network.spec))
    like = param_shapes(autoencoder)
    return safetensors_io.read_by_names(paths, like, names, jnp.float32)


def param_shapes(autoencoder: CausalAutoencoder) -> Any:
    """Return the shapes of its parameters, in float32."""
    network, spec = autoencoder.network, autoencoder.network.spec
    shape = 1, 1 + spec.frame_factor, spec.factor, spec.factor, spec.in_channels
    video = jax.ShapeDtypeStruct(shape, "f4")
    return jax.eval_shape(network.init, jax.random.key(0), video)["params"]
