"""The key of a draw holds all that identifies it, and nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.diffusion.analytic import final_z
from tests.diffusion.sampler_cases import COSINE, each_sampler, tanh_denoiser
from vdm_jax.diffusion import (
    samplers,
)

# Noise: its key holds everything that identifies a draw, and nothing else.


def numbers(seed, stage, block, videos, step, draw, shape=(8,)):
    keys = samplers.video_keys(seed, stage, block, jnp.asarray(videos))
    return np.asarray(samplers.normal(keys, step, draw, shape))


def test_no_two_draws_give_the_same_numbers():
    """All of (seed, stage, block, video, step, draw), swapped values included."""
    draw = jax.jit(samplers.normal, static_argnums=3)
    seen = []
    for seed, stage, block in itertools.product(range(3), range(3), range(3)):
        keys = samplers.video_keys(seed, stage, block, jnp.arange(3))
        for step, number in itertools.product([0, 1, 2, 1023], range(3)):
            seen.append(np.asarray(draw(keys, step, number, (8,))))
    rows = np.concatenate(seen)
    assert rows.shape == (27 * 12 * 3, 8)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # Not even in part: single float32 normals coincide by chance a few times only.
    assert len(np.unique(rows)) > rows.size - 40


def test_a_draw_is_the_same_for_every_batch_split():
    whole = numbers(5, 1, 2, np.arange(8), 3, 0, (2, 4))
    parts = [np.arange(4), np.arange(4, 8)], [np.arange(1), np.arange(1, 8)]
    for split in parts:
        joined = [numbers(5, 1, 2, videos, 3, 0, (2, 4)) for videos in split]
        np.testing.assert_array_equal(np.concatenate(joined), whole)
    order = np.array([6, 0, 3])
    np.testing.assert_array_equal(numbers(5, 1, 2, order, 3, 0, (2, 4)), whole[order])


def test_a_draw_is_the_same_traced_or_not():
    @jax.jit
    def traced(seed, stage, block, videos, step, draw):
        keys = samplers.video_keys(seed, stage, block, videos)
        return samplers.normal(keys, step, draw, (8,))

    args = 5, 1, 2, np.arange(4), 3, 1
    np.testing.assert_array_equal(traced(*args), numbers(*args))


def test_draws_are_standard_normal():
    values = numbers(0, 0, 0, np.arange(64), 0, 0, (4, 16, 16)).astype(np.float64)
    assert values.shape == (64, 4, 16, 16)
    count = values.size
    assert abs(values.mean()) < 5 / np.sqrt(count)
    assert abs(np.mean(values**2) - 1) < 5 * np.sqrt(2 / count)
    assert abs(np.mean(values**4) - 3) < 5 * np.sqrt(96 / count)
    between = np.corrcoef(values.reshape(64, -1)) - np.eye(64)
    assert np.abs(between).max() < 6 / np.sqrt(count / 64)


@each_sampler
def test_a_run_with_keyed_noise_is_the_same_for_every_batch_split(sampler):
    n, table = 4, sampler.table(COSINE, 4)

    def run(videos):
        keys = samplers.video_keys(0, 0, 0, jnp.asarray(videos))
        shape = (3, 4, 4, 1)

        def noise(index, draw):
            return samplers.normal(keys, index + 1, draw, shape)

        z = samplers.normal(keys, 0, 0, shape)
        return final_z(sampler, tanh_denoiser, z, table, 0, n, noise, None)

    whole = run(range(4))
    halves = np.concatenate([run([0, 1]), run([2, 3])])
    assert np.abs(whole[:1] - whole[1:]).max() > 0.1
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-6)
