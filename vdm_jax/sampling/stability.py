"""Whether reconstruction guidance of a weight converges to area means, or diverges.

For one Gaussian pixel every sampler is linear in its initial noise and its other
noises. So the error with which a known mean ends follows from the sampler's table and
step, before any network runs.
"""

import math
from collections.abc import Callable

import numpy as np

from vdm_jax.diffusion import process, samplers
from vdm_jax.diffusion.samplers import Sampler, Table
from vdm_jax.diffusion.schedules import NoiseLevel

WeightFn = Callable[[NoiseLevel], float]  # as `guidance.reconstruction_guidance` has it
MAX_DRAWS, MAX_CALLS = 2, 3  # per row of a table, by a sampler and its corrector


def final_rms_error(
    sampler: Sampler, table: Table, weights: WeightFn, variance: float
) -> float:
    """Return the root mean square error of a known mean when the sampler ends.

    variance: variance of the pixel. The network's error at each call is the standard
    deviation of the pixel given z.
    """
    rows, each = len(table["logsnr"]), MAX_DRAWS + MAX_CALLS

    def normal(number: int) -> np.ndarray:
        """Return one of the independent normal numbers, as its coefficients."""
        return np.eye(1, 2 + rows * each, number)[0]

    known = math.sqrt(variance) * normal(1 + rows * each)

    def denoise(z: np.ndarray, level: NoiseLevel, cond) -> process.Prediction:
        spread = level.alpha**2 * variance + level.sigma**2
        gain = level.alpha * variance / spread
        error = level.sigma * np.sqrt(variance / spread)
        x = gain * z + error * normal(
            1 + level.step_index * each + MAX_DRAWS + level.call
        )
        pull = weights(level) * level.alpha * gain
        return process.from_x(x + pull * (known - x), z, level)

    carry = sampler.init(normal(0))
    for i in range(rows):
        row = {key: value[i] for key, value in table.items()}
        level = samplers.call_level(row, i)
        noise = lambda draw, i=i: normal(1 + i * each + draw)  # noqa: E731
        carry = sampler.step(denoise, carry, level, row, noise, None)
    return math.sqrt(((carry[0] - known) ** 2).sum())


def largest_stable_fraction(
    sampler: Sampler, table: Table, weights: WeightFn, variance: float
) -> float:
    """Return the fraction of `weights` with which the error is that of no guidance.

    1 if the error with all of them is no larger.
    """

    def error(fraction: float) -> float:
        return final_rms_error(
            sampler, table, lambda step: fraction * weights(step), variance
        )

    unguided, low, high = error(0.0), 0.0, 1.0
    if error(1.0) <= unguided:
        return 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) <= unguided else (low, middle)
    return low
