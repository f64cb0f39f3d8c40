"""Text2Video-Zero against its published program, and laws."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_model
from tests.networks import small_sd
from tests.parity import recorded
from tests.parity.drawn import normal
from vdm_jax import build, runs, sampling
from vdm_jax.conditions.text import Text
from vdm_jax.diffusion import process, schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks.lora import WithLora
from vdm_jax.sampling import SamplingInputs, Settings
from vdm_jax.systems import Request, image_model
from vdm_jax.systems import text2video_zero as t2vz

PIPELINE = recorded.load("text2video_zero_pipeline")
# Rows t0, t1, the published product of 1 - beta, and the ratio of alpha^2.
RATIOS = recorded.load("text2video_zero_renoise")["t0_t1_product_exact"]
PUBLISHED = float(RATIOS[(RATIOS[:, :2] == (881, 941)).all(1)][0, 2])
SETTINGS = Settings(50, "ddim", guidance_scale=7.5, clip_x=0.0)


def to_ours(array):
    """Return an array [b, c, f, h, w] of torch as [b, f, h, w, c]."""
    return np.moveaxis(array, 1, -1)


# --- on arrays ------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(12))
def test_the_warp_is_the_published_one(case):
    """It reads every pixel from where the published program does; ours is its inverse.

    Its motion is that of the place which is read, the content's is minus that.
    """
    path = recorded.FOLDER / "text2video_zero_warp.json"
    row = json.loads(path.read_text())[case]
    height, width = row["height"], row["width"]
    numbers = np.arange(height * width).reshape(1, 1, height, width, 1)
    motion = -row["motion_x"], -row["motion_y"]
    found = t2vz.warp(numbers, motion, row["frame_ids"])[0, ..., 0]
    expected = recorded.load("text2video_zero_warp")[f"source_{case}"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("motion", "size", "place"),
    [((0, -12), 64, (26, 32)), ((-12, 0), 64, (32, 26)), ((12, 0), 64, (32, 38))],
)
def test_a_bright_pixel_moves_in_the_direction_of_motion(motion, size, place):
    """48 of 512 pixels in four frames are 6 of 64: 0,-1 is up, -1,0 to the left."""
    z = np.zeros((1, 1, size, size, 1))
    z[0, 0, 32, 32] = 1
    moved = t2vz.warp(z, motion, [0, 4])[0, ..., 0]
    for frame, (row, column) in zip(moved, ((32, 32), place), strict=True):
        np.testing.assert_array_equal(np.argwhere(frame), [[row, column]])


def test_motion_is_measured_on_each_side_of_a_wide_picture():
    z = np.zeros((1, 1, 64, 96, 1))
    z[0, 0, 32, 48] = 1
    moved = t2vz.warp(z, (-12, 0), [4])[0, 0, ..., 0]
    np.testing.assert_array_equal(np.argwhere(moved), [[32, 39]])


def test_the_noise_that_goes_back_is_the_published_one():
    x, eps = (
        to_ours(normal(f"t2vz/input/{n}", (1, 4, 3, 8, 8))) for n in ("x0", "eps")
    )
    expected = to_ours(recorded.load("text2video_zero_renoise")["renoised"])
    np.testing.assert_allclose(t2vz.renoise(x, eps, PUBLISHED), expected, atol=1e-6)


def test_the_foreground_grows_as_published():
    before, after = (
        PIPELINE[f"masks_{name}"][None, ..., None].astype(bool)
        for name in ("before_dilation", "dilated")
    )
    np.testing.assert_array_equal(t2vz.dilate(before), after)
    assert not np.array_equal(before, after)


# --- the pipeline ---------------------------------------------------------------------


class StandIn(DiffusionModel):
    """A model whose noise is a linear function of z, the first frame and the text."""

    def denoiser(self, params, dropout_key=None):
        def denoise(z, level, cond):
            keep = cond["keep"]["text"][:, None, None]
            text = jnp.where(keep, cond["text"], cond["null_text"]).mean((1, 2))
            t = small_sd.SCHEDULE.timestep(jnp.asarray(level.logsnr))
            eps = (0.5 + t / 2000) * z + 0.25 * jnp.roll(z, 1, 3) - 0.2 * z[:, :1]
            eps = eps + 0.05 * text[:, None, None, None, None]
            return process.from_eps(eps, z, level)

        return denoise


@functools.cache
def loaded(stand_in):
    """Return the recorded network as a trained model, or its linear stand-in."""
    path = recorded.FOLDER / "text2video_zero_attention.json"
    config = json.loads(path.read_text())["config"]["unet"]
    network, encoder = small_sd.build(config)
    rows = (("text", Text(24, 0.1, pooling=False)),)
    encoder = encoder.clone(conditions=rows)
    make = StandIn if stand_in else DiffusionModel
    model = make(
        network, encoder, small_sd.SCHEDULE, small_sd.SCHEDULE, (1, 8, 8, 4),
        conditions=rows, prediction_type="eps",
    )  # fmt: skip
    weights = {} if stand_in else small_sd.torch_weights("t2vz/unet", config)
    params = small_sd.params_of(config, weights) if weights else {}
    return runs.TrainedModel(model, params, None, 0, "")


def text_inputs(**fields):
    """Return the recorded text as conditions: that of the videos, and the empty one."""
    null, text = normal("t2vz/input/text", (2, 5, 24))[:, None]
    mask = np.ones((1, 5), bool)
    cond = {"text": text, "text_mask": mask}
    return SamplingInputs(cond | {"null_text": null, "null_text_mask": mask}, **fields)


def recorded_request(frames, **fields):
    """Return a request that starts from the recorded noise."""
    noise = to_ours(normal("t2vz/input/xT", (1, 4, 1, 8, 8)))
    return Request(1, frames, text_inputs(initial_noise=noise), **fields)


@pytest.fixture
def trace(monkeypatch):
    """Return a function that runs the system as published; it returns its stages.

    ids: numbers of the frames that were recorded.
    """

    def run(ids, scale, options, stand_in, foreground=None):
        frames = ids[-1] + 1
        eps = np.zeros((1, frames - 1, 8, 8, 4), np.float32)
        noise = normal("t2vz/input/renoise", (1, 4, len(ids) - 1, 8, 8))
        eps[:, np.array(ids[1:]) - 1] = to_ours(noise)
        phases, start, found = t2vz.phases, t2vz.start, {}

        def published(*arguments):
            row_1, row_0, ratio = phases(*arguments)
            assert (row_1, row_0) == (2, 5)
            assert ratio == pytest.approx(0.53053363, abs=1e-8)
            return row_1, row_0, PUBLISHED

        def start_and_note(first_1, first_0, *others):
            z = start(first_1, first_0, *others)
            found.update(first_at_t1=first_1, first_at_t0=first_0, all_at_t1=z[:, ids])
            return z

        monkeypatch.setattr(t2vz, "phases", published)
        monkeypatch.setattr(t2vz, "start", start_and_note)
        monkeypatch.setattr(t2vz, "frame_noise", lambda *_: eps)
        settings = dataclasses.replace(SETTINGS, guidance_scale=scale)
        request = recorded_request(frames, foreground=foreground)
        z = t2vz.generate(loaded(stand_in), request, settings, options)
        return found | {"final": z[:, ids]}

    return run


@pytest.mark.parametrize(
    ("name", "ids", "motion", "scale"),
    [
        ("linear", [0, 1, 2, 3], (100, 60), 7.5),
        ("linear_chunk", [0, 7, 8, 9], (12, 12), 7.5),  # ids of two of our chunks
        ("net", [0, 1, 2], (64, 0), 2.0),
    ],
)
def test_the_pipeline_is_the_published_one(trace, name, ids, motion, scale):
    options = t2vz.Options((-motion[0] / 100, -motion[1] / 100), 100.0)
    found = trace(ids, scale, options, name != "net")
    for stage, z in found.items():
        expected = to_ours(PIPELINE[f"{name}/{stage}"])
        limit = 1e-4 * expected.std()
        np.testing.assert_allclose(z, expected, atol=limit, err_msg=stage)


def test_smoothing_is_the_published_one(trace):
    """With masks in place of a detector's; they grow in the system."""
    masks = PIPELINE["masks_before_dilation"][None, ..., None].astype(bool)
    options = t2vz.Options((-1.0, -0.6), 100.0, smooth=0.6)
    found = trace([0, 1, 2, 3], 7.5, options, True, masks)
    for ours, theirs in (("all_at_t1", "smoothed_at_t1"), ("final", "smoothed_final")):
        expected = to_ours(PIPELINE[f"linear/{theirs}"])
        without = to_ours(PIPELINE[f"linear/{ours}"])
        limit = 1e-4 * expected.std()
        np.testing.assert_allclose(found[ours], expected, atol=limit)
        assert abs(without - expected).max() > 1000 * limit


def test_a_foreground_is_found_in_a_first_pass_without_smoothing():
    plain = t2vz.sample(loaded(True), recorded_request(4), SETTINGS)
    seen = []
    masks = PIPELINE["masks_before_dilation"][None, ..., None].astype(bool)

    def find(videos):
        seen.append(videos)
        return masks

    options = t2vz.Options(smooth=0.6)
    requests = (recorded_request(4, foreground=each) for each in (find, masks))
    found, given = (
        t2vz.sample(loaded(True), request, SETTINGS, options) for request in requests
    )
    np.testing.assert_array_equal(found, given)
    np.testing.assert_array_equal(seen, [plain])
    assert not np.array_equal(found, plain)


# --- laws -----------------------------------------------------------------------------


def test_without_strength_all_frames_are_one_before_the_noise(monkeypatch):
    starts = {}
    start = t2vz.start

    def start_without_noise(first_1, first_0, eps, *others):
        starts[others[2].strength] = first_0, start(first_1, first_0, 0 * eps, *others)
        return starts[others[2].strength][1]

    monkeypatch.setattr(t2vz, "start", start_without_noise)
    for strength in (0.0, 100.0):
        options = t2vz.Options(strength=strength)
        t2vz.generate(loaded(True), recorded_request(4), SETTINGS, options)
    (first, still), (_, moved) = starts.values()
    ratio = t2vz.phases(loaded(True).model, SETTINGS, t2vz.Options())[2]
    np.testing.assert_allclose(still[:, 1:], np.repeat(first, 3, 1) * ratio**0.5, 1e-6)
    assert abs(moved[:, 1:] - still[:, 1:]).max() > 0.1


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_the_first_frame_is_the_picture_of_that_seed(sampler):
    """Of the network with ddim, and of a sampler that draws noise by the stand-in."""
    trained = loaded(sampler != "ddim")
    settings = dataclasses.replace(SETTINGS, sampler=sampler, guidance_scale=2.0)
    inputs = text_inputs()
    video = t2vz.generate(trained, Request(1, 3, inputs, seed=5), settings)
    run = sampling.Run(5)
    model, params = trained.model, trained.params
    picture = sampling.generate(model, params, 1, settings, inputs, run)
    limit = 1e-4 * picture.std()
    np.testing.assert_allclose(video[:, :1], picture, atol=limit)
    assert abs(video[:, 1:] - picture).max() > 1000 * limit


def test_the_length_of_a_chunk_changes_no_frame(monkeypatch):
    """With a sampler that draws noise of its own, the same in all frames."""
    made, settings = [], dataclasses.replace(SETTINGS, sampler="ancestral")
    for chunk in (8, 3):
        monkeypatch.setattr(t2vz, "CHUNK", chunk)
        done = []
        inputs = text_inputs()
        video = t2vz.generate(
            loaded(True), Request(2, 8, inputs, seed=1), settings,
            progress=lambda *steps, done=done: done.append(steps),
        )  # fmt: skip
        made.append(video)
        parts = {total for _, total in done}
        assert parts == {5 + 48 * (1 if chunk == 8 else 4)}
        assert done == sorted(done) and done[-1][0] == done[-1][1]
    np.testing.assert_allclose(*made, atol=1e-5 * made[0].std())
    one = t2vz.generate(loaded(True), Request(2, 1, inputs, seed=1), settings)
    np.testing.assert_allclose(one, made[0][:, :1], atol=1e-5 * one.std())


def test_a_video_is_decided_by_the_seed_and_its_number():
    """Not by the videos that are made with it."""
    inputs, options = text_inputs(), t2vz.Options()
    two, second, other = (
        t2vz.generate(loaded(True), Request(inputs=inputs, **fields), SETTINGS, options)
        for fields in (
            {"num": 2, "num_frames": 8, "seed": 1},
            {"num": 1, "num_frames": 8, "seed": 1, "first_video": 1},
            {"num": 1, "num_frames": 8, "seed": 2, "first_video": 1},
        )
    )
    limit = 1e-5 * two.std()
    np.testing.assert_allclose(second, two[1:], atol=limit)
    assert abs(other - second).max() > 1000 * limit
    assert abs(two[0] - two[1]).max() > 1000 * limit


def test_frames_read_the_first_frame_of_their_own_video_alone():
    """Changing it changes the last one; another frame or video changes none."""
    config = small_model.sd_config()
    config.diffusion.update(small_model.DISCRETE)
    model = image_model.with_frames(build.build_model(config), 4, frame_reads="first")
    rng, like = (
        np.random.default_rng(0),
        jax.eval_shape(model.init_params, jax.random.key(0)),
    )
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape), like)
    text = normal("text", (2, 5, 24))
    arrays = {"text": text, "text_mask": np.ones((2, 5), bool)}
    cond = arrays | model.raw_conditions(arrays)
    level = schedules.noise_level(model.schedule, np.array(0.5))
    denoise = jax.jit(lambda z: model.denoiser(params)(z, level, cond).x)
    z = normal("frames", (2, 4, 8, 8, 3))
    before = denoise(z)
    for frame, video, reads in ((0, 0, True), (2, 0, False), (0, 1, False)):
        changed = z.copy()
        changed[video, frame] += 1
        same = np.array_equal(denoise(changed)[0, 3], before[0, 3])
        assert same != reads, (frame, video)


def test_a_lora_that_is_not_merged_keeps_its_network():
    model = loaded(False).model
    model = dataclasses.replace(model, network=WithLora(model.network))
    image_model.check_image_model(model, "x")
    video = image_model.with_frames(model, 3, frame_reads="first")
    assert video.network.network.spec.frame_reads == "first"
    assert video.shape == (3, 8, 8, 4)


# --- what is refused ------------------------------------------------------------------


def test_other_models_are_refused():
    every = (
        "kind='sd', diffusion.schedule='discrete', video.frames=1, "
        "conditioning.frame_index_embedding=False$"
    )
    others = {
        every: small_model.smoke_config(),
        "has not diffusion.schedule='discrete'$": small_model.sd_config(),
    }
    for message, config in others.items():
        trained = runs.TrainedModel(build.build_model(config), {}, config, 0, "")
        with pytest.raises(UserError, match=message):
            t2vz.generate(trained, Request(), SETTINGS)


@pytest.mark.parametrize(
    ("options", "foreground", "changes", "message"),
    [
        ({"smooth": 0.6}, None, {}, "needs --mask=FILE"),
        ({}, np.ones((1, 1, 8, 8, 1), bool), {}, "at 0 it reads none"),
        ({"smooth": 0.6}, np.ones((1, 3, 8, 8, 1), bool), {}, r"\[videos, 1 or 2, 8"),
        ({"t0": 941, "t1": 881}, None, {}, "that of t1 must be the higher"),
        ({}, None, {"steps": 10}, "steps=10 the nearest steps start at 901 and 901"),
        ({}, None, {"steps": 0}, "steps=0"),
        ({}, None, {"guidance_schedule": "frames:2"}, "frames:2' is of all frames"),
        ({}, None, {"cfg_mode": "rescaled"}, "cfg_mode='rescaled' is of all frames"),
        ({}, None, {"dynamic_threshold": 99.0}, "dynamic_threshold=99.0 is of all"),
    ],
)
def test_what_does_not_fit_is_one_line(options, foreground, changes, message):
    request = recorded_request(2, foreground=foreground)
    settings = dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(UserError, match=message):
        t2vz.generate(loaded(True), request, settings, t2vz.Options(**options))
