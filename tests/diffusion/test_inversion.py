"""DDIM inversion against Tune-A-Video's program, with a linear stand-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import recorded
from tests.parity.drawn import normal
from vdm_jax.diffusion import guidance, process, samplers, schedules

SCHEDULE = schedules.Discrete()
STEPS = 10
RECORDED = recorded.load("tune_a_video_inversion")
NULL, EDIT = (
    normal(f"tav/input/text_{name}", (1, 5, 24)).mean((1, 2))
    for name in ("null", "edit")
)


def denoise(z, level, text):
    """The stand-in, in torch's order [b, c, f, h, w]; text [b]: their tokens' mean."""
    timestep = SCHEDULE.timestep(level.logsnr)
    eps = (0.5 + timestep / 2000) * z + 0.25 * jnp.roll(z, 1, -1)
    eps = (
        eps
        - 0.1 * z.mean(2, keepdims=True)
        + 0.05 * jnp.reshape(text, (-1, 1, 1, 1, 1))
    )
    return process.PREDICTION_TYPES["eps"](eps, z, level)


def trajectory(sampler, denoise, z, text, steps=STEPS):
    """Return z [steps + 1, ...] from the start to the end."""
    table = samplers.pad_table(sampler.table(SCHEDULE, steps), z.dtype)

    @jax.jit
    def row(carry, table, i):
        return samplers.sample_loop(
            sampler, denoise, carry, table, i, i + 1, lambda i, draw: None, text
        )

    carry, points = sampler.init(z), [z]
    for i in range(steps):
        carry = row(carry, table, i)
        points.append(carry[0])
    return np.stack(points)


def test_it_goes_up_as_the_published_program_does_and_back(x64):
    start = jnp.asarray(normal("tav/input/latent", (1, 4, 3, 8, 8)), float)
    up = trajectory(samplers.ddim_inversion(at_end=True), denoise, start, NULL)
    expected = RECORDED["linear_inversion"]
    np.testing.assert_allclose(up, expected, atol=1e-6 * np.abs(expected).max())

    def check_down(name, denoise):
        expected = RECORDED[name]
        found = trajectory(samplers.ddim(), denoise, jnp.asarray(up[-1]), EDIT)
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())

    combine = guidance.CFG_MODES["linear"](jnp.array(12.5))
    check_down("linear_edit_cfg12.5", guidance.cfg(denoise, lambda text: NULL, combine))
    check_down("linear_back_unguided", lambda z, level, text: denoise(z, level, NULL))


def test_the_level_at_the_start_gives_another_trajectory():
    start = jnp.asarray(normal("tav/input/latent", (1, 4, 3, 8, 8)))
    up = trajectory(samplers.ddim_inversion(), denoise, start, NULL)
    assert np.abs(up - RECORDED["linear_inversion"]).max() > 0.01


@pytest.mark.parametrize(
    ("steps", "lowest", "highest"),
    [(25, 0.80, 0.87), (50, 0.90, 0.97), (100, 0.94, 0.97), (200, 0.97, 0.99)],
)
def test_a_gaussian_s_value_returns_the_nearer_the_more_steps(steps, lowest, highest):
    """With the exact network of data of variance 1/4, 1 goes up and comes back."""

    def exact(z, level, text):
        eps = level.sigma * z / (level.alpha**2 / 4 + level.sigma**2)
        return process.PREDICTION_TYPES["eps"](eps, z, level)

    up = trajectory(
        samplers.ddim_inversion(at_end=True), exact, jnp.ones(1), None, steps
    )
    back = trajectory(samplers.ddim(), exact, jnp.asarray(up[-1]), None, steps)
    assert lowest < back[-1] < highest
