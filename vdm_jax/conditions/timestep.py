"""The embedding of a discrete noise level, in place of its angle's."""

import dataclasses

import jax

from vdm_jax.diffusion.schedules import Discrete
from vdm_jax.networks.layers import timestep_embedding


@dataclasses.dataclass(frozen=True)
class TimestepEmbedding:
    """Sinusoidal features of the schedule's timestep: Stable Diffusion's embedding.

    It is `ConditioningEncoder.noise_embedding`. With one MLP layer the encoder is the
    original's time embedding: its width is four times that of the features.
    """

    schedule: Discrete

    def __call__(self, logsnr: jax.Array, dim: int) -> jax.Array:
        """Log SNR [b] or [b, f] -> [..., dim / 4]."""
        return timestep_embedding(self.schedule.timestep(logsnr), dim // 4)
