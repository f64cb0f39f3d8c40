"""Long or large videos from a small model: overlapping windows, averaged at each call.

After Bar-Tal et al. 2023, "MultiDiffusion", equation 5, in time as well as in space.
The windows run one after the other, so memory does not grow with their number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Array, Denoiser, Prediction
from vdm_jax.diffusion.schedules import NoiseLevel


def axis_starts(length: int, window: int, overlap: int) -> list[int]:
    """First places of windows that cover `length`, `overlap` in common or more.

    The last one ends where `length` does.
    """
    if length <= window:
        return [0]
    stride = window - overlap
    number = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(number)]


def window_starts(shape, window, overlap) -> np.ndarray:
    """int [k, 3]: the first frame, row and column of every window.

    shape, window, overlap: (frames, height, width) of the whole, of a window, and of
    what neighbours have in common.
    """
    axes = [axis_starts(*sizes) for sizes in zip(shape, window, overlap, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def average_windows(
    denoise: Denoiser,
    window,
    starts: np.ndarray,
    crop_cond: Callable[[Any, Array], Any] = lambda cond, place: cond,
) -> Denoiser:
    """A denoiser of large z from one of videos of `window` (frames, height, width).

    where: `places`. Predictions are averaged where windows overlap: each explains z,
    and so does their mean. cut(cond, place), place int [5] as of a slice of z, is what
    the window there is told; without it all are told the same. step holds [] or [b].
    """

    def windowed(z: Array, step: NoiseLevel, cond) -> Prediction:
        size = (z.shape[0], *window, z.shape[-1])
        count = np.zeros(z.shape[1:4])
        for frame, row, column in starts:
            count[
                frame : frame + window[0],
                row : row + window[1],
                column : column + window[2],
            ] += 1

        @jax.checkpoint  # a gradient runs the windows again, one after the other
        def ask(place):
            part = jax.lax.dynamic_slice(z, place, size)
            return denoise(part, step, crop_cond(cond, place))

        def add(total, place):
            place = (0, *place, 0)
            both = zip(total, ask(place), strict=True)
            return Prediction(
                *(
                    jax.lax.dynamic_update_slice(
                        t, jax.lax.dynamic_slice(t, place, size) + part, place
                    )
                    for t, part in both
                )
            ), None

        zero = Prediction(jnp.zeros_like(z), jnp.zeros_like(z))
        total, _ = jax.lax.scan(add, zero, jnp.asarray(starts))
        share = jnp.asarray(count, z.dtype)[None, ..., None]
        return Prediction(*(t / share for t in total))

    return windowed
