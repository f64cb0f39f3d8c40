"""Diffusion times of a training batch."""

from typing import Any

import jax
import jax.numpy as jnp


def stratified_times(key: jax.Array, n: int, dtype: Any = None) -> jax.Array:
    """Return n diffusion times in [0, 1), evenly spread with one random offset.

    Each is uniform; together they cover the schedule, which lowers the variance of
    the loss (Kingma et al. 2021, appendix I.1).
    """
    offset = jax.random.uniform(key, (), dtype)
    return (offset + jnp.arange(n, dtype=offset.dtype) / n) % 1.0
