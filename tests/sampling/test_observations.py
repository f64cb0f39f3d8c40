"""Observations read from clips and masks of a user."""

import dataclasses
import json
import os
import shutil
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.parity import recorded
from vdm_jax import sampling, video_io
from vdm_jax.conditions.clean_frames import CleanFrames
from vdm_jax.errors import UserError
from vdm_jax.sampling import observations
from vdm_jax.sampling.given_frames import frame_strength
from vdm_jax.video_io.sandbox import SandboxedDecoder

RATE = 8.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """24 frames of 24x32 at twice the model's rate, of grey 10 times the index."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    grey = 10 * np.arange(24, dtype=np.uint8)[:, None, None, None]
    video = np.broadcast_to(grey, (24, 24, 32, 3))
    video_io.write_video(path, video, 2 * RATE, scale=2)
    return str(path)


@pytest.fixture
def output(trained):
    return observations.OutputSpec(trained[0], RATE)


def greys(known):
    """Return the mean of each known frame in 0..255, and the frames' indices."""
    indices = np.flatnonzero(known.mask[0].all(axis=(1, 2, 3)))
    means = sampling.to_uint8(known.video[0, indices]).mean((1, 2, 3))
    return means, indices.tolist()


def longer(output, frames, tiles=(1, 1)):
    return observations.OutputSpec(output.model, output.fps, frames, tiles)


def test_extend_takes_the_first_frames_at_the_model_s_rate(output, clip):
    known, info = observations.extend(output, clip)
    assert known.video.shape == (1, 16, 16, 16, 3)
    grey, indices = greys(known)
    assert indices == [0, 1, 2, 3] and info["output_frames"] == indices
    np.testing.assert_allclose(grey, [0, 20, 40, 60], atol=2)
    assert info["clip_frames"] == [0, 2, 4, 6]
    assert (info["width"], info["height"], info["output"]) == (64, 48, "16x16")
    assert "nearest to 8 fps" in info["timing"]


def test_extend_backward_puts_them_at_the_end(output, clip):
    known, info = observations.extend(longer(output, 20), clip, 3, backward=True)
    grey, indices = greys(known)
    assert indices == [17, 18, 19]
    np.testing.assert_allclose(grey, [0, 20, 40], atol=2)


def test_a_loop_ends_with_the_frames_that_it_begins_with(output, clip):
    known, info = observations.extend(longer(output, 20), clip, 3, loop=True)
    grey, indices = greys(known)
    assert indices == [0, 1, 2, 17, 18, 19] == info["output_frames"]
    np.testing.assert_allclose(grey, [0, 20, 40] * 2, atol=2)
    with pytest.raises(UserError, match="num_cond_frames=4 .* at most 3"):
        observations.extend(longer(output, 8), clip, 4, loop=True)


def test_animate_begins_with_the_picture(output, clip, tmp_path):
    """Resized to cover the output; a clip is animated from its first frame."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    known, info = observations.animate(output, str(tmp_path / "a.png"))
    assert known.video.shape == (1, 8, 16, 16, 3) and greys(known)[1] == [0]
    first = sampling.to_uint8(known.video[0, 0])
    assert (first[:, :6] < 20).all() and (first[:, 10:] > 180).all()
    assert info["clip_frames"] == [0] and info["output"] == "16x16"
    grey, indices = greys(observations.animate(output, clip, loop=True)[0])
    assert indices == [0, 7]
    np.testing.assert_allclose(grey, [0, 0], atol=2)


def test_a_picture_is_no_video(output, clip):
    model = dataclasses.replace(output.model, video_shape=(1, 16, 16, 3))
    with pytest.raises(UserError, match="a video has at least 2"):
        observations.animate(observations.OutputSpec(model, RATE), clip)


def test_an_edit_has_a_strength_for_each_frame(output, clip):
    """Frames of strength 0 are known."""
    strength = [0.0, 0.5, 1.0, 0.0, 0.2, 0.2, 0.2, 0.2]
    known, info = observations.edit(output, clip, strength)
    np.testing.assert_array_equal(known.strength, [strength])
    assert greys(known)[1] == [0, 3] and info["strength"] == strength
    with pytest.raises(UserError, match="has 2 numbers: one, or one for each of 8 fr"):
        observations.edit(output, clip, [0.1, 0.2])


VERBS = {  # a strategy of Open-Sora 1.2 -> the verb and arguments that do the same
    "0": (observations.animate, ()),
    "0,0,0,-1,1": (observations.extend, (1, True)),
    "0,0,0,0,1,0.3": (observations.edit, ([0.3] + [1.0] * 5,)),
    "0,0,0,0,1;0,1,0,-1,1": (observations.animate, (True,)),
}


@pytest.mark.parametrize("strategy", list(VERBS))
def test_recorded_strategies_of_open_sora_are_verbs(output, clip, strategy):
    """The strength of each frame is the recorded mask."""
    text = (recorded.FOLDER / "open_sora_masks.json").read_text()
    rows = {row["strategy"]: row for row in json.loads(text)["sampling"]}
    condition = ("clean_frames", CleanFrames((("first", 1.0),)))
    model = dataclasses.replace(
        output.model, video_shape=(6, 16, 16, 3), conditions=(condition,)
    )
    verb, arguments = VERBS[strategy]
    known, _ = verb(observations.OutputSpec(model, RATE, 6), clip, *arguments)
    strength = frame_strength(model, known, sampling.Settings())
    np.testing.assert_array_equal(strength, [rows[strategy]["mask"]])


def test_interpolate_spreads_frames_and_keeps_their_distance_in_time(output, clip):
    known, info = observations.interpolate(output, clip)
    assert greys(known)[1] == [0, 7]
    known, info = observations.interpolate(longer(output, 9), clip, 5)
    grey, indices = greys(known)
    assert indices == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(grey, [0, 40, 80, 120, 160], atol=2)  # a quarter second
    every = greys(observations.interpolate(longer(output, 12), clip)[0])[1]
    assert every == [0, 6, 11]


def test_a_generated_file_is_taken_as_it_is(output, tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", videos=video)
    known, info = observations.extend(output, str(tmp_path / "samples.npz"))
    np.testing.assert_array_equal(sampling.to_uint8(known.video[0, :4]), video[0, :4])
    # The mp4 next to it is enlarged for the eye; read again it is nearly the same.
    video_io.write_video(tmp_path / "a.mp4", video[0], RATE)
    known, _ = observations.extend(output, str(tmp_path / "a.mp4"))
    error = sampling.to_uint8(known.video[0, :4]).astype(int) - video[0, :4]
    assert np.abs(error).mean() < 10  # of pure noise, which H.264 likes least


def test_white_of_the_mask_is_unknown(output, clip, tmp_path):
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[:24] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    known, info = observations.inpaint(output, clip, str(tmp_path / "mask.png"))
    assert known.mask.shape == (1, 8, 16, 16, 1)
    assert not known.mask[0, :, :8].any() and known.mask[0, :, 8:].all()
    assert info["masked_fraction"] == 0.5
    moving = np.zeros((8, 24, 32, 3), np.uint8)
    moving[4:] = 255
    video_io.write_video(tmp_path / "mask.mp4", moving, RATE)
    known, _ = observations.inpaint(output, clip, str(tmp_path / "mask.mp4"))
    assert known.mask[0, :4].all() and not known.mask[0, 4:].any()


def test_upscale_keeps_the_small_clip_as_area_means(output, clip, tmp_path):
    known, info = observations.upscale(output, clip, 4)
    assert known.low_res.shape == (1, 8, 4, 4, 3) and not known.mask.any()
    np.testing.assert_allclose(known.low_res.mean((0, 2, 3, 4)) * 127.5 + 127.5,
                               20 * np.arange(8), atol=2)  # fmt: skip
    assert (info["low_res"], info["output"]) == ("4x4", "16x16")
    small = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", videos=small)
    known, _ = observations.upscale(output, str(tmp_path / "small.npz"))
    np.testing.assert_array_equal(
        sampling.to_uint8(known.low_res[0]), small[0, :, :, 1:9]
    )
    known, _ = observations.upscale(output, str(tmp_path / "small.npz"), 4)
    assert known.low_res.shape == (1, 8, 4, 4, 3)
    known, _ = observations.upscale(
        longer(output, 8, (3, 2)), str(tmp_path / "small.npz")
    )
    assert known.video.shape[2:4] == (48, 32) and known.low_res.shape[2:4] == (8, 5)


def test_grey_models_get_grey_clips(output, clip, trained):
    model = dataclasses.replace(trained[0], video_shape=(8, 16, 16, 1))
    known, _ = observations.extend(observations.OutputSpec(model, RATE), clip)
    assert known.video.shape[-1] == 1
    np.testing.assert_allclose(greys(known)[0], [0, 20, 40, 60], atol=2)


def mask_file(folder, height, width, value=255):
    path = folder / "mask.png"
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (lambda w, c, d: observations.extend(longer(w, 64), c, 9), "at most 8"),
        (lambda w, c, d: observations.extend(longer(w, 8), c, 8), "at most 7"),
        (lambda w, c, d: observations.extend(longer(w, 4), c), "at least 8"),
        (lambda w, c, d: observations.interpolate(w, c, 1), "at least 2"),
        (lambda w, c, d: observations.interpolate(w, c, 9), "at most 7"),
        (lambda w, c, d: observations.interpolate(longer(w, 64), c, 60), "too short"),
        (lambda w, c, d: observations.inpaint(longer(w, 16), c, ""), "--mask=FILE"),
        (lambda w, c, d: observations.inpaint(longer(w, 40), c, "x.png"), "too short"),
        (
            lambda w, c, d: observations.inpaint(w, c, mask_file(d, 48, 48)),
            "48x48, the clip",
        ),
        (
            lambda w, c, d: observations.inpaint(w, c, mask_file(d, 48, 64, 0)),
            "no white (255)",
        ),
        (lambda w, c, d: observations.inpaint(w, c, f"{d}/absent.png"), "absent.png"),
        (lambda w, c, d: observations.upscale(w, c), "--downscale_factor=2 or more"),
        (lambda w, c, d: observations.upscale(w, c, 17), "from 2 to 16"),
        (lambda w, c, d: observations.extend(w, f"{d}/absent.mp4"), "absent.mp4"),
        (
            lambda w, c, d: observations.extend(w, f"{d}/absent.npz"),
            "is no samples.npz",
        ),
        (lambda w, c, d: observations.extend(w, __file__), "not a video"),
    ],
)
def test_what_does_not_fit_is_one_line(output, clip, tmp_path, observe, message):
    with pytest.raises(UserError) as refusal:
        observe(output, clip, tmp_path)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [(1, "makes 1 frame at a time"), (2, "num_frames=2: --interpolate needs 3")],
)
def test_nothing_is_between_the_frames_of_a_shorter_output(block, message):
    model = types.SimpleNamespace(video_shape=(block, 16, 16, 3))
    output = observations.OutputSpec(model, RATE)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        observations.interpolate(output, "a.mp4")


def test_an_npz_that_declares_a_terabyte_is_one_line(output, tmp_path):
    path = tmp_path / "samples.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("videos.npy", "w") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (1, 2**40, 1, 1, 3)}
        np.lib.format.write_array_header_1_0(file, head)
    with pytest.raises(UserError, match="is no samples.npz of sample.py: "):
        observations.extend(output, str(path))


def test_an_npz_that_is_too_short_is_refused(output, tmp_path):
    path = str(tmp_path / "samples.npz")
    np.savez(path, videos=np.zeros((1, 3, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="3 frames, 4 are needed"):
        observations.extend(output, path)


def test_interpolate_takes_the_frames_at_their_own_indices(output, tmp_path):
    path = str(tmp_path / "samples.npz")
    video = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 16, 3), np.uint8)
    np.savez(path, videos=video)
    known, info = observations.interpolate(longer(output, 16), path, 3)
    assert info["output_frames"] == info["clip_frames"] == [0, 8, 15]
    made = sampling.to_uint8(known.video[0, [0, 8, 15]])
    np.testing.assert_array_equal(made, video[0, [0, 8, 15]])


BROKEN = {
    "float": np.zeros((1, 8, 16, 16, 3)),
    "one video": np.zeros((8, 16, 16, 3), np.uint8),
    "none": np.zeros((0, 8, 16, 16, 3), np.uint8),
    "four channels": np.zeros((1, 8, 16, 16, 4), np.uint8),
    "a number": np.uint8(3),
}


@pytest.mark.parametrize("what", [*BROKEN, "cut", "flipped", "empty", "an array"])
def test_a_broken_npz_is_one_line(output, tmp_path, what):
    path = tmp_path / "samples.npz"
    good = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 16, 3), np.uint8)
    np.savez_compressed(path, videos=BROKEN.get(what, good))
    data = bytearray(path.read_bytes())
    if what == "cut":
        path.write_bytes(data[: len(data) // 2])
    if what == "flipped":
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    if what == "empty":
        path.write_bytes(b"")
    if what == "an array":
        np.save(tmp_path / "samples.npy", good)
        (tmp_path / "samples.npy").replace(path)
    with pytest.raises(UserError, match="is no samples.npz of sample.py") as refusal:
        observations.extend(output, str(path))
    assert "\n" not in str(refusal.value)


def test_a_video_larger_than_memory_is_refused(output):
    with pytest.raises(UserError, match="GiB of memory needed"):
        observations.no_observation(longer(output, 10**9))


def test_a_mask_that_is_a_pipe_is_not_waited_for(output, clip, tmp_path):
    os.mkfifo(tmp_path / "mask.png")
    with pytest.raises(UserError, match="not a regular file"):
        observations.inpaint(output, clip, str(tmp_path / "mask.png"))


@pytest.mark.parametrize("name", ["mask.webp", "mask.gif"])
def test_a_file_of_one_picture_is_a_mask(output, clip, tmp_path, name):
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[:24] = 255
    Image.fromarray(mask).save(tmp_path / name, lossless=True)
    known, _ = observations.inpaint(output, clip, str(tmp_path / name))
    assert not known.mask[0, :, :8].any() and known.mask[0, :, 8:].all()


def test_a_clip_is_a_file_whatever_its_name(output, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("take:1.mp4", "http:a.mp4"):
        shutil.copy(clip, name)
        known, info = observations.extend(output, name)
        assert greys(known)[1] == [0, 1, 2, 3] and info["clip"] == name


def test_a_clip_that_crashes_the_decoder_ends_in_one_line(output, clip, monkeypatch):
    monkeypatch.setattr(observations, "DECODER", SandboxedDecoder(memory=150 << 20))
    with pytest.raises(UserError, match="decod"):
        observations.extend(output, clip)
