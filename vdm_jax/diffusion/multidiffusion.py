"""Long or large videos from a small model, by averaging overlapping windows.

After Bar-Tal et al. 2023, "MultiDiffusion", equation 5, in time as well as in space.
The windows run one after the other, so memory does not grow with their number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Array, Denoiser, Prediction
from vdm_jax.diffusion.schedules import NoiseLevel


def axis_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return the starts of windows that cover `length` along one axis.

    Neighbours overlap by `overlap` or more. The last window ends at `length`.
    """
    if length <= window:
        return [0]
    stride = window - overlap
    number = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(number)]


def window_starts(shape: Sequence[int], window: Sequence[int]) -> np.ndarray:
    """Return int [k, 3]: the first frame, row and column of every window.

    shape, window: (frames, height, width) of the whole video and of a window.
    Neighbours overlap by half of a window or more.
    """
    sizes = zip(shape, window, strict=False)
    axes = [axis_starts(length, n, n // 2) for length, n in sizes]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def average_windows(
    denoise: Denoiser,
    window,
    starts: np.ndarray,
    crop_cond: Callable[[Any, Array], Any] = lambda cond, start: cond,
) -> Denoiser:
    """Return a denoiser of large z from one of `window` (frames, height, width).

    starts: `window_starts`. Predictions are averaged where windows overlap: each
    satisfies alpha x + sigma eps = z, and so does their mean. crop_cond(cond, start)
    returns the condition of the window at `start`, int [5], a start index into z; by
    default all windows share one condition.
    """

    def windowed(z: Array, level: NoiseLevel, cond) -> Prediction:
        size = (z.shape[0], *window, z.shape[-1])
        count = np.zeros(z.shape[1:4])
        for start in starts:
            part = zip(start, window, strict=True)
            count[tuple(slice(first, first + n) for first, n in part)] += 1

        @jax.checkpoint  # a gradient runs the windows again, one after the other
        def denoise_window(start):
            z_window = jax.lax.dynamic_slice(z, start, size)
            frames = (
                jax.lax.dynamic_slice(a, start[:2], (a.shape[0], window[0]))
                if jnp.ndim(a) == 2
                else a
                for a in level
            )
            return denoise(z_window, NoiseLevel(*frames), crop_cond(cond, start))

        def add(total, start):
            start = (0, *start, 0)

            def add_one(t, part):
                part = jax.lax.dynamic_slice(t, start, size) + part
                return jax.lax.dynamic_update_slice(t, part, start)

            return jax.tree.map(add_one, total, denoise_window(start)), None

        zero = Prediction(jnp.zeros_like(z), jnp.zeros_like(z))
        total, _ = jax.lax.scan(add, zero, jnp.asarray(starts))
        divisor = jnp.asarray(count, z.dtype)[None, ..., None]
        return Prediction(*(t / divisor for t in total))

    return windowed
