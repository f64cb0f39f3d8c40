"""Edits by inversion, of a small random model with Tune-A-Video's attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_model
from vdm_jax import build, sampling
from vdm_jax.diffusion import schedules
from vdm_jax.sampling import Run, SamplingInputs, Settings

SHAPE = (1, 3, 8, 8, 3)
RNG = np.random.default_rng(0)
EMPTY, OTHER = RNG.standard_normal((2, 1, 5, 24), np.float32)
MASK = np.ones((1, 5), bool)
VIDEO = RNG.uniform(-1, 1, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def tuned():
    """Return a model of three frames with Stable Diffusion's levels, and parameters."""
    config = small_model.controlled_config()
    config.video.frames = SHAPE[1]
    config.network.update(temporal="tune", frame_reads="previous", joint_norms=True)
    model = build.build_model(config)
    return model, small_model.random_params(model, 3)


def text(tokens):
    """Return the conditions of a prompt; the prompt "" is EMPTY."""
    return {
        "text": tokens, "text_mask": MASK, "null_text": EMPTY, "null_text_mask": MASK,
    }  # fmt: skip


def change(tuned, tokens, steps):
    """Return the root mean square difference between VIDEO and its edit."""
    settings = Settings(steps, "ddim", guidance_scale=1.0, clip_x=0.0)
    inputs = SamplingInputs(text(tokens))
    edit = sampling.edit_by_inversion(*tuned, VIDEO, 1, settings, inputs)
    return float(np.sqrt(np.mean((edit - VIDEO) ** 2)))


def test_the_same_prompt_gives_the_clip_with_an_error_like_one_over_n(tuned):
    errors = [change(tuned, EMPTY, steps) for steps in (25, 50, 100)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, atol=0.15)
    assert errors[-1] < 0.02 < 2 * errors[-1] < change(tuned, OTHER, 100)


def test_two_prompts_are_edits_of_one_inversion(tuned):
    """Each is what it is alone."""
    settings = Settings(6, "ddim", guidance_scale=2.0, clip_x=0.0)

    def edit(*tokens):
        rows = {
            name: np.concatenate([text(own)[name] for own in tokens])
            for name in text(EMPTY)
        }
        how = VIDEO, len(tokens), settings, SamplingInputs(rows)
        return sampling.edit_by_inversion(*tuned, *how)

    both = edit(EMPTY, OTHER)
    alone = np.concatenate([edit(EMPTY), edit(OTHER)])
    np.testing.assert_allclose(both, alone, atol=1e-4)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_progress_counts_the_inversion_then_the_sampling(tuned):
    seen = []
    run = Run(progress=lambda done, total: seen.append((done, total)))
    settings = Settings(12, "ddim", guidance_scale=1.0, clip_x=0.0)
    given = SamplingInputs(text(EMPTY))
    sampling.edit_by_inversion(*tuned, VIDEO, 1, settings, given, run)
    assert seen == [(8, 12), (12, 12)] * 2


def test_a_dropped_text_is_the_empty_one(tuned):
    model, params = tuned
    level = schedules.noise_level_from_angle(jnp.array([0.8]))
    denoise = jax.jit(lambda cond: model.denoiser(params)(VIDEO, level, cond).x)
    cond = model.raw_conditions(text(OTHER))
    dropped, empty = model.unconditional(cond), model.raw_conditions(text(EMPTY))
    np.testing.assert_array_equal(denoise(dropped), denoise(empty))
    assert np.abs(denoise(cond) - denoise(empty)).max() > 0.01
