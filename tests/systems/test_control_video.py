"""ControlVideo against its published program, and laws."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sprites
from tests.networks import small_control, small_sd
from tests.networks.test_control import two_dimensional
from tests.parity import recorded
from tests.parity.drawn import normal
from vdm_jax import build, runs, sampling
from vdm_jax.codec import Codec
from vdm_jax.conditions.hint import Hint
from vdm_jax.conditions.text import Text
from vdm_jax.diffusion import key_frames, process, schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.networks.control import Controlled
from vdm_jax.sampling import SamplingInputs, Settings, batches
from vdm_jax.systems import Request
from vdm_jax.systems import control_video as cv
from vdm_jax.systems.image_model import with_frames

SETTINGS = Settings(4, "ddim", guidance_scale=3.0, clip_x=0.0)
# The recorded run smooths in its steps 1 and 2.
RECORDED = cv.Options(together=64, smooth_steps=2, smooth_start=0.25)
NO_SMOOTHING = cv.Options(smooth_steps=0)


def to_ours(array):
    """Return an array [..., c, f, h, w] of torch as [..., f, h, w, c]."""
    return np.moveaxis(array, -4, -1)


# --- frames ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [5, 6, 7, 8])
@pytest.mark.parametrize("step", [0, 1])
def test_frames_are_interpolated_from_the_published_neighbours(frames, step):
    name = f"{('even', 'odd')[step]}_{frames}_matrix"
    expected = recorded.load("controlvideo_smoother")[name]
    found = np.eye(frames)[cv.neighbours(frames, step)].mean(axis=1)
    np.testing.assert_array_equal(found, expected)


def windows():
    """Return the recorded plans by (frames, window)."""
    text = (recorded.FOLDER / "controlvideo_windows.json").read_text()
    return {tuple(map(int, k.split(","))): row for k, row in json.loads(text).items()}


@pytest.mark.parametrize("case", windows())
def test_key_frames_are_the_published_ones(case):
    frames, window = case
    plan = key_frames.make_plan(frames, 64, window)
    row = windows()[case]
    assert list(plan.keys) == row["keys"]
    assert [list(gap[1:-1]) for gap in plan.gaps] == row["inner"]


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 32, 33, 128, 1000])
def test_every_frame_is_predicted_once_and_no_call_has_more_frames(frames):
    plan = key_frames.make_plan(frames, 9)
    inner = [frame for gap in plan.gaps for frame in gap[1:-1]]
    assert sorted([*plan.keys, *inner]) == list(range(frames))
    assert max(map(len, [plan.keys, *plan.gaps])) <= 9
    for left, *middle, right in plan.gaps:
        at = plan.keys.index(left)
        assert right == plan.keys[at + 1]
        assert all(left < frame < right for frame in middle)


def test_a_video_of_few_frames_is_denoised_together():
    assert key_frames.make_plan(9, 9) == (tuple(range(9)), ())
    # floor(sqrt(32)) = 5, as published: every fourth frame, and the last.
    assert key_frames.make_plan(32, 9).keys == (0, 4, 8, 12, 16, 20, 24, 28, 31)
    assert key_frames.make_plan(128, 9).keys == (*range(0, 127, 16), 127)


# --- the whole sampler ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Blocks(Codec):
    """The recorded codec: a matrix to blocks of 8 x 8 pixels, and one back."""

    limit: float | None = None

    def z_shape(self, video_shape):
        frames, height, width, _ = video_shape
        return frames, height // 8, width // 8, 4

    def encode(self, video, params=None, key=None):
        b, f, h, w, c = video.shape
        means = video.reshape(b, f, h // 8, 8, w // 8, 8, c).mean((3, 5))
        return means @ normal("cv/vae/encode", (4, 3)).T / 3**0.5

    def decode(self, z, params=None):
        pixels = z @ normal("cv/vae/decode", (3, 4)).T / 2
        return pixels.repeat(8, 2).repeat(8, 3)


@functools.cache
def loaded(frames=1):
    """Return the recorded image model with its ControlNet."""
    unet = two_dimensional("controlvideo_unet", "unet")
    control = two_dimensional("controlvideo_controlnet", "")
    network, encoder = small_sd.build(unet)
    params = small_sd.params_of(unet, small_sd.torch_weights("cv/unet", unet))
    own = small_control.drawn_params("cv/controlnet", control)
    params["network"] = {**params["network"], "control_0": own}
    network = Controlled(network, (small_control.build(control),))
    video_shape = (frames, 64, 64, 3)
    rows = (("text", Text(24, 0.1, pooling=False)), ("control_0", Hint(video_shape)))
    model = DiffusionModel(
        network, encoder.clone(conditions=rows), small_sd.SCHEDULE, small_sd.SCHEDULE,
        video_shape, Blocks(), rows, "eps",
    )  # fmt: skip
    return runs.TrainedModel(model, params, None, 0, "")


def request(frames, controls=None, **fields):
    """Return the recorded request; controls: others, [1, frames, 64, 64, 3]."""
    if controls is None:
        drawn = [normal(f"cv/input/control_{i}", (1, 3, 64, 64)) for i in range(frames)]
        controls = np.moveaxis(np.stack(drawn, 1), 2, -1)
    noise = to_ours(normal("cv/input/noise", (1, 4, 1, 8, 8)))
    texts = [normal(f"cv/input/{name}", (1, 5, 24)) for name in ("prompt", "negative")]
    mask = np.ones((1, 5), bool)
    cond, negative = ({"text": text, "text_mask": mask} for text in texts)
    null = {"null_text": 0 * texts[0], "null_text_mask": mask}
    cond |= {"control_0": 2 * controls - 1, **null}
    inputs = SamplingInputs(cond, {**negative, **null}, initial_noise=noise)
    return Request(1, frames, inputs, **fields)


def generate(frames, options, controls=None, settings=SETTINGS, **fields):
    return cv.generate(loaded(), request(frames, controls), settings, options, **fields)


def assert_published(monkeypatch, frames, name, steps=(1, 2, 3, 4)):
    """Compare z after these steps with the recorded one, whose middle is unchanged."""
    expected = to_ours(
        recorded.load("controlvideo_sampler")[f"{name}_middle_unchanged"]
    )
    assert len(expected) == SETTINGS.steps
    plain = sampling.generate
    for step in steps:
        z = expected[step - 1]

        def part(*arguments, step=step):
            run = dataclasses.replace(arguments[-1], rows=(0, step))
            return plain(*arguments[:-1], run)

        with monkeypatch.context() as patch:
            patch.setattr(sampling, "generate", part)
            found = generate(frames, RECORDED)
        np.testing.assert_allclose(found, z, atol=2e-4 * z.std(), err_msg=f"{step}")
    return expected[-1]


@pytest.mark.parametrize("frames", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_a_short_video_is_the_published_one(frames, monkeypatch):
    expected = assert_published(monkeypatch, frames, f"short_{frames}")
    wrong = generate(frames, dataclasses.replace(RECORDED, smooth_start=0.5))
    assert abs(wrong - expected).max() > 0.02 * expected.std()


def test_a_long_video_is_the_published_one(monkeypatch):
    """Gaps read a key frame and their last inner frame there, both key frames here."""
    row = windows()[9, 4]
    gaps = tuple(map(tuple, row["network_inputs"]))
    plan = key_frames.Plan(tuple(row["keys"]), gaps)
    ours = generate(9, dataclasses.replace(RECORDED, window=4))
    published = functools.partial(key_frames.denoise_by_key_frames, kept=slice(2, None))
    monkeypatch.setattr(cv, "denoise_by_key_frames", published)
    monkeypatch.setattr(cv, "make_plan", lambda *_: plan)
    expected = assert_published(monkeypatch, 9, "long_9_window_4", steps=(4,))
    assert abs(ours - expected).max() > 0.02 * expected.std()


# --- laws -----------------------------------------------------------------------------


def test_a_static_video_is_the_picture():
    """Equal controls give equal frames, those of the image model, by key frames too."""
    model, params = loaded().model, loaded().params
    still = np.repeat(request(1).inputs.cond["control_0"], 7, axis=1) / 2 + 0.5
    picture = sampling.generate(model, params, 1, SETTINGS, request(1).inputs)
    found = generate(7, cv.Options(together=3, smooth_steps=0), still)
    expected = np.broadcast_to(picture, found.shape)
    np.testing.assert_allclose(found, expected, atol=2e-4 * picture.std())


def test_without_joint_norms_frames_that_read_themselves_are_pictures(monkeypatch):
    """By the U-Net and its ControlNet; with joint norms they depend on each other."""
    controls = request(2).inputs.cond["control_0"] / 2 + 0.5
    model, params = loaded().model, loaded().params
    pictures = [
        sampling.generate(model, params, 1, SETTINGS, request(1, own).inputs)[:, 0]
        for own in (controls[:, :1], controls[:, 1:])
    ]

    def reading_own(*arguments, **network):
        return with_frames(*arguments, **network | {"frame_reads": "own"})

    monkeypatch.setattr(cv, "with_frames", reading_own)
    apart, joint = (
        generate(2, dataclasses.replace(NO_SMOOTHING, joint_norms=on))
        for on in (False, True)
    )
    limit = 2e-4 * apart.std()
    np.testing.assert_allclose(apart, np.stack(pictures, axis=1), atol=limit)
    assert abs(joint - apart).max() > 100 * limit


def test_frames_in_another_order_give_the_video_in_that_order():
    order = np.array([2, 0, 4, 1, 3])
    controls = request(5).inputs.cond["control_0"] / 2 + 0.5
    found = generate(5, NO_SMOOTHING, controls[:, order])
    expected = generate(5, NO_SMOOTHING)[:, order]
    np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std())
    assert abs(found - expected[:, order]).max() > 0.01


def themselves(frames, step):
    """Return `neighbours` that are the frame itself."""
    return np.arange(frames)[:, None].repeat(2, axis=1)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_frames_from_themselves_are_a_round_trip_of_the_codec(frames, monkeypatch):
    x = jnp.asarray(normal("x", (2, frames, 8, 8, 4)))
    codec = Blocks()
    smoother = cv.Smoother(codec, (0,))
    expected = codec.encode(jnp.clip(codec.decode(x), -1, 1))
    for parity in (0, 1):
        usual = smoother.smooth(x, jnp.array(parity), None)
        with monkeypatch.context() as patch:
            patch.setattr(cv, "neighbours", themselves)
            found = smoother.smooth(x, jnp.array(parity), None)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        left, right = cv.neighbours(frames, parity).T
        assert (abs(usual - expected).max() > 0.1) == (left != right).any()


class Lossless(Blocks):
    """A codec whose pixels are z, small enough that none is clipped."""

    def encode(self, video, params=None, key=None):
        return video[:, :, ::8, ::8] * 1024

    def decode(self, z, params=None):
        return (z / 1024).repeat(8, 2).repeat(8, 3)


def test_smoothing_from_themselves_by_a_lossless_codec_is_none(monkeypatch):
    """Whole runs, whose frames differ."""
    own = loaded()
    own = own._replace(model=dataclasses.replace(own.model, codec=Lossless()))
    monkeypatch.setattr(sys.modules[__name__], "loaded", lambda: own)
    plain = generate(5, NO_SMOOTHING)
    monkeypatch.setattr(cv, "neighbours", themselves)
    jax.clear_caches()  # a compiled program does not depend on what is replaced
    found = generate(5, RECORDED)
    np.testing.assert_allclose(found, plain, atol=1e-5 * plain.std())
    assert abs(plain[:, 1:] - plain[:, :-1]).max((2, 3, 4)).min() > 0.1


def test_the_interpolator_is_called_with_neighbours_and_may_be_another():
    """The left of two frames moves every frame that is replaced by one."""
    x = np.arange(6.0, dtype=np.float32).reshape(1, 6, 1, 1, 1) / 6
    smoother = cv.Smoother(Codec(), (0,), lambda left, right: left)
    for parity, expected in ((0, [0, 0, 2, 2, 4, 5]), (1, [0, 1, 1, 3, 3, 5])):
        found = smoother.smooth(jnp.asarray(x), jnp.array(parity), None)
        np.testing.assert_allclose(found.ravel() * 6, expected, atol=1e-6)


def test_two_videos_and_their_numbers():
    """A video is decided by the seed and its number, not by those made with it."""
    settings = dataclasses.replace(SETTINGS, steps=2)
    cond = request(4).inputs.cond
    made = [
        cv.generate(loaded(), Request(inputs=SamplingInputs(cond), **fields), settings)
        for fields in (
            {"num": 2, "num_frames": 4, "seed": 1},
            {"num": 1, "num_frames": 4, "seed": 1, "first_video": 1},
        )
    ]
    limit = 2e-4 * made[0].std()
    np.testing.assert_allclose(made[1], made[0][1:], atol=limit)
    assert abs(made[0][0] - made[0][1]).max() > 100 * limit


def test_a_call_sees_the_controls_of_its_own_frames():
    """What is predicted of a frame is by its control, in a gap as of key frames."""
    model = cv.video_model(loaded().model, 5, cv.Options(together=3))
    assert model.plan == ((0, 2, 4), ((0, 1, 2), (2, 3, 4)))
    level = schedules.noise_level(model.schedule, np.array(0.5))

    def part(of):
        def denoise(z, level, conds):
            means = conds[0]["control_0"].mean((2, 3, 4), keepdims=True)
            return process.from_x(0 * z + means, z, level)

        return denoise

    controls = np.arange(5.0).reshape(1, 5, 1, 1, 1) * np.ones((1, 5, 64, 64, 3))
    z = jnp.zeros((1, *model.shape))
    cond = {"control_0": jnp.asarray(controls)}
    found = model.in_calls(part)(z, level, (cond, cond)).x
    np.testing.assert_allclose(found[0, :, 0, 0, 0], np.arange(5))


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"window": 2}, {}, "window=2: 0, or 3 and more"),
        ({}, {"guidance_schedule": "frames:1"}, "frames:1' is of all frames"),
        ({}, {"cfg_mode": "projected"}, "cfg_mode='projected' is of all frames"),
        ({"smooth_start": 1.0}, {}, "smooth_start=1.0: no step of 4 is left"),
    ],
)
def test_what_does_not_fit_is_refused(options, settings, message):
    settings = dataclasses.replace(SETTINGS, **settings)
    with pytest.raises(UserError, match=message):
        generate(4, cv.Options(**options), settings=settings)


def test_a_model_without_controls_is_refused():
    model = loaded().model
    rows = model.conditions[:1]
    plain = dataclasses.replace(
        model, network=model.network.unet, conditions=rows,
        conditioning_encoder=model.conditioning_encoder.clone(conditions=rows),
    )  # fmt: skip
    with pytest.raises(UserError, match="--control=CLIP --controlnet=FOLDER"):
        cv.check_request(plain, Request(), SETTINGS, cv.Options())


@pytest.mark.slow
def test_temporaries_do_not_grow_with_the_length(monkeypatch):
    """Of the compiled programs of configs/sprites.py with a ControlNet, guided."""
    config = sprites.get_config().unlock()
    config.control = {"kinds": ("luma",), "hint_channels": (16, 32, 96)}
    model = build.build_model(config)
    like = jax.eval_shape(model.init_params, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), like)
    params |= {"codec": model.codec.load_params()}
    trained = runs.TrainedModel(model, params, config, 0, "")
    sizes = []

    def measure(*arguments, program):
        compiled = run_steps.lower(*arguments, program=program).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        return arguments[3]

    run_steps = batches.run_steps
    monkeypatch.setattr(batches, "run_steps", measure)
    text, mask = np.zeros((1, 8, 384), np.float32), np.ones((1, 8), bool)
    for frames in (32, 128):
        controls = np.zeros((1, frames, 64, 64, 3), np.float32)
        cond = {"text": text, "text_mask": mask, "control_0": controls}
        given = Request(1, frames, SamplingInputs(cond))
        cv.generate(trained, given, SETTINGS)
    assert len(sizes) == 2  # a program of each length; the decoder's is of one chunk
    assert 1e6 < sizes[1] < 1.1 * sizes[0]
