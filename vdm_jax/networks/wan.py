"""The video transformer of Wan 2.1 (arXiv:2503.20314, section 4.2).

Every token of a video reads all others, with rotary positions of any size, and then the
text. Its levels are those of `inputs.vector`, one for the video or one for each frame.
Parameters have the shapes of diffusers' WanTransformer3DModel.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.errors import UserError
from vdm_jax.networks import backends
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import (
    conv_3d,
    dense,
    depth_to_space,
    param_dtype,
    zeros_init,
)
from vdm_jax.networks.parts import REMAT_POLICIES
from vdm_jax.networks.positions import apply_rope, rope_angles, rope_splits
from vdm_jax.networks.spec import transformer_spec
from vdm_jax.partition import constrain
from vdm_jax.settings.declaration import setting

TOKEN_AXES = ("batch", "frames", "height", "channel")  # of [b, f, tokens, width]


@dataclasses.dataclass(frozen=True)
class WanSpec:
    """Sizes of a transformer with the settings of a network section of kind "wan".

    The defaults are those of Wan 2.1 with 1.3 billion parameters.
    """

    out_channels: int = 16
    kind: str = setting("wan", "the transformer of Wan 2.1", choices=("wan",))
    patch_size: int = setting(2, "height and width of a token in latents", 1, 64)
    num_layers: int = setting(30, "blocks", 1, 1000)
    num_heads: int = setting(12, "heads of every attention", 1, 2**16)
    head_dim: int = setting(128, "width of a head, even and 6 or more", 6, 2**16)
    mlp_width: int = setting(8960, "of the hidden layer", 1, 2**20)
    cross_norm: bool = setting(True, "a layer norm before the text is read")
    text_length: int = setting(512, "tokens that a text is padded to by zeros", 1, 8192)
    epsilon: float = setting(1e-6, "of all norms", 1e-12, 1)
    attention_backend: str = setting(
        "auto",
        "who computes attention; auto chooses by device and shape",
        choices="networks.backends.BACKENDS",
    )
    remat: str = setting(
        "none",
        "recompute activations to save memory; dots keeps products",
        choices="networks.parts.REMAT_POLICIES",
    )
    dtype: str = setting("float32", "of products", choices=("float32", "bfloat16"))

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_dim


def norm(x: jax.Array, spec: WanSpec, name: str, affine: bool = False) -> jax.Array:
    """Apply a layer norm and return float32 or wider."""
    layer = nn.LayerNorm(
        spec.epsilon, use_scale=affine, use_bias=affine, use_fast_variance=False,
        param_dtype=param_dtype(x), name=name,
    )  # fmt: skip
    return layer(x.astype(param_dtype(x)))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Return x (1 + scale) + shift; each [b, f or 1, tokens or 1, width]."""
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention whose queries and keys have an RMS norm over all heads."""

    spec: WanSpec

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array, angles: jax.Array | None = None
    ) -> jax.Array:
        """x [b, f, n, width], tokens [b, g, m, width] -> like x; all tokens are read.

        angles: [f, n, head_dim / 2] of x, which is `tokens` then, by its positions.
        """
        spec, b = self.spec, len(x)
        dtypes = {"dtype": x.dtype, "param_dtype": param_dtype(x)}

        def heads(y: jax.Array, name: str, normalised: bool = True) -> jax.Array:
            y = dense(y, spec.width, name)
            if normalised:
                y = nn.RMSNorm(spec.epsilon, name=f"{name}_norm", **dtypes)(y)
            y = y.reshape(*y.shape[:-1], spec.num_heads, spec.head_dim)
            if normalised and angles is not None:
                y = apply_rope(y, angles)
            return y.reshape(b, 1, -1, *y.shape[3:])  # one sequence for all frames

        q, k, v = heads(x, "q"), heads(tokens, "k"), heads(tokens, "v", False)
        y = backends.over_pixels(q, k, v, backend=spec.attention_backend)
        return dense(y.reshape(x.shape), spec.width, "out")


class Block(nn.Module):
    """Self-attention, attention to the text, and an MLP with the tanh GELU.

    The first and the last are modulated by the noise level (adaLN, arXiv:2212.09748)
    through one product for all blocks and a table of each block's own. Norms, sums and
    gates are float32 or wider.
    """

    spec: WanSpec

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, levels: jax.Array, angles: jax.Array
    ) -> jax.Array:
        """Return [b, f, n, width], like x.

        text [b, 1, l, width]; levels [b, 1 or f, 6, width]; angles as in `Attention`.
        """
        spec, wide = self.spec, param_dtype(x)
        table = scale_shift_table(6, spec.width, wide, self)
        each = jnp.split(table + levels.astype(wide), 6, axis=2)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = each
        y = modulate(norm(x, spec, "self_norm"), shift_a, scale_a).astype(x.dtype)
        y = Attention(spec, name="self_attention")(y, y, angles)
        x = constrain((x + y * gate_a).astype(x.dtype), TOKEN_AXES)
        y = norm(x, spec, "cross_norm", True).astype(x.dtype) if spec.cross_norm else x
        x = x + Attention(spec, name="cross_attention")(y, text)
        y = modulate(norm(x, spec, "mlp_norm"), shift_m, scale_m).astype(x.dtype)
        h = nn.gelu(dense(y, spec.mlp_width, "mlp_in"), approximate=True)
        y = dense(h, spec.width, "mlp_out").astype(wide)
        return constrain((x + y * gate_m).astype(x.dtype), TOKEN_AXES)


def scale_shift_table(rows: int, width: int, dtype: Any, module: nn.Module):
    """Return a module's learned table [1, 1, rows, width]."""
    init = nn.initializers.normal(width**-0.5)
    return module.param("scale_shift_table", init, (1, rows, width), dtype)[None]


class Wan(nn.Module):
    """The transformer; its output is exactly 0 at initialisation."""

    spec: WanSpec

    @nn.compact
    def __call__(self, z: jax.Array, inputs: Inputs, train: bool = False) -> jax.Array:
        """z [b, f, h, w, c] -> [b, f, h, w, spec.out_channels] in float32 or wider.

        Height and width are multiples of the patch. The vector has spec.width features
        of each level. Tokens that are masked are zeros, which are read as all are.
        """
        spec, p = self.spec, self.spec.patch_size
        wide = param_dtype(z)
        vector, text = self._vector(inputs), self._text(inputs)
        if inputs.concat is not None:
            z = jnp.concatenate([z, inputs.concat.astype(z.dtype)], axis=-1)
        z = z.astype(jnp.bfloat16 if spec.dtype == "bfloat16" else wide)
        b, f, h, w = z.shape[0], z.shape[1], z.shape[2] // p, z.shape[3] // p
        x = conv_3d(z, spec.width, "patch", (1, p, p), strides=(1, p, p))
        x = constrain(x.reshape(b, f, h * w, spec.width), TOKEN_AXES)
        angles = rope_angles((f, h, w), rope_splits(spec.head_dim))
        angles = angles.reshape(f, h * w, -1)
        text = dense(text.astype(z.dtype), spec.width, "text_in")
        text = dense(nn.gelu(text, approximate=True), spec.width, "text_out")
        levels = dense(nn.swish(vector), 6 * spec.width, "levels")
        levels = levels.reshape(b, -1, 6, spec.width)
        block = Block
        if spec.remat != "none":
            block = nn.remat(Block, policy=REMAT_POLICIES[spec.remat])
        for i in range(spec.num_layers):
            x = block(spec, name=f"block_{i}")(x, text, levels, angles)
        table = scale_shift_table(2, spec.width, wide, self)
        shift, scale = jnp.split(table + vector[:, :, None], 2, axis=2)
        x = modulate(norm(x, spec, "norm_out"), shift, scale).astype(z.dtype)
        features = p * p * spec.out_channels
        x = dense(x, features, "head", kernel_init=zeros_init)
        return depth_to_space(x.reshape(b, f, h, w, features), p).astype(wide)

    def _vector(self, inputs: Inputs) -> jax.Array:
        """Return the features of the levels, [b, 1 or f, width]."""
        if inputs.frame_mask is not None:
            raise ValueError("kind 'wan' has no independent images in a video")
        if (vector := inputs.vector) is None:
            raise ValueError("kind 'wan' reads inputs.vector, which is None")
        return vector[:, None] if vector.ndim == 2 else vector

    def _text(self, inputs: Inputs) -> jax.Array:
        """Return embeddings [b, 1, text_length, d] with zeros for padding."""
        tokens, mask = inputs.tokens, inputs.token_mask
        if tokens is None or tokens.ndim != 3:
            raise ValueError("kind 'wan' reads inputs.tokens [b, l, d]")
        if mask is not None:
            tokens = jnp.where(mask[..., None], tokens, 0)
        more = self.spec.text_length - tokens.shape[1]
        if more < 0:
            raise UserError(
                f"texts of {tokens.shape[1]} tokens: network.text_length="
                f"{self.spec.text_length} at most"
            )
        return jnp.pad(tokens, ((0, 0), (0, more), (0, 0)))[:, None]


def from_config(
    section: dict[str, Any], channels: int, sizes: Sequence[tuple[int, int]]
) -> Wan:
    """Return the transformer of a config's network section, see `networks.NETWORKS`."""
    spec = transformer_spec(WanSpec, section, "wan", channels, sizes)
    if spec.head_dim % 2:
        raise UserError(f"config.network.head_dim={spec.head_dim}: an even number")
    return Wan(spec)
