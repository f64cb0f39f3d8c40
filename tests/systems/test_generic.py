"""What holds for every system that has ControlNets, and for a ControlNet alone."""

import dataclasses

import numpy as np
import pytest

from tests import small_model
from tests.test_meshes import call
from vdm_jax import build, controls, runs, sampling
from vdm_jax.sampling import SamplingInputs, Settings
from vdm_jax.systems import Request, control_video, text2video_zero

FRAMES = 4
SETTINGS = Settings(6, "ddim", clip_x=0.0, guidance_scale=3.0)
OPTIONS = {
    "text2video_zero": text2video_zero.Options(t1=831, t0=665),
    "control_video": control_video.Options(together=3),
}


def loaded(folder, is_controlled, dtype="float32"):
    """Return a small image model; with the ControlNet that it writes to a folder."""
    config = small_model.controlled_config()
    params = small_model.random_params(build.build_model(config), 0)
    config.network["dtype"] = dtype
    image = runs.TrainedModel(build.build_model(config), params, config, 0, "0")
    if not is_controlled:
        return image
    small_model.write_controlnet(folder, image)
    return controls.apply(image, [controls.read(folder, image.model, config)])


def inputs(frames=0, num=1, is_null=False):
    """Return texts and, of so many frames, controls; is_null: the empty text."""
    rng = np.random.default_rng(0)
    null, text = rng.normal(size=(2, 1, 3, 24)).astype(np.float32)
    mask = np.ones((num, 3), bool)
    text, null = (np.repeat(array, num, 0) for array in (text, null))
    cond = {"text": null if is_null else text, "text_mask": mask}
    cond |= {"null_text": null, "null_text_mask": mask}
    if frames:
        cond["control_0"] = rng.uniform(-1, 1, (num, frames, 8, 8, 3))
    return SamplingInputs(cond)


def sample(case, folder, dtype="float32", settings=SETTINGS, num=1, is_null=False):
    """Return z of the videos of a case of CASES."""
    trained = loaded(folder, case != "text2video_zero", dtype)
    if case == "controlnet":
        given = inputs(1, num, is_null)
        return sampling.generate(trained.model, trained.params, num, settings, given)
    name, _, with_controls = case.partition(" ")
    system = {"text2video_zero": text2video_zero, "control_video": control_video}[name]
    frames = FRAMES if trained.model.video_conditions else 0
    request = Request(num, FRAMES, inputs(frames, num, is_null))
    options = system.Options() if with_controls else OPTIONS[name]
    return system.generate(trained, request, settings, options)


CASES = (
    "text2video_zero", "text2video_zero with controls", "control_video", "controlnet",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_it_is_nearly_the_same(case, tmp_path):
    whole, half = (sample(case, tmp_path, dtype) for dtype in ("float32", "bfloat16"))
    assert half.dtype == whole.dtype == np.float32
    error = np.abs(half - whole).max() / whole.std()
    assert 1e-4 < error < 0.2


@pytest.mark.parametrize("case", CASES)
def test_the_empty_text_is_no_text(case, tmp_path):
    """With it both branches of guidance are one, so the scale changes nothing."""
    plain, other = (
        [
            sample(case, tmp_path, settings=settings, is_null=is_null)
            for settings in (SETTINGS, dataclasses.replace(SETTINGS, guidance_scale=1))
        ]
        for is_null in (True, False)
    )
    np.testing.assert_allclose(*plain, atol=1e-4 * plain[0].std())
    assert abs(other[0] - other[1]).max() > 0.1 * other[0].std()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_sample_as_one(case, tmp_path):
    """Eight videos, of float64 on eight devices and on one."""
    found = []
    for devices in (1, 8):
        out = tmp_path / f"{devices}.npy"
        call(
            devices, True, "-c",
            "import jax, numpy as np; from pathlib import Path;"
            f"assert jax.device_count() == {devices};"
            "from tests.systems.test_generic import sample;"
            f"made = sample({case!r}, Path({str(tmp_path)!r}) / 'control', num=8);"
            f"np.save({str(out)!r}, made)",
        )  # fmt: skip
        found.append(np.load(out))
    assert found[0].dtype == np.float64 and len(found[0]) == 8
    np.testing.assert_allclose(*found, atol=1e-9)
