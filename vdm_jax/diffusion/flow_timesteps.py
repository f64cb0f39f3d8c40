"""Flow matching of published networks, which read timesteps and flow's own state."""

import dataclasses
import math

import numpy as np

from vdm_jax.diffusion.schedules import Array, Flow, array_namespace
from vdm_jax.settings import flow

MIN_ALPHA = 17 / 2**24  # of UniPC's first level: 1e-6, rounded as 1 - 1e-6 in float32


@dataclasses.dataclass(frozen=True)
class FlowTimesteps(flow.FlowTimesteps, Flow):
    """Flow's straight path for a network that reads its state and its timestep.

    The state is z / (alpha + sigma) and the timestep train_steps tau, with flow's time
    tau = sigma / (alpha + sigma) after its shift (arXiv:2403.03206, section 5.3.2).
    The first fields are those of a config's section `flow`.

    skip_last: n steps start at the first n of n + 1 times that are evenly spaced from 1
      to 1 / train_steps, as diffusers' UniPC does; else at n from 1 to 1 / n.
    """

    skip_last: bool = False

    def timestep(self, logsnr: Array) -> Array:
        """Return the timestep of a log SNR.

        A float32 of the log SNR determines it to 1e-4. What is nearer to the next whole
        timestep than 2e-4 is that one.
        """
        xp = array_namespace(logsnr)
        timestep = self.train_steps / (1 + xp.exp(logsnr / 2))
        return xp.floor(timestep + 2e-4) if self.whole_timesteps else timestep

    def grid(self, n: int) -> np.ndarray:
        """Return the phi between n steps of a sampler, then phi = 0."""
        if not self.skip_last:
            return super().grid(n)
        t = np.linspace(1, 1 / self.train_steps, n + 1)[:-1]
        shift = math.exp(-self.logsnr_shift / 2)
        tau = np.minimum(shift * t / (1 + (shift - 1) * t), 1 - MIN_ALPHA)
        return np.append(np.arctan2(tau, 1 - tau), 0.0)
