"""Noise levels of training: log-normal ones, and their shift by the resolution."""

import dataclasses
import math

import jax
import jax.scipy.special
import scipy.special

from vdm_jax.diffusion.schedules import Array, Schedule, array_namespace, clip_angle


@dataclasses.dataclass(frozen=True)
class LogNormal(Schedule):
    """Levels of training whose log(sigma / alpha) is normal; uniform times draw them.

    Mean 0 and std 1 are the logit-normal times of rectified flow (Esser et al. 2024,
    section 3.1): the logit of its time sigma / (alpha + sigma) is log(sigma / alpha).
    EDM's are -1.2 and 1.2 (Karras et al. 2022, table 1). `logsnr_shift` is that of
    `Flow`, so that training and sampling are shifted alike.
    """

    mean: float = 0.0
    std: float = 1.0
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    logsnr_shift: float = 0.0

    def angle(self, t: Array) -> Array:
        """Map t to the phi that a fraction t of all draws is below."""
        xp = array_namespace(t)
        special = jax.scipy.special if isinstance(t, jax.Array) else scipy.special
        log_ratio = self.mean + self.std * special.ndtri(t) - self.logsnr_shift / 2
        angle = xp.arctan(xp.exp(log_ratio))
        return clip_angle(angle, self.logsnr_min, self.logsnr_max)


def resolution_shift(height: int, width: int, frames: int, base: int) -> float:
    """Return the shift r = sqrt(height width) / base sqrt(frames) of flow's time.

    t' = r t / (1 + (r - 1) t), after Open-Sora 1.2 (report 3): in more pixels and
    frames the same noise hides less. As `logsnr_shift` of a schedule it is -2 log r.

    height, width, base: in pixels. frames: of z.
    """
    return math.sqrt(height * width * frames) / base
