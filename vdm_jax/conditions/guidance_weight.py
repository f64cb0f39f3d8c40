"""The guidance weight of a student that was distilled with guidance."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Condition, Contribution
from vdm_jax.networks.layers import dense, zeros_init

NUM_FREQUENCIES = 8  # in the embedding of a guidance weight


@dataclasses.dataclass(frozen=True)
class GuidanceWeight(Condition):
    """VDM's weight w = s - 1 of a guidance scale s, guidance [b].

    Such a student needs no second branch (Meng et al. 2022, section 3.1). The embedding
    was defined for w: published students keep their parameters. Its kernel starts at 0,
    so that the student starts equal to its teacher.

    scales: the lowest and the highest scale s that it was trained with.
    """

    scales: tuple[float, float]
    in_batch: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Any) -> "GuidanceWeight | None":
        """Return the condition of a config, None for any other model."""
        scales = tuple(config.conditioning.guidance_range)
        return cls(scales) if scales else None  # type: ignore[arg-type]

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """No guidance."""
        return {"guidance": np.zeros(n, jnp.result_type(float))}

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """A projection of Fourier features."""
        low, high = (scale - 1 for scale in self.scales)
        features = guidance_embedding(cond["guidance"], low, high)
        return Contribution(dense(features, dim, name, kernel_init=zeros_init))


def guidance_embedding(weight: jax.Array, low: float, high: float) -> jax.Array:
    """Fourier features of guidance weights in low..high: [b] -> [b, 2 NUM_FREQUENCIES].

    sin and cos of 1 to NUM_FREQUENCIES quarter turns over the range. They are smooth,
    so a network generalises to weights between those of training.
    """
    turns = jnp.arange(1, NUM_FREQUENCIES + 1, dtype=weight.dtype) * (jnp.pi / 2)
    angle = ((weight - low) / (high - low))[:, None] * turns[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
