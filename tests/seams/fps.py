"""A scalar condition: the rate at which a clip was recorded."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Condition, Contribution, per_frame
from vdm_jax.networks.layers import dense


@dataclasses.dataclass(frozen=True)
class Fps(Condition):
    """Frames per second, fps [n]; dropped it contributes 0."""

    dropout: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> "Fps | None":
        """Return the condition where the config has the section."""
        return cls(**config.fps) if "fps" in config else None

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """A rate that is never read."""
        return {"fps": np.ones(n, jnp.result_type(float))}

    def embed(self, name, cond: Cond, frames: int, dim: int) -> Contribution:
        """A projection of waves of the rate's logarithm."""
        phase = jnp.multiply.outer(jnp.log(cond["fps"]), jnp.arange(1.0, 5.0))
        waves = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
        emb = jnp.where(cond["keep"][name][..., None], dense(waves, dim, name), 0)
        return Contribution(per_frame(emb, frames))
