"""Noise levels, exact denoisers and definitions that tests of diffusion/ share."""

import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import process, samplers, schedules

# Each weighting as its paper defines it, a factor on the squared error of x: Salimans &
# Ho 2022, section 4; Min-SNR, gamma = 5; "flow" is the error of eps - x.
WEIGHTINGS_ON_X = {
    "constant": lambda snr: np.ones_like(snr),
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: np.maximum(snr, 1),
    "snr_plus_one": lambda snr: snr + 1,
    "min_snr": lambda snr: np.minimum(snr, 5),
    "flow": lambda snr: (np.sqrt(snr) + 1) ** 2,
}


def level_at(logsnr, step_index=0, dtype=np.float64):
    """Return the noise level at a logsnr; float64 only under x64."""
    logsnr = np.asarray(logsnr, np.float64)
    alpha = np.sqrt(1 / (1 + np.exp(-logsnr)))
    sigma = np.sqrt(1 / (1 + np.exp(logsnr)))
    levels = (jnp.asarray(a, dtype) for a in (logsnr, alpha, sigma))
    return schedules.NoiseLevel(jnp.asarray(step_index), *levels)


def append_axes(a):
    """Append axes to [b] or [b, f], to broadcast with [b, f, h, w, c]."""
    return a if np.ndim(a) == 0 else a.reshape(a.shape + (1,) * (5 - a.ndim))


def gaussian(mean, spread):
    """Return the exact denoiser of N(mean, spread^2), each [], [b] or like z."""

    def denoise(z, level, cond):
        m, s, alpha, sigma = map(append_axes, (mean, spread, level.alpha, level.sigma))
        centred = (z - alpha * m) / (alpha**2 * s**2 + sigma**2)
        return process.Prediction(m + alpha * s**2 * centred, sigma * centred)

    return denoise


def final_z(sampler, denoise, z, table, start, stop, noise, cond):
    """Return z after rows start..stop of samplers.sample_loop."""
    carry = sampler.init(z)
    return samplers.sample_loop(
        sampler, denoise, carry, table, start, stop, noise, cond
    )[0]
