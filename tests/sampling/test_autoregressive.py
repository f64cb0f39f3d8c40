"""Longer and larger videos, and videos with an observation."""

import jax
import numpy as np
import pytest

from vdm_jax import sampling
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.sampling import autoregressive, program

# All draw two videos at once, so that they share their programs.
QUICK = sampling.Settings(sampler="ddim", steps=3, batch_size=2)
SAMPLERS = {
    "reconstruction": QUICK,
    "replacement, heun": sampling.Settings(
        steps=3, sampler="heun", s_churn=5.0, reconstruction_weight=0.0
    ),
    "replacement, corrected": sampling.Settings(
        ancestral_gamma=0.0,
        steps=3,
        sampler="ancestral",
        langevin_delta=0.1,
        reconstruction_weight=0.0,
        dynamic_threshold=90.0,
    ),
}


def pixels(shape, seed=0):
    """Return a random video, uint8 and encoded."""
    video = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return video, (video / 127.5 - 1).astype(np.float32)


def observe(model, frames, indices, seed=0):
    """Return an observation of one video's frames `indices`, and their pixels."""
    shape = (1, frames, *model.shape[1:])
    video, encoded = pixels(shape, seed)
    mask = np.zeros((*shape[:-1], 1), bool)
    mask[:, indices] = True
    return sampling.Observation(np.where(mask, encoded, 0), mask), video[0, indices]


def extend(model, params, num, settings, known, **options):
    """Sample the rest of a video of which `known` is observed."""
    inputs = sampling.SamplingInputs(observation=known)
    return sampling.extend_in_blocks(model, params, num, settings, inputs, **options)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_known_frames_are_returned_unchanged(trained, name):
    model, params = trained
    known, frames = observe(model, 12, slice(0, 4))
    settings = SAMPLERS[name]
    videos = sampling.to_uint8(extend(model, params, 2, settings, known))
    assert videos.shape == (2, 12, *model.shape[1:])
    np.testing.assert_array_equal(videos[:, :4], np.stack([frames, frames]))
    assert (videos[0, 4:] != videos[1, 4:]).mean() > 0.5


@pytest.mark.parametrize("indices", [[16, 17, 18], [0, 7, 14, 18], [9]])
@pytest.mark.parametrize("backward", [False, True])
def test_frames_are_kept_wherever_they_are(trained, indices, backward):
    model, params = trained
    known, frames = observe(model, 19, indices)
    videos = extend(model, params, 2, QUICK, known, backward=backward)
    np.testing.assert_array_equal(sampling.to_uint8(videos)[1, indices], frames)
    assert np.abs(videos).max(axis=(0, 2, 3, 4)).min() > 0  # no frame left empty


@pytest.mark.parametrize("backward", [False, True])
def test_every_block_continues_known_frames(trained, monkeypatch, backward):
    """From one end to the other: none is sampled without an observation."""
    model, params = trained
    seen = []

    def generate(model, params, num, settings, inputs, run):
        known = inputs.observation
        seen.append(None if known is None else known.mask[0, :, 0, 0, 0].tolist())
        return np.zeros((num, *model.shape))

    monkeypatch.setattr(autoregressive, "generate", generate)
    known, _ = observe(model, 16, [14, 15] if backward else [0, 1])
    extend(model, params, 2, QUICK, known, overlap_frames=3, backward=backward)
    first, *others = ([True] * n + [False] * (8 - n) for n in (2, 3, 5))
    assert seen == [each[::-1] if backward else each for each in (first, *others)]


def test_known_pixels_are_returned_and_the_rest_is_inpainted(trained):
    model, params = trained
    shape = (1, *model.shape)
    video, encoded = pixels(shape)
    mask = np.random.default_rng(1).random((*shape[:-1], 1)) < 0.5
    known = sampling.Observation(encoded, mask)
    made = sampling.to_uint8(extend(model, params, 2, QUICK, known))
    same = (made[1:] == video).all(-1, keepdims=True)
    assert same[mask].all() and same[~mask].mean() < 0.1


def test_one_block_without_an_observation_is_a_plain_sample(trained):
    model, params = trained
    known, _ = observe(model, model.shape[0], [])
    plain = sampling.sample(model, params, 2, QUICK, run=sampling.Run(3))
    filled = extend(model, params, 2, QUICK, known, run=sampling.Run(3))
    np.testing.assert_array_equal(filled, plain)


def test_a_block_reads_what_the_one_before_it_left(trained):
    """Other known frames change the next block, and through it the one after."""
    model, params = trained
    made = []
    for seed in (0, 1):
        known, _ = observe(model, 16, slice(0, 8), seed)
        made.append(extend(model, params, 2, QUICK, known))
    difference = np.abs(made[0] - made[1]).mean(axis=(0, 2, 3, 4))
    assert (difference[8:] > 1e-4).all()


def test_a_last_batch_is_filled_up_and_no_video_depends_on_it(trained):
    """Three videos in batches of two: the third has its own noise too."""
    model, params = trained
    known, _ = observe(model, 8, slice(0, 4))
    three = extend(model, params, 3, QUICK, known)
    two = extend(model, params, 2, QUICK, known)
    np.testing.assert_array_equal(three[:2], two)
    assert np.abs(three[2] - two).mean(axis=(1, 2, 3, 4)).min() > 1e-3


def test_one_window_is_a_plain_sample_bit_for_bit(trained):
    model, params = trained
    plain = sampling.sample(model, params, 2, QUICK)
    run = sampling.Run(size=model.shape[:3])
    same = sampling.sample(model, params, 2, QUICK, run=run)
    np.testing.assert_array_equal(same, plain)


def test_windows_make_longer_and_larger_videos(trained):
    """Known frames included; a larger video is sampled with the same parameters."""
    model, params = trained
    size = (12, 20, 16)
    video, encoded = pixels((1, *size, 3))
    mask = np.zeros((1, *size, 1), bool)
    mask[:, [0, 11]] = True
    known = sampling.Observation(encoded, mask)
    inputs, run = sampling.SamplingInputs(observation=known), sampling.Run(size=size)
    videos = sampling.sample(model, params, 2, QUICK, inputs, run=run)
    assert videos.shape == (2, *size, 3) and np.isfinite(videos).all()
    frames = sampling.to_uint8(videos)[1, [0, 11]]
    np.testing.assert_array_equal(frames, video[0, [0, 11]])
    assert videos[:, 1:11].std() > 0.05


def test_a_low_resolution_clip_guides_the_video(trained):
    model, params = trained
    _, low = pixels((1, 12, 4, 4, 3))
    distance = []
    for w in (1e-9, 2.0):
        known = observe(model, 12, [])[0]._replace(low_res=low)
        settings = sampling.Settings(sampler="ddim", steps=8, reconstruction_weight=w)
        videos = extend(model, params, 2, settings, known)
        means = videos.reshape(2, 12, 4, 4, 4, 4, 3).mean((3, 5))
        distance.append(np.abs(means - low).mean())
    assert distance[1] < 0.9 * distance[0]


def test_a_negative_label_takes_the_place_of_no_label(trained):
    model, params = trained
    labels = np.array([[0, 1]], np.int32)
    away = np.array([[2, 0]], np.int32)

    def draw(scale, negative=None):
        settings = sampling.Settings(sampler="ddim", steps=3, guidance_scale=scale)
        inputs = sampling.SamplingInputs({"label": labels}, negative)
        return sampling.sample(model, params, 2, settings, inputs)

    assert np.abs(draw(3.0) - draw(3.0, {"label": away})).mean() > 1e-3
    # With the label itself as the negative one, guidance does nothing.
    same = draw(3.0, {"label": labels})
    np.testing.assert_allclose(same, draw(1.0), atol=1e-3)


def test_ddim_samples_the_videos_from_their_inversion(trained):
    model, params = trained
    labels = np.array([[0, 1], [1, 0]], np.int32)
    plain = sampling.Settings(sampler="ddim", steps=64, clip_x=0.0)
    inputs = sampling.SamplingInputs({"label": labels})
    videos = sampling.sample(model, params, 2, plain, inputs)
    errors = []
    for steps in (8, 32, 128):
        settings = sampling.Settings(sampler="ddim", steps=steps, clip_x=0.0)
        z = sampling.invert(model, params, videos, settings, cond={"label": labels})
        inputs = sampling.SamplingInputs({"label": labels}, initial_noise=z)
        again = sampling.sample(model, params, 2, settings, inputs)
        errors.append(np.sqrt(np.mean((again - videos) ** 2)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.slow
def test_programs_are_compiled_once_for_all_numbers(trained):
    """Steps, weights, seeds and blocks are arguments; an observation is a program."""
    model, params = trained

    def programs():
        return program.run_steps._cache_size(), program.init_carry._cache_size()

    def plain(seed=0, **settings):
        # A batch of its own, so that nothing is left from other tests.
        settings = sampling.Settings(sampler="ddim", **settings, batch_size=5)
        sampling.sample(model, params, 5, settings, run=sampling.Run(seed))

    def extended(indices, frames, **settings):
        known, _ = observe(model, frames, indices)
        settings = sampling.Settings(sampler="ddim", **settings, batch_size=5)
        extend(model, params, 5, settings, known)

    steps_programs, init_programs = programs()
    for steps in (2, 9, 20):
        plain(steps=steps, seed=steps)
    assert programs() == (steps_programs + 1, init_programs + 1)
    for steps, scale, schedule in (
        (2, 1.5, "constant"), (9, 4.0, "oscillating:2"), (4, 8.0, "interval:-1:1"),
    ):  # fmt: skip
        plain(steps=steps, guidance_scale=scale, guidance_schedule=schedule)
    assert programs() == (steps_programs + 2, init_programs + 2)
    for indices, frames, steps, weight in (
        (slice(0, 4), 20, 2, 1.0), ([0, 7], 8, 9, 4.0), ([3], 12, 3, 9.0),
    ):  # fmt: skip
        extended(indices, frames, steps=steps, reconstruction_weight=weight)
    assert programs() == (steps_programs + 3, init_programs + 3)
    extended([], 16, steps=2)  # a first block without an observation, then others
    assert programs() == (steps_programs + 3, init_programs + 3)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_traced_seed_is_the_same_seed(seed):
    keys = samplers.video_keys(seed, 0, 3, np.arange(2))
    traced = jax.jit(lambda s, b: samplers.video_keys(s, 0, b, np.arange(2)))
    same = traced(np.uint32(seed), np.uint32(3))
    np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(keys))


def test_a_low_resolution_clip_needs_a_weight(trained):
    model, params = trained
    known = observe(model, 8, [])[0]._replace(low_res=np.zeros((1, 8, 4, 4, 3)))
    with pytest.raises(UserError, match="a weight above 0"):
        extend(model, params, 1, SAMPLERS["replacement, heun"], known)
