"""From raw conditions and keep masks to the conditioning inputs of a network.

A raw condition is data (labels as integers) with a keep mask per example. Dropping a
condition for classifier-free guidance flips its mask, so the pytree never changes and
nothing recompiles. A dropped condition adds 0, as in VDM (section 3).

Labels, texts and their keep masks are [b, ...], one per video. In joint training they
are [b, 1 + k, ...]: one for the video, then one for each of the k independent images
behind its frames.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import dense, noise_level_embedding

Cond = dict[str, Any]
NUM_FREQUENCIES = 8  # in the embedding of a guidance weight


def frame_index_embedding(frames: int, dim: int, dtype) -> jax.Array:
    """Sinusoidal features of a frame's index in its clip, [f, dim]."""
    half = dim // 2
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=dtype) / (half - 1))
    angle = jnp.arange(frames, dtype=dtype)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def guidance_embedding(weight: jax.Array, low: float, high: float) -> jax.Array:
    """Fourier features of guidance weights in low..high: [b] -> [b, 2 NUM_FREQUENCIES].

    sin and cos of 1 to NUM_FREQUENCIES quarter turns over the range. They are smooth,
    so a network generalises to weights between those of training.
    """
    turns = jnp.arange(1, NUM_FREQUENCIES + 1, dtype=weight.dtype) * (jnp.pi / 2)
    angle = ((weight - low) / (high - low))[:, None] * turns[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class LabelEncoder(nn.Module):
    """Sum over attributes of the embedding of each value; 0 if unknown or dropped.

    labels: int [..., attributes], -1 for unknown. keep: bool [...]. -> [..., dim]
    """

    cardinalities: tuple[int, ...]
    dim: int

    @nn.compact
    def __call__(self, labels: jax.Array, keep: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)  # float64 where x64 is enabled
        total = jnp.zeros((*labels.shape[:-1], self.dim), dtype)
        for i, size in enumerate(self.cardinalities):
            table = nn.Embed(
                size,
                self.dim,
                param_dtype=dtype,
                embedding_init=nn.initializers.normal(1.0),
                name=f"attribute_{i}",
            )
            value = labels[..., i]
            known = (keep & (value >= 0))[..., None]
            total += jnp.where(known, table(jnp.maximum(value, 0)), 0)
        return total


class TextPooling(nn.Module):
    """Attention pooling of token embeddings into one vector (VDM, section 4.3).

    tokens: [..., l, d]; mask: bool [..., l]; keep: bool [...]. -> [..., dim], 0 if
    dropped
    """

    dim: int

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, keep: jax.Array):
        tokens = nn.LayerNorm(param_dtype=tokens.dtype, name="norm")(tokens)
        score = dense(tokens, 1, "score")[..., 0]
        # An empty text has no token: its weights are 0, not NaN.
        weight = nn.softmax(jnp.where(mask, score, jnp.finfo(score.dtype).min)) * mask
        value = dense(tokens, self.dim, "value")
        pooled = jnp.einsum("...l,...ld->...d", weight, value)
        return jnp.where(keep[..., None], pooled, 0)


def broadcast_to_frames(per_clip: jax.Array, frames: int) -> jax.Array:
    """[b, 1 + k, d], for the video and k images, -> [b, frames, d], for every frame."""
    images = per_clip.shape[1] - 1
    video = jnp.repeat(per_clip[:, :1], frames - images, axis=1)
    return jnp.concatenate([video, per_clip[:, 1:]], axis=1)


class ConditioningEncoder(nn.Module):
    """Encoder of the noise level and all conditions into `Inputs`.

    Embeddings of width dim are summed and pass an MLP of mlp_layers layers.

    cardinalities: number of values of each label attribute, () for none.
    frame_index: embed the index of each frame. Without it the network knows relative
    time only, as in VDM, and can be applied to more frames than in training.
    text: token embeddings, pooled into the vector (VDM, section 4.3) and passed to
    cross-attention (Saharia et al. 2022, "Imagen", section 2.4).
    low_resolution: a video of lower resolution, concatenated with z, and the noise
    level of its augmentation (Imagen Video, section 2.5).
    guidance_weight_range: lowest and highest guidance weight w = s - 1 of a guided student
    (Meng et al. 2022, section 3.1), () for none. The kernel of this embedding starts at
    0, so that the student starts equal to its teacher.
    """

    dim: int
    mlp_layers: int
    cardinalities: tuple[int, ...] = ()
    frame_index: bool = False
    text: bool = False
    low_resolution: bool = False
    guidance_weight_range: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, logsnr: jax.Array, frames: int, cond: Cond) -> Inputs:
        """logsnr: [b] or [b, f]. -> Inputs with vector [b, dim] or [b, f, dim]."""
        vector = dense(noise_level_embedding(logsnr, self.dim), self.dim, "noise_level")

        def add(vector: jax.Array, emb: jax.Array) -> jax.Array:
            """Add an embedding [b, d] or, with independent images, [b, 1 + k, d]."""
            if emb.ndim == 3:
                emb = broadcast_to_frames(emb, frames)
            if vector.ndim == emb.ndim:
                return vector + emb
            return vector[:, None] + emb if vector.ndim == 2 else vector + emb[:, None]

        if self.cardinalities:
            encode = LabelEncoder(self.cardinalities, self.dim, name="label")
            vector = add(vector, encode(cond["label"], cond["keep"]["label"]))
        if self.text:
            pool = TextPooling(self.dim, name="text")
            pooled = pool(cond["text"], cond["text_mask"], cond["keep"]["text"])
            vector = add(vector, pooled)
        if self.low_resolution:
            features = noise_level_embedding(cond["low_res_logsnr"], self.dim)
            vector = add(vector, dense(features, self.dim, "low_resolution"))
        if self.guidance_weight_range:
            features = guidance_embedding(cond["guidance"], *self.guidance_weight_range)
            zero = nn.initializers.zeros_init()
            emb = dense(features, self.dim, "guidance_weight", kernel_init=zero)
            vector = add(vector, emb)
        frame_mask = cond.get("frame_mask")
        if self.frame_index:
            features = frame_index_embedding(frames, self.dim, vector.dtype)
            emb = dense(features, self.dim, "frame_index")[None]
            if frame_mask is not None:  # an independent image has no frame index
                emb = jnp.where(frame_mask[..., None], emb, 0)
            if vector.ndim == 2:
                vector = vector[:, None]
            emb = jnp.broadcast_to(emb, (vector.shape[0], *emb.shape[1:]))
            vector = jnp.broadcast_to(vector, emb.shape) + emb
        for i in range(self.mlp_layers):
            vector = dense(nn.swish(vector), self.dim, f"mlp_{i}")
        token_mask = None
        if self.text:  # all tokens of a dropped text are masked: only a null is left
            token_mask = cond["text_mask"] & cond["keep"]["text"][..., None]
        return Inputs(
            vector=vector,
            tokens=cond.get("text"),
            token_mask=token_mask,
            concat=cond.get("low_res"),
            frame_mask=frame_mask,
        )
