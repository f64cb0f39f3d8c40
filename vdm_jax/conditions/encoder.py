"""What a network is told, from raw conditions and keep masks to its `Inputs`.

A raw condition enters as data (labels as integers) beside a keep mask per example.
Dropping one, for classifier-free guidance, flips its mask: the pytree never changes
and nothing recompiles. VDM uses a zero null embedding (section 3).

Labels and texts are of the video, [b, ...], or in joint training [b, 1 + k, ...], of
the video and then of each of the k independent images behind its frames; so are their
keep masks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.layers import dense, noise_features

Cond = dict[str, Any]
WAVES = 8  # of the features of a guidance weight


def frame_features(frames: int, width: int, dtype) -> jax.Array:
    """Sinusoidal features of a frame's place in its clip, [f, width]."""
    half = width // 2
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=dtype) / (half - 1))
    angle = jnp.arange(frames, dtype=dtype)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def weight_features(weight: jax.Array, low: float, high: float) -> jax.Array:
    """Fourier features of guidance weights, [b] -> [b, 2 WAVES].

    sin and cos of 1 to WAVES quarter turns over the range: smooth, so that the weights
    between those seen are known too.
    """
    turns = jnp.arange(1, WAVES + 1, dtype=weight.dtype) * (jnp.pi / 2)
    angle = ((weight - low) / (high - low))[:, None] * turns[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class LabelEncoder(nn.Module):
    """One embedding a value for each attribute, summed; unknown or dropped ones are 0.

    labels: int [..., attributes], -1 for unknown. keep: bool [...]. -> [..., width]
    """

    cardinalities: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, labels: jax.Array, keep: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)  # float64 where that is switched on
        total = jnp.zeros((*labels.shape[:-1], self.width), dtype)
        for i, size in enumerate(self.cardinalities):
            table = nn.Embed(
                size,
                self.width,
                param_dtype=dtype,
                embedding_init=nn.initializers.normal(1.0),
                name=f"attribute_{i}",
            )
            value = labels[..., i]
            known = (keep & (value >= 0))[..., None]
            total += jnp.where(known, table(jnp.maximum(value, 0)), 0)
        return total


class TextPooling(nn.Module):
    """Token embeddings to one vector by attention pooling (VDM, section 4.3).

    tokens: [..., l, d]; mask: bool [..., l]; keep: bool [...]. -> [..., width], 0 if
    dropped
    """

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, keep: jax.Array):
        tokens = nn.LayerNorm(param_dtype=tokens.dtype)(tokens)
        score = dense(tokens, 1, "score")[..., 0]
        # An empty text has no token to look at: its weights are 0, not NaN.
        weight = nn.softmax(jnp.where(mask, score, jnp.finfo(score.dtype).min)) * mask
        value = dense(tokens, self.width, "value")
        pooled = jnp.einsum("...l,...ld->...d", weight, value)
        return jnp.where(keep[..., None], pooled, 0)


def of_frames(told: jax.Array, frames: int) -> jax.Array:
    """[b, 1 + k, d], of the video and of k images -> [b, frames, d], of every frame."""
    images = told.shape[1] - 1
    video = jnp.repeat(told[:, :1], frames - images, axis=1)
    return jnp.concatenate([video, told[:, 1:]], axis=1)


class Conditioner(nn.Module):
    """Noise level, labels and frame position, mixed by a small MLP into one vector.

    cardinalities: number of values of each label attribute, () for none.
    frame_position: tell each frame its place in the clip; without it the network sees
    relative time only, as in VDM, and an example longer than in training is fair.
    guidance: the range of weights that a guided student is told (Meng et al. 2022,
    section 3.1), () for none. Its branch starts at zero: the student as its teacher.
    text: token embeddings, pooled into the vector (VDM, section 4.3) and handed to the
    parts that read tokens (Saharia et al. 2022, "Imagen", section 2.4). low: a video of
    lower resolution, beside z, and how noisy it is (Imagen Video, section 2.5).
    """

    width: int
    layers: int
    cardinalities: tuple[int, ...] = ()
    frame_position: bool = False
    text: bool = False
    low: bool = False
    guidance: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, logsnr: jax.Array, frames: int, cond: Cond) -> Inputs:
        """logsnr: [b] or [b, f]. -> Inputs with vector [b, width] or [b, f, width]."""
        vector = dense(noise_features(logsnr, self.width), self.width, "noise")

        def add(vector: jax.Array, told: jax.Array) -> jax.Array:
            """Of every example, [b, d], or also of its images, [b, 1 + k, d]."""
            if told.ndim == 3:
                told = of_frames(told, frames)
            if vector.ndim == told.ndim:
                return vector + told
            return (
                vector[:, None] + told if vector.ndim == 2 else vector + told[:, None]
            )

        if self.cardinalities:
            encode = LabelEncoder(self.cardinalities, self.width, name="label")
            vector = add(vector, encode(cond["label"], cond["keep"]["label"]))
        if self.text:
            pool = TextPooling(self.width, name="text")
            pooled = pool(cond["text"], cond["text_mask"], cond["keep"]["text"])
            vector = add(vector, pooled)
        if self.low:
            features = noise_features(cond["low_logsnr"], self.width)
            vector = add(vector, dense(features, self.width, "low"))
        if self.guidance:
            features = weight_features(cond["guidance"], *self.guidance)
            zero = nn.initializers.zeros_init()
            told = dense(features, self.width, "guidance", kernel_init=zero)
            vector = add(vector, told)
        frame_mask = cond.get("frame_mask")
        if self.frame_position:
            features = frame_features(frames, self.width, vector.dtype)
            place = dense(features, self.width, "frame")[None]
            if frame_mask is not None:  # an independent image has no place in time
                place = jnp.where(frame_mask[..., None], place, 0)
            if vector.ndim == 2:
                vector = vector[:, None]
            batch = vector.shape[0]
            place = jnp.broadcast_to(place, (batch, *place.shape[1:]))
            vector = jnp.broadcast_to(vector, place.shape) + place
        for i in range(self.layers):
            vector = dense(nn.swish(vector), self.width, f"mlp_{i}")
        token_mask = None
        if self.text:  # of a dropped one all are masked: the parts' own null is left
            token_mask = cond["text_mask"] & cond["keep"]["text"][..., None]
        return Inputs(
            vector=vector,
            tokens=cond.get("text"),
            token_mask=token_mask,
            concat=cond.get("low"),
            frame_mask=frame_mask,
        )
