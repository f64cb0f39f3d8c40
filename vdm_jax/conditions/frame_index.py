"""The index of each frame in its clip."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vdm_jax.conditions.base import Cond, Condition, Contribution
from vdm_jax.networks.layers import dense


@dataclasses.dataclass(frozen=True)
class FrameIndex(Condition):
    """Needs no data: the index counts from 0, and an independent image has none.

    Without it a network knows relative time only, as in VDM, and can be applied to more
    frames than in training.
    """

    in_batch: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Any) -> "FrameIndex | None":
        """Return the condition where a config asks for it."""
        return cls() if config.conditioning.frame_index_embedding else None

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """No arrays."""
        return {}

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """A projection of sinusoidal features."""
        features = frame_index_embedding(frames, dim, jnp.result_type(float))
        emb = dense(features, dim, name)[None]
        if (frame_mask := cond.get("frame_mask")) is not None:
            emb = jnp.where(frame_mask[..., None], emb, 0)
        return Contribution(emb)


def frame_index_embedding(frames: int, dim: int, dtype) -> jax.Array:
    """Sinusoidal features of a frame's index in its clip, [f, dim]."""
    half = dim // 2
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=dtype) / (half - 1))
    angle = jnp.arange(frames, dtype=dtype)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
