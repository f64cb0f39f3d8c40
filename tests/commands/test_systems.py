"""sample.py --system and edit.py --control: what they write, and what they refuse."""

import json

import numpy as np
import pytest
from absl import flags as absl_flags
from PIL import Image

from tests import small_model
from tests.run_command import call, refused
from vdm_jax import cascade as cascades
from vdm_jax import runs
from vdm_jax.commands import controls
from vdm_jax.errors import UserError
from vdm_jax.sampling import observations
from vdm_jax.systems import SYSTEMS, parse_options, text2video_zero

FLAGS = absl_flags.FLAGS
SYSTEM, CV = "--system=text2video_zero", "--system=control_video"
SIX_STEPS = ("--steps=6", "--set=t1=831", "--set=t0=665")


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    """Return the workdir of a small image model on a discrete schedule."""
    folder = tmp_path_factory.mktemp("image")
    return small_model.write_sd_model(folder, **small_model.DISCRETE)


def test_text2video_zero_writes_a_video_of_a_prompt(image_model, tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    done = call(
        "sample", f"--workdir={image_model}", SYSTEM, *SIX_STEPS, "--prompt=a cat",
        "--set", "motion=0,-1", "--set=smooth=0.6", "--num_frames=3",
        f"--mask={tmp_path}/mask.png", f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 videos in" in done.stderr + done.stdout
    for kind in ("mp4", "gif", "png", "npz", "json"):
        assert (out / f"samples.{kind}").stat().st_size > 0
    with np.load(out / "samples.npz") as arrays:
        assert arrays["videos"].shape == (1, 3, 8, 8, 3)
    about = json.loads((out / "samples.json").read_text())
    assert about["labels"] == ["a cat"] and about["sample"]["steps"] == 6
    assert about["system"] == {
        "name": "text2video_zero", "motion": [0, -1], "strength": 12, "t0": 665,
        "t1": 831, "smooth": 0.6, "mask": str(tmp_path / "mask.png"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--system=absent"], f"--system=absent: one of {', '.join(SYSTEMS)}"),
        (["--set=motion=0,-1"], "--set goes with --system, not with --workdir"),
        ([SYSTEM, "--tiles=2"], "--tiles goes with --workdir, not with --system"),
        ([SYSTEM, "--num_frames=0"], "--num_frames=0: 1 or more; 0 is for edit.py"),
        ([SYSTEM, "--steps=2"], "that of t1 must be the higher one"),
        ([SYSTEM, *SIX_STEPS, "--set=smooth=1"], "above 0 it needs --mask=FILE"),
    ],
)
def test_what_sample_py_refuses(image_model, tmp_path, flags, message):
    out = f"--out={tmp_path}/out"
    assert message in refused("sample", f"--workdir={image_model}", out, *flags)


def test_options_are_parsed_by_their_declared_types():
    options = parse_options(text2video_zero.Options, ["motion=0,-1.5", "t0=801"])
    assert options == text2video_zero.Options(motion=(0.0, -1.5), t0=801)
    assert parse_options(text2video_zero.Options, []) == text2video_zero.Options()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["speed=1"], "--set=speed=1: NAME=VALUE, of motion=..., strength=..., t0"),
        (["strength"], "--set=strength: NAME=VALUE"),
        (["strength=fast"], "strength='fast': a number from 0 to 512"),
        (["strength=nan"], "strength=nan: a number"),
        (["motion=1"], r"motion=\(1.0,\): \(a number from -100 to 100, a number"),
        (["motion=0,up"], r"motion=\(0.0, 'up'\)"),
        (["motion="], r"motion=\(\)"),
        (["t0=800.5"], "t0='800.5': an integer"),
        (["smooth=2"], "smooth=2.0: a number from 0 to 1"),
        (["t0=1", "t0=2"], "t0 is given twice"),
    ],
)
def test_an_option_that_is_not_allowed_is_one_line(texts, message):
    with pytest.raises(UserError, match=message) as refusal:
        parse_options(text2video_zero.Options, texts)
    assert "\n" not in str(refusal.value)


# --- edit.py --control ----------------------------------------------------------------


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """Return flags of an image model, a ControlNet of it and a clip of 5 frames."""
    folder = tmp_path_factory.mktemp("controlled")
    workdir = small_model.write_sd_model(folder, small_model.controlled_config())
    small_model.write_controlnet(folder / "control", runs.load(workdir))
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, 5, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "clip.npz", videos=clip)
    return (
        f"--workdir={workdir}", f"--control={folder}/clip.npz", "--control_from=edges",
        f"--controlnet={folder}/control", "--prompt=a cat",
    )  # fmt: skip


def test_control_video_writes_a_video_by_two_controlnets(controlled, tmp_path):
    """All frames of the clip; the second ControlNet has another kind and scale."""
    out, network = tmp_path / "out", controlled[3]
    done = call(
        "edit", *controlled, network, "--control_from=luma", "--control_scale=1",
        "--control_scale=0.5", "--control_end=0.5", "--num_frames=0",
        "--system=control_video", "--set=together=3", "--steps=4", f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out / "samples.npz") as arrays:
        assert arrays["videos"].shape == (1, 5, 8, 8, 3)
    about = json.loads((out / "samples.json").read_text())
    assert about["system"]["name"] == "control_video"
    first, second = about["controls"]
    assert first["clip_frames"] == [0, 1, 2, 3, 4] and first["control_from"] == "edges"
    assert (second["control_from"], second["scale"], second["end"]) == (
        "luma",
        0.5,
        0.5,
    )


def test_text2video_zero_follows_controls(controlled, tmp_path):
    """Frames of equal controls are equal: they start from one noise, unmoved."""
    still = np.full((1, 4, 8, 8, 3), 90, np.uint8)
    still[0, 3, 2:6] = 200
    np.savez(tmp_path / "clip.npz", videos=still)
    out = tmp_path / "out"
    flags = [controlled[0], f"--control={tmp_path}/clip.npz", *controlled[2:]]
    done = call(
        "edit", *flags, SYSTEM, "--num_frames=4", "--steps=3", f"--out={out}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out / "samples.npz") as arrays:
        video = arrays["videos"][0].astype(int)
    assert abs(video[1:3] - video[0]).max() <= 1 < abs(video[3] - video[0]).max()


def test_a_picture_is_the_control_of_every_frame(controlled, tmp_path):
    """Of as many as are wanted, by default of 8."""
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "picture.png")
    flags = [controlled[0], f"--control={tmp_path}/picture.png", *controlled[2:]]
    out = tmp_path / "out"
    done = call("edit", *flags, CV, "--steps=2", f"--out={out}")
    assert done.returncode == 0, done.stderr
    with np.load(out / "samples.npz") as arrays:
        assert arrays["videos"].shape == (1, 8, 8, 8, 3)
    about = json.loads((out / "samples.json").read_text())
    assert about["controls"][0]["clip_frames"] == [0] * 8


def test_without_a_system_a_control_makes_a_picture(controlled, tmp_path):
    done = call("edit", *controlled, "--steps=2", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["videos"].shape == (1, 1, 8, 8, 3)


REFUSED_CONTROLS = [
    (
        [CV, "--num_frames=9"],
        "clip.npz gives 5 frames, not 9: --num_frames=0 takes all",
    ),
    (["--set=together=4"], "--set goes with --system, not with --control alone"),
    ([SYSTEM, "--num_frames=5", "--set=motion=1,1"], "with controls has no --set"),
    ([CV, "--control_from=silhouette"], "2 of --control_from for 1 of --controlnet"),
    (
        [CV, "--num_frames=5", "--control_scale=20"],
        "scale 20.0 of a control: from 0 to",
    ),
    ([CV, "--num_frames=5", "--set=window=2"], "window=2: 0, or 3 and more"),
    (
        [CV, "--num_frames=5", "--steps=4", "--control_start=.5", "--control_end=.6"],
        "a control from 0.5 to 0.6 has no step of 4 within",
    ),
    ([CV, "--tiles=2"], "--upscale or --edit, not with --control"),
    ([SYSTEM, "--num_frames=5", "--set=strength=3"], "with controls has no --set"),
    (["--num_frames=3"], "without --system this model makes 1"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED_CONTROLS)
def test_what_edit_py_refuses_with_a_control(controlled, tmp_path, flags, message):
    """One line, and no file is written."""
    out = tmp_path / "out"
    assert message in refused("edit", *controlled, f"--out={out}", *flags)
    assert not list(out.glob("*"))


def test_memory_is_counted_for_all_videos(controlled, tmp_path, flags_of, monkeypatch):
    """Those of each line of a file, or without a text those of the model's config."""
    flags_of("edit")
    FLAGS.mark_as_parsed()
    cascade = cascades.read_model(controlled[0].partition("=")[2])
    for name in ("control", "control_from", "controlnet"):
        flag = next(each for each in controlled if each.startswith(f"--{name}="))
        FLAGS[name].parse(flag.partition("=")[2])
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cow\n")
    counted = []

    def read_control(output, clip):
        counted.append(output.num)
        raise UserError("counted")

    monkeypatch.setattr(observations, "read_control", read_control)
    for flags in ({}, {"prompts": str(tmp_path / "prompts.txt")}, {"num": 2}):
        for name, value in flags.items():
            FLAGS[name].parse(value)
        with pytest.raises(UserError, match="counted"):
            controls.add_controls(cascade)
    assert counted == [cascade.stages[0].config.sample.num, 3, 6]


def test_a_model_s_folder_is_no_controlnet(controlled, tmp_path):
    workdir = controlled[0].partition("=")[2]
    flags = [each for each in controlled if not each.startswith("--controlnet=")]
    line = refused("edit", *flags, f"--controlnet={workdir}", f"--out={tmp_path}/out")
    assert "is of no class of diffusers: give a folder of ControlNetModel" in line


def test_controls_that_were_not_trained_on_are_refused(controlled, tmp_path):
    flags = [each.replace("edges", "silhouette") for each in controlled]
    line = refused("edit", *flags, CV, f"--out={tmp_path}/out")
    assert "was trained on luma, edges, not on silhouette" in line
    line = refused("edit", *controlled[:3], CV, f"--out={tmp_path}/out")
    assert "--control needs --controlnet=FOLDER" in line
    line = refused("sample", controlled[0], CV, f"--out={tmp_path}/out")
    assert "edit.py --system=control_video" in line
