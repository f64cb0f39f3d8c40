"""Laws of the diffusion times of a batch."""

import jax
import numpy as np
import pytest

from vdm_jax.diffusion.schedules import stratified_times


@pytest.mark.parametrize("n", [1, 5, 16])
def test_stratified_times_put_one_time_in_each_stratum(n):
    draw = jax.jit(stratified_times, static_argnums=1)
    for seed in range(20):
        t = np.asarray(draw(jax.random.key(seed), n))
        assert t.shape == (n,) and (t >= 0).all() and (t <= 1).all()
        gaps = np.sort(t)
        # Rounding may move a time across an edge, hence the tolerance.
        assert (gaps >= np.arange(n) / n - 1e-6).all()
        assert (gaps <= (np.arange(n) + 1) / n + 1e-6).all()


def test_stratified_times_are_uniform():
    """Uniform on [0, 1) over keys, also within a stratum; keys give different times."""
    n = 8
    keys = jax.random.split(jax.random.key(0), 2000)
    t = np.asarray(jax.vmap(lambda key: stratified_times(key, n))(keys))
    for values in (t.ravel(), (t * n % 1).ravel()):
        values = np.sort(values)
        distance = np.abs(values - (np.arange(values.size) + 0.5) / values.size).max()
        # Fewer independent numbers than values if a batch shares one offset.
        assert distance < 1.95 / np.sqrt(len(keys))
    assert len(np.unique(t[:, 0])) > 1990
