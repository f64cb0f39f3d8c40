"""Whether a weight of reconstruction guidance brings area means nearer, or diverges.

Of one Gaussian pixel every sampler is linear in its start and its noises, so how far
off its known mean ends follows from the sampler's own table and step, before anything
runs.
"""

import math
from collections.abc import Callable

import numpy as np

from vdm_jax.diffusion import process
from vdm_jax.diffusion.samplers import Sampler, Table
from vdm_jax.diffusion.schedules import NoiseLevel

WeightFn = Callable[[NoiseLevel], float]  # of `guidance.reconstruct`
MAX_DRAWS, MAX_CALLS = (
    2,
    3,
)  # of a row, at most: what a sampler and its corrector ask for


def final_rms_error(
    sampler: Sampler, table: Table, weights: WeightFn, variance: float
) -> float:
    """Root mean square distance from its known mean at which a sampler ends.

    variance: of the pixel. The network errs at each call, by the deviation that a pixel
    still has, given z.
    """
    rows, each = len(table["logsnr"]), MAX_DRAWS + MAX_CALLS

    def normal(number: int) -> np.ndarray:
        """One of the independent normal numbers that everything is a sum of."""
        return np.eye(1, 2 + rows * each, number)[0]

    known = math.sqrt(variance) * normal(1 + rows * each)

    def denoise(z: np.ndarray, step: NoiseLevel, cond) -> process.Prediction:
        spread = step.alpha**2 * variance + step.sigma**2
        gain = step.alpha * variance / spread
        error = step.sigma * np.sqrt(variance / spread)
        x = gain * z + error * normal(
            1 + step.step_index * each + MAX_DRAWS + step.call
        )
        pull = weights(step) * step.alpha * gain
        return process.from_x(x + pull * (known - x), z, step)

    carry = sampler.init(normal(0))
    for i in range(rows):
        row = {key: value[i] for key, value in table.items()}
        step = NoiseLevel(i, row["logsnr"], row["alpha"], row["sigma"])
        noise = lambda draw, i=i: normal(1 + i * each + draw)  # noqa: E731
        carry = sampler.step(denoise, carry, step, row, noise, None)
    return math.sqrt(((carry[0] - known) ** 2).sum())


def largest_stable_fraction(
    sampler: Sampler, table: Table, weights: WeightFn, variance: float
) -> float:
    """The share of `weights` that leaves the mean as far off as no guidance at all.

    1 if they do no harm.
    """

    def ends(share: float) -> float:
        return final_rms_error(
            sampler, table, lambda step: share * weights(step), variance
        )

    free, low, high = ends(0.0), 0.0, 1.0
    if ends(1.0) <= free:
        return 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if ends(middle) <= free else (low, middle)
    return low
