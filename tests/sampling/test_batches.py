"""Sampling through the real model: the same video however it is batched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.change import change
from vdm_jax import sampling
from vdm_jax.diffusion import process
from vdm_jax.errors import UserError
from vdm_jax.sampling import program


def draw(trained, num=3, **settings):
    model, params = trained
    labels = np.array([[0, 1], [2, 0], [1, -1]], np.int32)[:num]
    options = {k: settings.pop(k) for k in ("seed", "progress") if k in settings}
    settings = {"steps": 4, "guidance_scale": 2.0, "batch_size": 3} | settings
    settings = {"sampler": "ddim"} | settings
    settings = sampling.Settings(**settings)
    inputs = sampling.SamplingInputs({"label": labels})
    return sampling.sample(
        model, params, num, settings, inputs, sampling.Run(**options)
    )


def test_a_video_does_not_depend_on_its_batch(trained):
    whole = draw(trained)
    assert whole.shape == (3, *trained[0].shape)
    np.testing.assert_allclose(draw(trained, batch_size=2), whole, atol=1e-4)
    np.testing.assert_allclose(draw(trained, batch_size=1), whole, atol=1e-4)


def test_ancestral_noise_does_not_depend_on_the_batch_either(trained):
    whole = draw(trained, sampler="ancestral", ancestral_gamma=0.5)
    split = draw(trained, sampler="ancestral", ancestral_gamma=0.5, batch_size=2)
    np.testing.assert_allclose(split, whole, atol=1e-4)


def test_seeds_and_videos_differ(trained):
    a, b = draw(trained, seed=0), draw(trained, seed=1)
    assert abs(a - b).mean() > 0.01
    model, params = trained
    same_label = np.zeros((2, 2), np.int32)
    settings = sampling.Settings(sampler="ddim", steps=2, batch_size=2)
    inputs = sampling.SamplingInputs({"label": same_label})
    pair = sampling.sample(model, params, 2, settings, inputs)
    assert abs(pair[0] - pair[1]).mean() > 0.01


def test_a_run_has_the_number_of_its_first_video(trained):
    model, params = trained
    labels = np.zeros((2, 2), np.int32)
    settings = sampling.Settings(sampler="ddim", steps=2, batch_size=1)
    inputs = sampling.SamplingInputs({"label": labels})
    both = sampling.sample(model, params, 2, settings, inputs)
    inputs = sampling.SamplingInputs({"label": labels[1:]})
    run = sampling.Run(first_video=1)
    second = sampling.sample(model, params, 1, settings, inputs, run)
    np.testing.assert_allclose(second[0], both[1], atol=1e-4)


def test_what_is_not_finite_is_named(trained):
    """It would be a black video, written with status 0."""
    model, params = trained
    noise = np.zeros((3, *model.shape), np.float32)
    noise[1, 0, 0, 0, 0] = np.nan
    inputs = sampling.SamplingInputs(
        {"label": np.zeros((3, 2), np.int32)}, initial_noise=noise
    )
    settings = sampling.Settings(sampler="ddim", steps=2, batch_size=3)
    message = (
        "network gives .* not finite in 1 of 3 videos, .* frames 0, 1,.* of video 6"
    )
    with pytest.raises(UserError, match=message):
        sampling.sample(model, params, 3, settings, inputs, sampling.Run(first_video=5))


def test_one_program_serves_every_number_of_steps_and_every_scale(trained):
    draw(trained, steps=4, guidance_scale=2.0)
    before = program.run_steps._cache_size()
    for steps, scale in ((2, 2.0), (20, 1.5), (7, 4.0)):
        draw(trained, steps=steps, guidance_scale=scale)
    assert program.run_steps._cache_size() == before


def test_progress_reaches_its_total(trained):
    seen = []
    draw(trained, steps=10, batch_size=2, progress=lambda *at: seen.append(at))
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_labels_are_read_by_name(trained):
    model = trained[0]
    np.testing.assert_array_equal(
        sampling.label_array(model, 2, "y,b"), [[1, 1], [1, 1]]
    )
    np.testing.assert_array_equal(sampling.label_array(model, 1, "x"), [[-1, 0]])
    np.testing.assert_array_equal(sampling.label_array(model, 1, "none"), [[-1, -1]])
    assert sampling.label_text(model, np.array([-1, 0])) == "x"
    drawn = sampling.label_array(model, 6, seed=3)
    assert sorted(drawn[:, 0]) == [0, 0, 1, 1, 2, 2]
    alike = change(model, label={"vocabulary": (("a", "b"), ("x", "y"))})
    drawn = sampling.label_array(alike, 40)
    assert len(np.unique(drawn, axis=0)) == 4  # each attribute by itself


@pytest.mark.parametrize("text", ["green", "a,b", "a,", "a,x,y"])
def test_a_wrong_label_names_what_there_is(trained, text):
    with pytest.raises(UserError, match="--label="):
        sampling.label_array(trained[0], 1, text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: .*from 1 to 1024"),
        ({"steps": 2000}, "from 1 to 1024"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5: .*from 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"sampler": "heum"}, "one of ddim, ancestral, dpm"),
        (
            {"sampler": "ancestral", "ancestral_gamma": 1.5},
            "ancestral_gamma=1.5: .*from 0 to 1",
        ),
        ({"batch_size": 0}, "batch_size=0"),
        ({"clip_x": -1.0}, "clip_x"),
    ],
)
def test_settings_out_of_range_are_one_line(trained, settings, message):
    with pytest.raises(UserError, match=message):
        draw(trained, **settings)


def test_guidance_needs_dropped_conditions(trained):
    model, params = trained

    never = change(model, label={"dropout": 0.0})
    with pytest.raises(UserError, match="sometimes dropped"):
        sampling.sample(
            never, params, 1, sampling.Settings(sampler="ddim", guidance_scale=2.0)
        )


def test_uint8_is_the_inverse_of_encode(trained):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1)
    encoded = np.asarray(trained[0].normalize(jnp.asarray(pixels)))
    np.testing.assert_array_equal(sampling.to_uint8(encoded), pixels)


# Parts of a run, a wrapped denoiser, and noise that frames share.


@dataclasses.dataclass(frozen=True)
class Constant:
    """A wrap: the prediction is of a constant x, whatever the denoiser says."""

    x: float

    def __call__(self, denoise, params):
        def wrapped(z, level, cond):
            return process.from_x(jnp.full_like(z, self.x), z, level)

        return wrapped


calls = []


def count_calls(denoise, params):
    """Return the denoiser; count how often it is called."""

    def counted(z, level, cond):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(z, level, cond)

    return counted


def generate(trained, rows=None, z=None, run=None, **settings):
    model, params = trained
    settings = {"sampler": "ddim"} | settings
    settings = sampling.Settings(steps=11, guidance_scale=2.0, batch_size=2, **settings)
    labels = np.array([[0, 1], [2, 0]], np.int32)
    inputs = sampling.SamplingInputs({"label": labels}, initial_noise=z)
    run = dataclasses.replace(run or sampling.Run(), rows=rows)
    return sampling.generate(model, params, 2, settings, inputs, run=run)


@pytest.mark.parametrize(
    "settings",
    [{}, {"sampler": "ancestral"}, {"sampler": "heun", "s_churn": 4.0}],
    ids=str,
)
@pytest.mark.parametrize("row", [1, 9])
def test_two_runs_of_parts_of_the_rows_are_one_run_of_all(trained, settings, row):
    whole = generate(trained, **settings)
    part = generate(trained, (0, row), **settings)
    assert abs(part - whole).mean() > 1e-3
    again = generate(trained, (row, 11), part, **settings)
    np.testing.assert_array_equal(again, whole)


def test_a_multistep_sampler_starts_again_with_a_step_of_first_order(trained):
    part = generate(trained, (0, 5), sampler="dpm")
    ddim = {"sampler": "ddim", "sampling_schedule": "karras"}
    second = generate(trained, (5, 6), part, sampler="dpm")
    np.testing.assert_allclose(
        second, generate(trained, (5, 6), part, **ddim), atol=1e-4
    )
    rest = generate(trained, (5, 11), part, sampler="dpm")
    assert 0 < abs(rest - generate(trained, sampler="dpm")).mean() < 0.1


@pytest.mark.parametrize("rows", [(-1, 4), (3, 3), (5, 4), (0, 12)])
def test_rows_outside_of_the_table_are_refused(trained, rows):
    with pytest.raises(UserError, match=r"rows=.*from 0 to steps=11"):
        generate(trained, rows, np.zeros((2, *trained[0].shape)))


def test_a_later_start_needs_the_z_of_its_row(trained):
    with pytest.raises(UserError, match="needs initial_noise, the z of row 4"):
        generate(trained, (4, 11))


def test_the_progress_of_a_part_reaches_its_total(trained):
    model, params = trained
    seen, z = [], np.zeros((2, *model.shape), np.float32)
    settings = sampling.Settings(sampler="ddim", steps=20, batch_size=1)
    inputs = sampling.SamplingInputs(initial_noise=z)
    run = sampling.Run(rows=(3, 15), progress=lambda *at: seen.append(at))
    sampling.sample(model, params, 2, settings, inputs, run)
    assert seen == [(8, 24), (12, 24), (20, 24), (24, 24)]


def test_a_wrap_sees_every_call_and_the_identity_changes_nothing(trained):
    calls.clear()
    wrapped = generate(trained, run=sampling.Run(wrap=count_calls))
    jax.effects_barrier()
    assert len(calls) == 11
    np.testing.assert_array_equal(wrapped, generate(trained))


def test_a_wrap_is_outside_of_the_guidance_and_compiled_once_for_equal_values(trained):
    model, params = trained
    mask = np.zeros((1, *model.shape[:3], 1), bool)
    mask[:, 0] = True
    known = sampling.Observation(np.full((1, *model.shape), 0.5, np.float32), mask)
    made = generate(trained, run=sampling.Run(wrap=Constant(0.25)))
    np.testing.assert_array_equal(made, np.float32(0.25))
    before = program.run_steps._cache_size()
    generate(trained, run=sampling.Run(wrap=Constant(0.25)))
    assert program.run_steps._cache_size() == before
    inputs = sampling.SamplingInputs(observation=known)
    run, settings = (
        sampling.Run(wrap=Constant(0.25)),
        sampling.Settings(sampler="ddim", steps=2),
    )
    videos = sampling.sample(model, params, 1, settings, inputs, run=run)
    np.testing.assert_array_equal(videos[:, 0], np.float32(0.5))  # known
    np.testing.assert_array_equal(videos[:, 1:], np.float32(0.25))


def test_shared_noise_is_the_same_in_all_frames_and_not_in_all_videos(trained):
    """With an x of 0 a step of DDIM returns a multiple of the initial z."""
    zero = sampling.Run(wrap=Constant(0.0))
    shared = dataclasses.replace(zero, shared_noise=True)
    for settings in ({}, {"sampler": "ancestral"}):
        own = generate(trained, (0, 3), run=zero, **settings)
        made = generate(trained, (0, 3), run=shared, **settings)
        assert made.shape == own.shape and np.isfinite(made).all()
        np.testing.assert_array_equal(made, np.broadcast_to(made[:, :1], made.shape))
        assert made[:, 0].std() == pytest.approx(own.std(), rel=0.2)
        assert abs(own[:, 0] - own[:, 1]).mean() > 0.1
        assert abs(made[0] - made[1]).mean() > 0.1


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"fps": np.zeros(3)}, "is not conditioned on fps; it knows label"),
        ({"low_res": np.zeros(3)}, "is not conditioned on low_res"),
        ({"label": np.zeros((2, 2), np.int32)}, "label of 2 videos: 3 are sampled"),
        ({"label": np.int32(1)}, r"label of shape \(\): an array \[videos, 2\]"),
        ({"label": np.zeros(3, np.int32)}, r"shape \(3,\): an array \[videos, 2\]"),
    ],
)
@pytest.mark.parametrize("branch", ["cond", "negative"])
def test_wrong_conditions_are_one_line(trained, arrays, message, branch):
    model, params = trained
    settings = sampling.Settings(sampler="ddim", steps=2, guidance_scale=2.0)
    with pytest.raises(UserError, match=message):
        inputs = sampling.SamplingInputs(**{branch: arrays})
        sampling.sample(model, params, 3, settings, inputs)
