"""Sampling through the real model: the same video however it is batched."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.conditions.change import change
from vdm_jax import sampling
from vdm_jax.errors import UserError
from vdm_jax.sampling import program


def draw(trained, num=3, **settings):
    model, params = trained
    labels = np.array([[0, 1], [2, 0], [1, -1]], np.int32)[:num]
    options = {k: settings.pop(k) for k in ("seed", "progress") if k in settings}
    settings = {"steps": 4, "guidance_scale": 2.0, "batch_size": 3, **settings}
    settings = sampling.Settings(**settings)
    return sampling.sample(
        model, params, num, settings, cond={"label": labels}, **options
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
    pair = sampling.sample(
        model,
        params,
        2,
        sampling.Settings(steps=2, batch_size=2),
        cond={"label": same_label},
    )
    assert abs(pair[0] - pair[1]).mean() > 0.01


def test_first_index_is_the_number_of_the_first_video(trained):
    model, params = trained
    labels = np.zeros((2, 2), np.int32)
    settings = sampling.Settings(steps=2, batch_size=1)
    both = sampling.sample(model, params, 2, settings, cond={"label": labels})
    second = sampling.sample(
        model, params, 1, settings, cond={"label": labels[1:]}, first_index=1
    )
    np.testing.assert_allclose(second[0], both[1], atol=1e-4)


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
        sampling.draw_labels(model, 2, "y,b"), [[1, 1], [1, 1]]
    )
    np.testing.assert_array_equal(sampling.draw_labels(model, 1, "x"), [[-1, 0]])
    np.testing.assert_array_equal(sampling.draw_labels(model, 1, "none"), [[-1, -1]])
    assert sampling.label_text(model, np.array([-1, 0])) == "x"
    drawn = sampling.draw_labels(model, 6, seed=3)
    assert sorted(drawn[:, 0]) == [0, 0, 1, 1, 2, 2]
    alike = change(model, label={"vocabulary": (("a", "b"), ("x", "y"))})
    drawn = sampling.draw_labels(alike, 40)
    assert len(np.unique(drawn, axis=0)) == 4  # each attribute by itself


@pytest.mark.parametrize("text", ["green", "a,b", "a,", "a,x,y"])
def test_a_wrong_label_names_what_there_is(trained, text):
    with pytest.raises(UserError, match="--label="):
        sampling.draw_labels(trained[0], 1, text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: from 1 to 1024"),
        ({"steps": 2000}, "from 1 to 1024"),
        ({"guidance_scale": 0.5}, "from 1 to 1000, the scale s of"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"sampler": "heum"}, "one of ddim, ancestral, dpm"),
        (
            {"sampler": "ancestral", "ancestral_gamma": 1.5},
            "ancestral_gamma=1.5: from 0",
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
        sampling.sample(never, params, 1, sampling.Settings(guidance_scale=2.0))


def test_uint8_is_the_inverse_of_encode(trained):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1)
    encoded = np.asarray(trained[0].normalize(jnp.asarray(pixels)))
    np.testing.assert_array_equal(sampling.to_uint8(encoded), pixels)
