"""Frames of a clip that the network reads clean (frame-mask conditioning).

A model that was trained so continues, precedes, interpolates and loops given frames,
and animates a picture: they differ in which frames are given. Given frames are at noise
level 0, generated ones at the level of the step (Open-Sora 1.1 and 1.2, reports 2 and
3). Training draws which are given, and has no loss there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.conditions.base import Cond, Condition, Contribution
from vdm_jax.diffusion.process import Array
from vdm_jax.errors import UserError
from vdm_jax.networks.inputs import Packing


class Clean(NamedTuple):
    """Given frames, as `guidance.clean` takes them: cond["clean"] of a training batch.

    known: like z. strength: [b, f], 0 where a frame is given, 1 where it is generated.
    """

    known: Array
    strength: Array


def frame_weight(cond: Cond) -> Array | None:
    """Return the weights [b, f] of frames in the loss, None for 1 each.

    Given frames and the padding of packed buffers have 0.
    """
    weight = cond["clean"].strength if "clean" in cond else None
    if (packing := cond.get("packing")) is None:
        return weight
    real = packing.segments > 0
    return real.astype(jnp.result_type(float)) if weight is None else weight * real


def _run(frames: int, start: Array | int, length: Array | int) -> Array:
    """Return bool [frames], true from `start` on for `length` frames."""
    index = jnp.arange(frames)
    return (index >= start) & (index < start + length)


def _quarter(key: Array, count: Array) -> Array:
    """Draw a number of frames, from 1 to a quarter of them."""
    return jax.random.randint(key, (), 1, jnp.maximum(1, count // 4) + 1)


def _head_and_tail(key: Array, frames: int, count: Array) -> Array:
    length = _quarter(key, count)
    return _run(frames, 0, length) | _run(frames, count - length, length)


def _tail(key: Array, frames: int, count: Array) -> Array:
    length = _quarter(key, count)
    return _run(frames, count - length, length)


def _block(key: Array, frames: int, count: Array, length: Array | int) -> Array:
    """Draw a run of that length anywhere."""
    start = jax.random.randint(key, (), 0, count - length + 1)
    return _run(frames, start, length)


def _random_block(key: Array, frames: int, count: Array) -> Array:
    length_key, start_key = jax.random.split(key)
    return _block(start_key, frames, count, _quarter(length_key, count))


def _random(key: Array, frames: int, count: Array) -> Array:
    """Draw each frame with one probability of .1 to .9; one or more are generated."""
    probability_key, key = jax.random.split(key)
    probability = jax.random.uniform(probability_key, (), minval=0.1, maxval=0.9)
    u = jax.random.uniform(key, (frames,))
    largest = jnp.where(_run(frames, 0, count), u, 0).max()
    return (u < probability) & (u < largest)


def _every_second(key: Array, frames: int, count: Array) -> Array:
    return (jnp.arange(frames) + jax.random.randint(key, (), 0, 2)) % 2 == 0


# Name -> (key, frames, count) -> bool [frames], true where one of the first `count`
# frames is given; the others are not there.
MASKS: dict[str, Callable[[Array, int, Array], Array]] = {
    "first": lambda key, frames, count: _run(frames, 0, 1),
    "last": lambda key, frames, count: _run(frames, count - 1, 1),
    "first_and_last": lambda key, frames, count: (
        _run(frames, 0, 1) | _run(frames, count - 1, 1)
    ),
    "one": lambda key, frames, count: _block(key, frames, count, 1),
    "head": lambda key, frames, count: _run(frames, 0, _quarter(key, count)),
    "tail": _tail,
    "head_and_tail": _head_and_tail,
    "block": _random_block,
    "random": _random,
    "every_second": _every_second,
}


@dataclasses.dataclass(frozen=True)
class CleanFrames(Condition):
    """Which frames training gives; the network sees them by their noise level alone.

    masks: a row of MASKS and its probability; with the rest of 1 no frame is given.
    """

    masks: tuple[tuple[str, float], ...]
    in_batch: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Any) -> "CleanFrames | None":
        """Return the condition of a config, None where training gives no frames.

        Raises:
          UserError: the probabilities are more than 1 together.
        """
        masks = tuple((name, float(p)) for name, p in config.conditioning.clean_frames)
        if sum(p for _, p in masks) > 1 + 1e-9:
            raise UserError(
                f"conditioning.clean_frames={masks}: probabilities, at most 1 together"
            )
        return cls(masks) if masks else None

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """No arrays of the data set."""
        return {}

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """Nothing: the noise level says which frames are clean."""
        return Contribution()

    def draw(
        self, key: Array, z: Array, frames: int, packing: Packing | None = None
    ) -> Clean:
        """Draw which frames of clips z [b, f, h, w, c] are given.

        A single frame is always generated, and so are the independent images behind the
        first `frames` frames.

        packing: of packed buffers z, whose videos have at most `frames` frames.
        """
        ends = jnp.cumsum(jnp.asarray([p for _, p in self.masks]))
        counts = jnp.full(len(z), frames) if packing is None else packing.frames

        def draw_one(key: Array, count: Array) -> Array:
            choice_key, key = jax.random.split(key)
            none = jnp.zeros(frames, bool)
            masks = [*(MASKS[name](key, frames, count) for name, _ in self.masks), none]
            chosen = jnp.sum(jax.random.uniform(choice_key) >= ends)
            return jnp.stack(masks)[chosen] & (count > 1)

        keys = jax.random.split(key, counts.size)
        given = jax.vmap(draw_one)(keys, counts.ravel())
        if packing is None:
            given = jnp.pad(given, ((0, 0), (0, z.shape[1] - frames)))
        else:
            given = given.reshape(*counts.shape, frames)
            given = packing.to_tokens(given, per_frame=True)
        return Clean(z, 1.0 - given.astype(z.dtype))
