"""What holds for every system on an image model, and for a ControlNet alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_model
from tests.test_meshes import call
from vdm_jax import build, controls, runs, sampling, trees
from vdm_jax.diffusion import schedules
from vdm_jax.sampling import SamplingInputs, Settings
from vdm_jax.systems import Request, control_video, image_model, text2video_zero

FRAMES = 4
SETTINGS = Settings(6, "ddim", clip_x=0.0, guidance_scale=3.0)
OPTIONS = {
    "text2video_zero": text2video_zero.Options(t1=831, t0=665),
    "control_video": control_video.Options(together=3),
}
TUNED = dict(temporal="tune", frame_reads="previous", joint_norms=True)


def loaded(folder, is_controlled, dtype="float32", frames=1, **network):
    """Return a small image model; with the ControlNet that it writes to a folder.

    frames, network: of a video model made from it, as TUNED.
    """
    config = small_model.controlled_config()
    config.network.update(network)
    config.video.frames = frames
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
    if case == "tune_a_video":
        trained = loaded(folder, False, dtype, FRAMES, **TUNED)
        given = inputs(num=num, is_null=is_null)
        return sampling.generate(trained.model, trained.params, num, settings, given)
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
    "tune_a_video",
)  # fmt: skip


@pytest.mark.parametrize("case", ["text2video_zero", "control_video", "tune_a_video"])
def test_with_its_temporal_part_off_it_is_the_image_model(case, tmp_path, x64):
    """Off: frames read themselves, norms are of each frame, new attention adds 0.

    In float64, but for the order in which a product of another shape is summed.
    """
    frames, num = FRAMES if case == "control_video" else 0, 2
    image = loaded(tmp_path, bool(frames))
    model, params = image.model, image.params
    own = dict(frame_reads="own", joint_norms=False)
    video = image_model.with_frames(model, FRAMES, **own), params
    if case == "tune_a_video":
        tuned = loaded(None, False, frames=FRAMES, **TUNED | own)
        leaves = trees.named_leaves(tuned.params)
        off = [0 * x if "/time_attention/out/" in n else x for n, x in leaves.items()]
        leaves = dict(zip(leaves, off, strict=True)) | trees.named_leaves(params)
        structure = jax.tree.structure(tuned.params)
        video = tuned.model, jax.tree.unflatten(structure, leaves.values())
    conditions = inputs(frames, num).cond
    z = np.random.default_rng(0).normal(size=(num, FRAMES, 8, 8, 3))
    level = schedules.noise_level(model.schedule, np.array(0.5))

    @functools.partial(jax.jit, static_argnums=0)
    def denoise(model, params, z, conditions):
        params = jax.tree.map(jnp.float64, params)
        cond = conditions | model.raw_conditions(conditions)
        return model.denoiser(params)(z, level, cond).x

    def each(array):  # frames as videos of one
        alone = array.shape[1:2] == (FRAMES,)
        rows = array if alone else array[:, None].repeat(FRAMES, 1)
        return rows.reshape(num * FRAMES, *([1] * alone), *rows.shape[2:])

    found = denoise(*video, z, conditions)
    pictures = {name: each(array) for name, array in conditions.items()}
    expected = denoise(model, params, each(z), pictures)
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found.reshape(expected.shape), expected, rtol=0, atol=1e-12
    )


def test_controls_decide_the_frames_of_text2video_zero(tmp_path):
    """In another order they give the video in that order, and equal ones a still."""
    trained = loaded(tmp_path, True)
    given, order = inputs(FRAMES), [0, 3, 1, 2]

    def video(frames):
        controls = given.cond["control_0"][:, frames]
        new = dataclasses.replace(given, cond=given.cond | {"control_0": controls})
        request = Request(1, FRAMES, new)
        options = text2video_zero.Options()
        return text2video_zero.generate(trained, request, SETTINGS, options)[0]

    frames = video(slice(None))
    scale = frames.std()
    np.testing.assert_allclose(video(order), frames[order], atol=1e-4 * scale)
    assert np.abs(frames[1] - frames[2]).max() > 0.1 * scale
    still = video([0] * FRAMES)
    np.testing.assert_allclose(still, still[:1].repeat(FRAMES, 0), atol=1e-4 * scale)
    np.testing.assert_allclose(still[0], frames[0], atol=1e-4 * scale)
    picture = inputs(1)
    picture.cond["control_0"] = given.cond["control_0"][:, :1]
    how = trained.model, trained.params, 1, SETTINGS, picture
    alone = sampling.generate(*how)[0, 0]
    np.testing.assert_allclose(still[0], alone, atol=1e-4 * scale)


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
