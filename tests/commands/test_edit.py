"""edit.py: a picture is animated, a clip extended, inpainted, upscaled, changed."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.run_command import call, refused
from vdm_jax import video_io

EDITS = {
    "extend": ["--extend={clip}", "--num_frames=14", "--num_cond_frames=3"],
    "inpaint": ["--inpaint={clip}", "--mask={mask}", "--sampler=dpm"],
    "upscale": [
        "--upscale={clip}",
        "--downscale_factor=2",
        "--tiles=1x2",
        "--multidiffusion",
    ],
}


def write_clip(folder, frames, size):
    """Write samples.npz of one clip of noise, and mask.png: white in its upper half.

    Returns the clip, uint8 [frames, size, size, 3], and the paths by their names.
    """
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, frames, size, size, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", videos=video)
    mask = np.zeros((size, size, 3), np.uint8)
    mask[: size // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return video[0], {"clip": folder / "samples.npz", "mask": folder / "mask.png"}


def read(folder):
    with np.load(folder / "samples.npz") as arrays:
        return arrays["videos"], json.loads((folder / "samples.json").read_text())


@pytest.mark.parametrize("edit", list(EDITS))
def test_an_edit_keeps_the_pixels_of_its_clip(run, tmp_path, edit):
    """From a file, through the model, to a file: known pixels are the file's."""
    video, files = write_clip(tmp_path, 16, 16)
    if edit == "upscale":  # a file at the output's size does not exist: it is shrunk
        files["clip"] = tmp_path / "clip.mp4"
        video_io.write_video(files["clip"], video, 8)
    flags = [flag.format(**files) for flag in EDITS[edit]]
    out = tmp_path / "s"
    done = call("edit", f"--workdir={run}", f"--out={out}", "--num=2", *flags)
    assert done.returncode == 0, done.stderr
    made, described = read(out)
    assert described["observation"]["clip"] == str(files["clip"])
    # A label drawn at random would contradict what the clip shows.
    assert described["labels"] == ["", ""] and "without guidance" in done.stdout
    assert "the rest is ignored" in done.stdout
    if edit == "extend":
        assert made.shape == (2, 14, 16, 16, 3)
        np.testing.assert_array_equal(made[:, :3], np.stack([video[:3]] * 2))
    if edit == "inpaint":
        np.testing.assert_array_equal(made[0, :, 8:], video[:8, 8:])
        assert (made[0, :, :8] != video[:8, :8]).mean() > 0.5
    if edit == "upscale":
        assert made.shape == (2, 8, 16, 32, 3)


LEFT, RED, MOVES = "left", "a red square", "moves"
TEXT_EDITS = {  # flags, and where the output is the clip's
    "extend": (["--extend={clip}", "--num_frames=7"], np.s_[:2]),
    "interpolate": (["--interpolate={clip}", "--num_cond_frames=2"], np.s_[::3]),
    "inpaint": (["--inpaint={clip}", "--mask={mask}"], np.s_[:, 4:]),
    "upscale": (["--upscale={clip}", "--downscale_factor=2"], np.s_[:0]),
}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "edit", ["extend", "inpaint", slow("interpolate"), slow("upscale")]
)
def test_a_text_model_edits_a_clip_by_its_prompt(text_model, tmp_path, edit):
    """Known pixels are the clip's; the prompt decides the others, and only of its own.

    The two commands differ in the prompt of the first video alone.
    """
    clip, files = write_clip(tmp_path, 8, 8)
    flags, known = TEXT_EDITS[edit]
    flags = [f"--workdir={text_model}", *(flag.format(**files) for flag in flags)]
    made = []
    for i, prompt in enumerate((RED, LEFT)):
        prompts = f"--prompt={prompt}", f"--prompt={MOVES}"
        done = call("edit", *flags, *prompts, f"--out={tmp_path}/{i}")
        assert done.returncode == 0, done.stderr
        videos, described = read(tmp_path / str(i))
        assert described["labels"] == [prompt, MOVES]
        for video in videos:
            np.testing.assert_array_equal(video[known], clip[: len(video)][known])
        made.append(videos.astype(int))
    length = 7 if edit == "extend" else 4
    assert made[0].shape == (2, length, 8, 8, 3)
    assert abs(made[0][0] - made[1][0]).mean() > 1
    np.testing.assert_array_equal(made[0][1], made[1][1])


GIVEN_EDITS = {  # flags, and which frames of the output are which of the clip's
    "animate": (["--animate={picture}"], {0: 0}),
    "loop": (["--animate={clip}", "--loop", "--num_frames=12"], {0: 0, 11: 0}),
    "extend": (
        ["--extend={clip}", "--num_cond_frames=2", "--backward"], {14: 0, 15: 1},
    ),
    "interpolate": (
        ["--interpolate={clip}", "--num_cond_frames=3"], {0: 0, 4: 4, 7: 7},
    ),
    "edit": (
        ["--edit={clip}", "--strength=0,.2,.2,.3,.5,.7,.9,1", "--steps=16"], {0: 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "edit", ["edit", *map(slow, ("animate", "loop", "extend", "interpolate"))]
)
def test_a_model_of_given_frames_makes_the_others(given_model, tmp_path, edit):
    """Without a prompt or label; given frames are the file's, others are sampled."""
    clip, files = write_clip(tmp_path, 16, 16)
    files["picture"] = tmp_path / "picture.png"
    Image.fromarray(clip[0]).save(files["picture"])
    flags, given = GIVEN_EDITS[edit]
    flags = [flag.format(**files) for flag in flags]
    out = f"--out={tmp_path}/s"
    done = call("edit", f"--workdir={given_model}", out, "--num=2", *flags)
    assert done.returncode == 0, done.stderr
    made, described = read(tmp_path / "s")
    frames = list(given)
    assert described["observation"]["clip"] in map(str, files.values())
    for video in made:
        np.testing.assert_array_equal(video[frames], clip[list(given.values())])
    others = np.delete(made, frames, axis=1).astype(int)
    assert (others[0] != others[1]).any((1, 2, 3)).all()


def test_a_strength_for_each_frame_needs_a_model_of_given_frames(run, tmp_path):
    _, files = write_clip(tmp_path, 8, 16)
    flags = f"--edit={files['clip']}", "--strength=0,1,1,1,1,1,1,1"
    message = refused("edit", f"--workdir={run}", f"--out={tmp_path}/s", *flags)
    assert "needs a model that was trained with conditioning.clean_frames" in message


def test_a_text_model_samples_twice_its_length_by_its_prompt(text_model, tmp_path):
    flags = [f"--workdir={text_model}", "--num_frames=8", "--num=2"]
    for prompt in (RED, LEFT):
        prompts = [f"--prompt={prompt}", f"--out={tmp_path}/{prompt}"]
        done = call("sample", *flags, *prompts)
        assert done.returncode == 0, done.stderr
    (red, described), (left, _) = read(tmp_path / RED), read(tmp_path / LEFT)
    assert red.shape == (2, 8, 8, 8, 3) and described["labels"] == [RED, RED]
    assert abs(red[0].astype(int) - red[1]).mean() > 1  # two videos of one prompt
    assert (abs(red.astype(int) - left).mean((1, 2, 3, 4)) > 1).all()


def test_without_a_prompt_the_text_is_open(text_model, tmp_path):
    """As for labels: no guidance, but by a negative prompt."""
    flags = [f"--workdir={text_model}", "--num=1"]
    done = call("sample", *flags, f"--out={tmp_path}/a")
    assert done.returncode == 0 and "without guidance" in done.stdout, done.stderr
    away = f"--negative_prompt={RED}"
    done = call("sample", *flags, away, f"--out={tmp_path}/b")
    assert done.returncode == 0 and "without guidance" not in done.stdout, done.stderr
    (plain, described), (guided, _) = read(tmp_path / "a"), read(tmp_path / "b")
    assert described["sample"]["guidance_scale"] == 1 and "labels" not in described
    assert abs(plain.astype(int) - guided).mean() > 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --animate (a picture to begin with) or --extend"),
        (["--extend=a.mp4", "--inpaint=a.mp4"], "(a clip to continue) or --interpol"),
        (["--workdir="], "--workdir= is empty"),
        (["--extend="], "--extend= is empty"),
        (["--extend=a.mp4", "--mask=a.png"], "--mask goes with --inpaint, not with"),
        (["--inpaint=a.mp4", "--num_cond_frames=2"], "goes with --extend or --interpo"),
        (["--upscale=a.mp4", "--backward=true"], "--backward goes with --extend, not"),
        (["--extend=/absent.mp4"], "/absent.mp4"),
        (["--interpolate=a.mp4", "--num_cond_frames=9"], "at least 2, at most 7"),
        (["--extend=a.mp4", "--num_frames=4"], "at least 8"),
        (["--extend=a.mp4", "--prompt=a cat"], "was trained without text"),
        (["--inpaint=a.mp4"], "needs --mask=FILE"),
        (["--extend=a.mp4", "--reconstruction_weight=-1"], "reconstruction_weight=-1"),
        (["--extend=a.mp4", "--strength=.5"], "--strength goes with --edit, not with"),
        (["--edit=a.mp4"], "--edit needs --strength, the fraction of the steps that"),
        (["--edit=a.mp4", "--strength=1.5"], "strength"),
        (["--edit=a.mp4", "--strength=0"], "strength=0: above 0, at most 1, and at"),
        (["--edit=/absent.png", "--strength=.5"], "/absent.png"),
        (["--edit=a.mp4", "--strength=.5,x"], "numbers (float), as"),
        (["--edit=a.mp4", "--strength=.5,2"], "--strength=.5,2: numbers from 0 to 1"),
        (["--inpaint=a.mp4", "--loop=true"], "--loop goes with --animate or --extend"),
        (["--animate=/absent.png"], "/absent.png"),
        (["--edit=a.mp4", "--overlap_frames=1"], "overlap_frames goes with --animate"),
    ],
)
def test_edit_refuses(run, tmp_path, flags, message):
    given = {"--workdir": run, "--out": tmp_path / "s"}
    given |= dict(flag.split("=", 1) for flag in flags)
    assert message in refused("edit", *(f"{k}={v}" for k, v in given.items()))
    assert not (tmp_path / "s").exists()


def test_an_edit_starts_from_its_clip(run, tmp_path):
    """With few of the steps left the video is near the clip, with all of them far."""
    video, files = write_clip(tmp_path, 8, 16)
    far = []
    for strength in (0.02, 1):
        out = tmp_path / str(strength)
        done = call(
            "edit", f"--workdir={run}", f"--edit={files['clip']}", f"--out={out}",
            f"--strength={strength}", "--steps=50", "--sampler=ddim", "--num=2",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made, described = read(out)
        assert made.shape == (2, 8, 16, 16, 3)
        assert described["observation"]["strength"] == strength
        far.append(abs(made - video.astype(float)).mean())
    assert far[0] < far[1] / 3
