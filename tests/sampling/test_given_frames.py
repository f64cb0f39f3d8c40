"""Laws of sampling with given frames, by a model that was trained with some."""

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_noise import PARAMS, SHAPE, gaussian
from tests.small_model import random_params, smoke_config
from vdm_jax import build, sampling
from vdm_jax.codec import Codec, Patch
from vdm_jax.conditions.clean_frames import CleanFrames
from vdm_jax.diffusion import process, samplers
from vdm_jax.errors import UserError
from vdm_jax.sampling import (
    Observation,
    Run,
    SamplingInputs,
    Settings,
    observations,
)
from vdm_jax.sampling.given_frames import encode_strength

FRAMES, SETTINGS = SHAPE[0], Settings(sampler="ddim", steps=3, batch_size=4)
CONDITION = ("clean_frames", CleanFrames((("first", 1.0),)))


def given_model(**fields):
    return dataclasses.replace(gaussian(), conditions=(CONDITION,), **fields)


def observe(frames=FRAMES, indices=(), strength=None):
    """Return an observation of the frames `indices` of a video of noise."""
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, frames, *SHAPE[1:])).astype(np.float32)
    mask = np.zeros((1, frames, *SHAPE[1:3], 1), bool)
    mask[:, list(indices)] = True
    strength = None if strength is None else np.array([strength])
    return Observation(video, mask, None, strength)


def generate(model, known, settings=SETTINGS, num=2, **run):
    inputs = SamplingInputs(observation=known)
    return sampling.generate(model, PARAMS, num, settings, inputs, Run(**run))


@pytest.mark.parametrize("indices", [[0], [3], [0, 3], [1, 2], [0, 2]])
def test_given_frames_come_back_bit_for_bit(indices):
    """As z too, where nothing is put back."""
    known = observe(indices=indices)
    z = generate(given_model(), known)
    expected = np.broadcast_to(known.video[:, indices], z[:, indices].shape)
    np.testing.assert_array_equal(z[:, indices], expected)
    others = [i for i in range(FRAMES) if i not in indices]
    assert (z[0, others] != z[1, others]).all()


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(SETTINGS, sampler="ancestral", langevin_delta=0.1),
        dataclasses.replace(SETTINGS, sampler="dpm", dynamic_threshold=50.0),
        dataclasses.replace(SETTINGS, sampler="heun", s_churn=5.0, clip_x=0.1),
    ],
    ids=lambda settings: settings.sampler,
)
def test_whatever_the_sampler_and_the_threshold_they_are_kept(settings):
    known = observe(indices=[1])
    z = generate(given_model(), known, settings)
    np.testing.assert_array_equal(z[:, 1], known.video[[0, 0], 1])
    assert np.isfinite(z).all()


def test_all_frames_given_is_the_video_itself():
    known = observe(indices=range(FRAMES))
    z = generate(given_model(), known)
    np.testing.assert_array_equal(z, known.video[[0, 0]])


def test_no_frame_given_is_plain_sampling_bit_for_bit():
    model = given_model()
    plain = sampling.sample(model, PARAMS, 2, SETTINGS)
    inputs = SamplingInputs(observation=observe())
    same = sampling.extend_in_blocks(model, PARAMS, 2, SETTINGS, inputs)
    np.testing.assert_array_equal(same, plain)


LONG = dataclasses.replace(SETTINGS, steps=512, clip_x=0.0)


def noised(known, eps):
    """Return known frames at the level of their strength: N(0, 1) stays as it is."""
    s = known.strength.reshape(1, -1, 1, 1, 1)
    return ((1 - s) * known.video + s * eps) / np.hypot(1 - s, s)


def test_a_frame_goes_as_far_as_its_strength():
    """For data N(0, 1) the flow leaves z as it is: alpha known + sigma eps of s."""
    model = given_model(mean=0.0, variance=1.0)
    strength = np.linspace(0, 1, FRAMES)
    known = observe(strength=strength)
    z = generate(model, known, LONG)
    expected = noised(known, generate(model, None, LONG))
    np.testing.assert_allclose(z, expected, rtol=0, atol=0.03)
    np.testing.assert_array_equal(z[:, 0], known.video[[0, 0], 0])
    distance = np.abs(z - known.video).mean((0, 2, 3, 4))
    assert (np.diff(distance) > 0.05).all()


@pytest.mark.parametrize("sampler", ["dpm", "unipc"])
def test_a_frame_that_becomes_active_does_not_overshoot(sampler):
    """In 16 steps, one of which starts where the frame becomes active.

    Extrapolated from the given frame to the model's prediction it would err by 0.3.
    """
    model = given_model(mean=0.0, variance=1.0)
    settings = dataclasses.replace(LONG, sampler=sampler, steps=16)
    schedule = sampling.settings.make_schedule(model, settings)
    start = samplers.grid(schedule, 16)[0]
    strength = np.ones(FRAMES)
    strength[1] = process.flow_time(start)[11] + 1e-6
    known = observe(strength=strength)
    z = generate(model, known, settings)
    expected = noised(known, generate(model, None, LONG))
    np.testing.assert_allclose(z[:, 1], expected[:, 1], rtol=0, atol=0.02)


def test_the_model_chooses_between_given_frames_and_guidance():
    """Others are guided, and so is this one by parts of frames, or with a weight."""
    known, weighted = observe(indices=[0]), Settings(reconstruction_weight=1.0)
    part = known.mask.copy()
    part[:, 1, 0] = True
    cases = {
        "given": (given_model(), known, Settings()),
        "another model": (gaussian(), known, Settings()),
        "parts": (given_model(), known._replace(mask=part), Settings()),
        "a weight": (given_model(), known, weighted),
    }
    for name, (model, observation, settings) in cases.items():
        strength = sampling.given_frames.frame_strength(model, observation, settings)
        assert (strength is not None) == (name == "given"), name
    strong = known._replace(strength=np.zeros((1, FRAMES)))
    for (model, observation, settings), message in (
        ((gaussian(), strong, Settings()), "conditioning.clean_frames"),
        ((given_model(), strong, weighted), "no reconstruction_weight"),
        ((given_model(), strong._replace(mask=part), Settings()), "whole frames"),
        (
            (given_model(), known._replace(strength=np.ones((1, 3))), Settings()),
            "frame",
        ),
        ((given_model(), observe(strength=[0, 1, 2, 1]), Settings()), "from 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            sampling.given_frames.frame_strength(model, observation, settings)


def test_longer_videos_are_given_the_frames_of_the_block_before():
    """In blocks, forward and backward, and all at once in windows."""
    model = given_model()
    known = observe(10, [0, 9])
    inputs = SamplingInputs(observation=known)
    for backward in (False, True):
        videos = sampling.extend_in_blocks(
            model, PARAMS, 2, SETTINGS, inputs, backward=backward
        )
        np.testing.assert_array_equal(videos[:, [0, 9]], known.video[[0, 0]][:, [0, 9]])
        assert np.abs(videos).max((0, 2, 3, 4)).min() > 0
    z = generate(model, known, size=(10, *SHAPE[1:3]))
    np.testing.assert_array_equal(z[:, [0, 9]], known.video[[0, 0]][:, [0, 9]])


class Lossy(Patch):
    """A codec whose round trip changes the colours."""

    def decode(self, z, params=None):
        return super().decode(z, params) * 0.9 + 0.05


class CausalLossy(Codec):
    """One more, of 1 + 2 n frames: z has the first, and the mean of each two others."""

    frame_factor = 2

    def z_shape(self, video_shape):
        return 1 + (video_shape[0] - 1) // 2, *video_shape[1:]

    def encode(self, video, params=None, key=None):
        b, f, *size = video.shape
        pairs = video[:, 1:].reshape(b, f // 2, 2, *size).mean(2)
        return np.concatenate([video[:, :1], pairs], 1)

    def decode(self, z, params=None):
        return jnp.concatenate([z[:, :1], z[:, 1:].repeat(2, 1)], 1) * 0.9 + 0.05

    def encode_mask(self, mask):
        return self.encode(mask) == 1


class Levels:
    """A conditioning encoder: the network's inputs are the levels of the frames."""

    def apply(self, params, logsnr, frames, cond):
        return logsnr


class Still:
    """A network that predicts the last of the given frames for all others."""

    def apply(self, params, z, logsnr, *more, **how):
        place = jnp.where(jnp.isinf(logsnr), jnp.arange(z.shape[1])[None], 0).max(1)
        return jnp.broadcast_to(jax.vmap(lambda a, i: a[i][None])(z, place), z.shape)


@pytest.mark.parametrize("codec", [Lossy(), CausalLossy()], ids=["frames", "causal"])
def test_no_colour_drifts_from_block_to_block(codec):
    """z of the frames that blocks share is carried, not decoded and encoded again.

    So a video that stands still has one picture in all of 5 blocks.
    """
    model = given_model(
        network=Still(), conditioning_encoder=Levels(), prediction_type="x",
        mean=0.0, variance=1.0, codec=codec, video_shape=(5, *SHAPE[1:]),
    )  # fmt: skip
    known = observe(13, [0])
    inputs, calls = SamplingInputs(observation=known), set()
    run = Run(progress=lambda done, total: calls.add(total))
    settings = dataclasses.replace(SETTINGS, clip_x=0.0)
    videos = sampling.extend_in_blocks(
        model, PARAMS, 2, settings, inputs, run, overlap_frames=3
    )
    assert calls == {5 * settings.steps}
    np.testing.assert_array_equal(videos[:, 0], known.video[[0, 0], 0])
    expected = np.clip(codec.decode(codec.encode(known.video[:, :1])), -1, 1)
    np.testing.assert_allclose(videos[:, 1:], expected.repeat(12, 1)[[0, 0]], atol=1e-5)


def test_blocks_do_not_divide_a_frame_of_z():
    model = given_model(codec=CausalLossy(), video_shape=(5, *SHAPE[1:]))
    inputs = SamplingInputs(observation=observe(13, [0]))
    with pytest.raises(UserError, match="overlap_frames=2: 2k [+] 1 frames .*, as 1$"):
        sampling.extend_in_blocks(model, PARAMS, 1, SETTINGS, inputs, overlap_frames=2)


def test_a_part_of_a_frame_of_z_is_refused_in_blocks_too():
    model = given_model(codec=CausalLossy(), video_shape=(5, *SHAPE[1:]))
    inputs = SamplingInputs(observation=observe(13, [0, 1]))
    with pytest.raises(UserError, match="frame 1 is given without the others"):
        sampling.extend_in_blocks(model, PARAMS, 1, SETTINGS, inputs)


@pytest.mark.parametrize("end", ["backward", "loop"])
def test_a_causal_codec_is_not_given_frames_of_a_clip_at_the_end(end):
    model = given_model(codec=CausalLossy(), video_shape=(5, *SHAPE[1:]))
    output: Any = types.SimpleNamespace(model=model)
    with pytest.raises(UserError, match="no whole latents .* at the end"):
        observations.extend(output, "clip.mp4", **{end: True})


def test_nothing_is_encoded_where_nothing_is_given():
    class NoEncoder(CausalLossy):
        def encode(self, video, params=None, key=None):
            raise AssertionError("encoded")

    model = given_model(codec=NoEncoder(), video_shape=(5, *SHAPE[1:]))
    inputs = SamplingInputs(observation=observe(5))
    videos = sampling.extend_in_blocks(model, PARAMS, 1, SETTINGS, inputs)
    assert np.isfinite(videos).all()


class Pairs(Codec):
    """A codec whose frames of z are made of two frames of the video."""

    def encode_mask(self, mask):
        return mask.reshape(len(mask), -1, 2, *mask.shape[2:]).all(2)


def test_a_frame_of_z_has_the_largest_strength_of_its_frames():
    known = observe(8, [0, 1, 2], [0, 0, 0, 1, 0.2, 0.7, 0.3, 0.3])
    expected = [[0, 1, 0.7, 0.3]]
    np.testing.assert_array_equal(encode_strength(Pairs(), known), expected)
    np.testing.assert_array_equal(encode_strength(Codec(), known), known.strength)


# One video, one key: a network that mixes frames, whatever the batch and the devices.


def write_samples(path):
    """Write three videos of a U-Net with given frames, of a batch size of their own."""
    config = smoke_config()
    config.conditioning.clean_frames = (("first", 1.0),)
    model = build.build_model(config)
    shape = (1, *model.video_shape)
    mask = np.zeros((*shape[:-1], 1), bool)
    mask[:, [0, 7]] = True
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    inputs = SamplingInputs(observation=Observation(video, mask))
    settings = Settings(sampler="ddim", steps=3, batch_size=8, guidance_scale=2.0)
    made = sampling.sample(model, random_params(model, 0), 3, settings, inputs)
    np.testing.assert_array_equal(made[:, [0, 7]], video[[0, 0, 0]][:, [0, 7]])
    np.save(path, made)


@pytest.mark.slow
def test_eight_devices_sample_the_videos_of_one(tmp_path):
    made = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npy"
        program = "import sys; from tests.sampling import test_given_frames as t; "
        program += "t.write_samples(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", program, path],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            check=True,
        )
        made.append(np.load(path))
    np.testing.assert_allclose(made[1], made[0], rtol=0, atol=1e-5)
    assert np.abs(made[0][0] - made[0][1]).max() > 1e-2
