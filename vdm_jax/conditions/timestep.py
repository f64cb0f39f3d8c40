"""The embedding of a discrete noise level, in place of its angle's."""

import dataclasses

import jax

from vdm_jax.diffusion.flow_timesteps import FlowTimesteps
from vdm_jax.diffusion.schedules import Discrete
from vdm_jax.networks.layers import timestep_embedding


@dataclasses.dataclass(frozen=True)
class TimestepEmbedding:
    """Sinusoidal features of the schedule's timestep: Stable Diffusion's embedding.

    It is `ConditioningEncoder.noise_embedding`. With one MLP layer the encoder is the
    original's time embedding: its width is four times that of the features.

    num_features: 0 is dim / 4; DiT has 256 at any width.
    """

    schedule: Discrete | FlowTimesteps
    num_features: int = 0

    def __call__(self, logsnr: jax.Array, dim: int) -> jax.Array:
        """Log SNR [b] or [b, f] -> [..., num_features]."""
        timestep = self.schedule.timestep(logsnr)
        return timestep_embedding(timestep, self.num_features or dim // 4)
