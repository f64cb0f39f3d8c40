"""A folder of Wan 2.1 as a workdir: it samples what diffusers samples with it."""

import numpy as np
import pytest

from tests.networks.small_wan import to_ours
from tests.parity.wan_pipeline_cases import (
    ARRAYS,
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    RECORDED_FRAMES,
    RUNS,
    SCALE,
    STEPS,
    WIDTH,
    noise,
    write_pipeline,
)
from vdm_jax import build, cascade, runs, sampling

RECORDED = np.load(ARRAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "wan")


def small(config):
    """Return the model of a config for the recorded size."""
    config.video.update(frames=FRAMES, height=HEIGHT, width=WIDTH)
    return build.build_model(config)


@pytest.mark.parametrize("run", RUNS)
def test_it_samples_the_video_of_diffusers(tmp_path, run):
    """UniPC and Euler, from the same noise, with guidance, without and with negative."""
    own = write_pipeline(tmp_path, run)
    read, negative = cascade.read_model(own), RUNS[run][2]
    cond, negatives = cascade.encode_conditions(
        read, 1, prompts=[PROMPT], negative_prompt=negative
    )
    assert (negatives is None) == (negative != NEGATIVE)
    loaded = runs.load(own)
    model = small(loaded.config)
    settings = read.stages[0].with_settings(steps=STEPS).settings
    assert settings.guidance_scale == SCALE
    inputs = sampling.SamplingInputs(cond, negatives, initial_noise=to_ours(noise()))
    z = sampling.generate(model, loaded.params, 1, settings, inputs)
    expected = to_ours(RECORDED[f"{run}/latents"])
    error = np.abs(z - expected).max() / expected.std()
    print(run, error)
    assert error < 1e-3
    video = sampling.decode(model, loaded.params, z)[0, RECORDED_FRAMES]
    np.testing.assert_allclose(video / 2 + 0.5, RECORDED[f"{run}/frames"], atol=1e-3)
