"""Long videos by key frames, so that a network sees a few frames at a time.

ControlVideo (Zhang et al. 2023, arXiv:2305.13077, section 3.4): key frames are denoised
together, and the frames between two neighbouring ones with these two, all at one noise
level. The calls run one after the other, so memory does not grow with the length.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion.process import Array, Denoiser, Prediction
from vdm_jax.diffusion.schedules import NoiseLevel

MIN_WINDOW = 3  # a shorter one has no frame between two key frames


class Plan(NamedTuple):
    """Which frames are denoised together.

    keys: the key frames. gaps: for each further call a key frame, frames behind it, and
    the next key frame; frames of a long gap are in several of them.
    """

    keys: tuple[int, ...]
    gaps: tuple[tuple[int, ...], ...]


def make_plan(frames: int, most: int, window: int = 0) -> Plan:
    """Return the plan of a video.

    most: frames of a call, 3 or more; a video that has no more is all key frames.
    window: frames from one key frame to the next, both counted. 0 is the square root of
      the number of frames, as published; it grows until there are `most` key frames.
    """
    if frames <= most and not window:
        return Plan(tuple(range(frames)), ())
    window = window or max(MIN_WINDOW, math.isqrt(frames))
    window = max(window, -(-(frames - 1) // (most - 1)) + 1)
    keys = [*range(0, frames - 1, window - 1), frames - 1]
    gaps = []
    for left, right in zip(keys[:-1], keys[1:], strict=True):
        for first in range(left + 1, right, most - 2):
            inner = range(first, min(first + most - 2, right))
            gaps.append((left, *inner, right))
    return Plan(tuple(keys), tuple(gaps))


def denoise_by_key_frames(
    denoise_keys: Denoiser,
    denoise_gap: Denoiser,
    plan: Plan,
    take_frames: Callable[[Any, Array], Any] = lambda cond, frames: cond,
    kept: slice = slice(1, -1),
) -> Denoiser:
    """Return a denoiser of a whole video z from those of key frames and of a gap.

    take_frames(cond, frames) returns the condition of these frames, int [n].
    kept: places in a gap whose prediction is taken; a key frame's is that of its call.
    The level has shape [] or [b].
    """
    sizes = sorted({len(gap) for gap in plan.gaps})

    def denoise(z: Array, level: NoiseLevel, cond: Any) -> Prediction:
        def put(part: Denoiser, total: Prediction, frames: Array, kept: slice):
            made = part(z[:, frames], level, take_frames(cond, frames))
            pairs = zip(total, made, strict=True)
            kept_frames = frames[kept]
            return Prediction(*(t.at[:, kept_frames].set(p[:, kept]) for t, p in pairs))

        zero = Prediction(jnp.zeros_like(z), jnp.zeros_like(z))
        total = put(denoise_keys, zero, jnp.array(plan.keys), slice(None))
        for size in sizes:  # gaps of one length are one loop
            same = np.array([gap for gap in plan.gaps if len(gap) == size])
            add = lambda total, gap: (put(denoise_gap, total, gap, kept), None)  # noqa: E731
            total, _ = jax.lax.scan(add, total, jnp.asarray(same))
        return total

    return denoise
