"""Positions of the tokens of a video: fixed sines and cosines, and rotations.

A video of f x h x w tokens has its frames outermost and its columns innermost. Every
function takes any size, and none has parameters. Angles are computed in float64 on the
host or in float32: in bfloat16 the position 257 is 256.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def sincos_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """Return sines, then cosines, of positions: float32 [..., dim].

    The angles are p / 10000^(i / (dim / 2)), i = 0 .. dim / 2 - 1 (arXiv:1706.03762,
    section 3.5, without its interleaving).
    """
    frequencies = 1e4 ** (-np.arange(dim // 2) / (dim // 2))
    angles = np.asarray(positions, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)


def sincos_2d(height: int, width: int, dim: int) -> np.ndarray:
    """Return the positions of an image's tokens: float32 [height, width, dim].

    The first half of dim is `sincos_1d` of the column and the second half that of the
    row, as in the code of DiT (arXiv:2212.09748). dim is a multiple of 4.
    """
    rows, columns = np.indices((height, width))
    halves = [sincos_1d(index, dim // 2) for index in (columns, rows)]
    return np.concatenate(halves, -1)


def rope_splits(dim: int) -> tuple[int, int, int]:
    """Return how many of a head's dim channels turn by frame, row and column.

    Rows and columns have 2 (dim // 6) each and frames the rest, as in Wan 2.1
    (arXiv:2503.20314). dim is even.
    """
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def rope_angles(sizes: Sequence[int], splits: Sequence[int]) -> jax.Array:
    """Return the angles of a grid of tokens: float32 [*sizes, sum(splits) / 2].

    sizes: tokens of each axis, as (frames, height, width).
    splits: even numbers of channels that turn by each axis, as `rope_splits`.
    """
    axes = [jnp.arange(size, dtype=jnp.float32) for size in sizes]
    positions = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    return token_angles(positions, splits)


def token_angles(positions: jax.Array, splits: Sequence[int]) -> jax.Array:
    """Return the angles of tokens at positions [..., axes]: [..., sum(splits) / 2].

    The i-th pair of the n channels of an axis turns by p / 10^(8 i / n)
    (arXiv:2104.09864, section 3.4.2), in float32.
    """
    frequencies = [1e4 ** (-np.arange(0, n, 2) / max(n, 1)) for n in splits]
    axis = np.repeat(np.arange(len(splits)), [len(each) for each in frequencies])
    rates = np.concatenate(frequencies).astype(np.float32)
    p = positions[..., axis].astype(jnp.float32)
    return p * rates.reshape((1,) * (p.ndim - 1) + (-1,))


def apply_rope(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn each pair of neighbouring channels (x_2i, x_2i+1) by its angle.

    x [..., heads, d], angles [..., d / 2] of x's last axes before heads -> like x.
    Queries and keys that are turned so have products that depend on the difference of
    their positions alone. The product is computed in float32 or wider.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = angles.reshape((1,) * (x.ndim - angles.ndim - 1) + angles.shape)
    cos, sin = (fn(angles)[..., None, :].astype(dtype) for fn in (jnp.cos, jnp.sin))
    pairs = x.astype(dtype).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = [first * cos - second * sin, first * sin + second * cos]
    return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)
