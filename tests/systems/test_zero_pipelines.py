"""Text2Video-Zero against diffusers' pipelines, by text and by controls."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.networks import small_control
from tests.parity import recorded, zero_cases
from tests.parity.pipeline_cases import PROMPT, noise, write_pipeline
from vdm_jax import cascade, controls, runs
from vdm_jax.sampling import SamplingInputs
from vdm_jax.systems import Request, image_model
from vdm_jax.systems import text2video_zero as t2vz

RECORDED = recorded.load("text2video_zero_diffusers")
# Rows t0, t1, the product of 1 - beta of diffusers and of the published program, ratio.
RATIOS = recorded.load("text2video_zero_renoise")["t0_t1_product_exact"]
PUBLISHED = float(RATIOS[(RATIOS[:, :2] == (881, 941)).all(1)][0, 2])


def to_ours(array):
    """Return frames [f, c, h, w] of torch as a video [1, f, h, w, c]."""
    return np.moveaxis(array, 1, -1)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "sd")


def prepare(folder, run):
    """Return the model, its settings and the conditions of a run."""
    changes = {"steps": zero_cases.STEPS[run], "guidance_scale": zero_cases.SCALE}
    read = cascade.read_model(folder).with_sampling(changes)
    cond, _ = cascade.encode_conditions(read, 1, prompts=[PROMPT])
    return runs.load(folder), read.stages[0].settings, cond


def test_it_is_the_text_to_video_zero_pipeline(folder, monkeypatch):
    """diffusers names the place that is read; the content moves by minus that."""
    loaded, settings, cond = prepare(folder, "text")
    phases, eps = t2vz.phases, to_ours(zero_cases.eps())
    monkeypatch.setattr(t2vz, "phases", lambda *a: (*phases(*a)[:2], PUBLISHED))
    monkeypatch.setattr(t2vz, "frame_noise", lambda *_: eps)
    inputs = SamplingInputs(cond, initial_noise=to_ours(noise()))
    request = Request(1, zero_cases.FRAMES["text"], inputs)
    expected = to_ours(RECORDED["text"])
    limit = 1e-3 * expected.std()

    def made(sign):
        x, y = zero_cases.MOTION
        options = t2vz.Options((sign * x / 64, sign * y / 64), strength=64.0)
        return t2vz.generate(loaded, request, settings, options)

    np.testing.assert_allclose(made(-1), expected, atol=limit)
    assert abs(made(1) - expected).max() > 100 * limit


def write_control(path):
    """Write the drawn ControlNet as a folder of diffusers."""
    config = zero_cases.control_config()
    weights = small_control.torch_weights(zero_cases.CONTROL, config)
    path.mkdir()
    config["_class_name"] = "ControlNetModel"
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return path


def test_in_the_controlnet_too_frames_read_the_first(folder, tmp_path, monkeypatch):
    """diffusers with cross-frame attention in its U-Net and in its ControlNet."""
    loaded, settings, cond = prepare(folder, "controls")
    control = write_control(tmp_path / "control")
    own = controls.read(control, loaded.model, loaded.config)
    loaded = controls.apply(loaded, [own])
    cond |= {"control_0": 2 * to_ours(zero_cases.hints()) - 1}
    inputs = SamplingInputs(cond, initial_noise=to_ours(noise()))
    request = Request(1, zero_cases.FRAMES["controls"], inputs)
    expected = to_ours(RECORDED["controls"])
    limit = 1e-3 * expected.std()
    found = t2vz.generate(loaded, request, settings)
    np.testing.assert_allclose(found, expected, atol=limit)

    def reads_own(model, frames, control_reads, **network):
        return image_model.with_frames(model, frames, **network)

    monkeypatch.setattr(t2vz, "with_frames", reads_own)
    other = t2vz.generate(loaded, request, settings)
    assert abs(other - expected).max() > 20 * limit
