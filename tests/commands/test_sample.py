"""sample.py: what it refuses before any compile, and what it writes."""

import json

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.run_command import call, refused
from vdm_jax import video_io
from vdm_jax.commands import sample_cascade
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS


def test_sample_writes_every_format_and_overwrites_only_with_the_flag(run, tmp_path):
    flags = [f"--workdir={run}", f"--out={tmp_path}/s", "--label=red,left", "--num=3"]
    done = call("sample", *flags)
    assert done.returncode == 0, done.stderr
    for kind in ("mp4", "gif", "png", "npz", "json"):
        assert (tmp_path / "s" / f"samples.{kind}").stat().st_size > 0
    videos = np.load(tmp_path / "s" / "samples.npz")["videos"]
    assert videos.shape == (3, 8, 16, 16, 3)
    assert "--overwrite" in refused("sample", *flags)
    refused("sample", *flags[:2], "--overwrite", "--label=purple")
    assert (tmp_path / "s" / "samples.npz").exists()  # nothing is lost to a mistake
    assert call("sample", *flags, "--overwrite").returncode == 0
    again = np.load(tmp_path / "s" / "samples.npz")["videos"]
    np.testing.assert_array_equal(again, videos)  # the seed decides


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps=0"], "steps=0"),
        (["--guidance_scale=nan"], "guidance_scale=nan"),
        (["--sampler=euler"], "one of ddim, ancestral"),
        (["--label=purple"], "no value 'purple'"),
        (["--seed=-1"], "seed"),
        (["--seed=4294967296"], "seed"),
        (["--extend=a.mp4", "--inpaint=a.mp4"], "--inpaint does not go with --extend"),
        (["--extend="], "--extend= is empty"),
        (["--mask=a.png"], "--mask goes with --inpaint"),
        (["--num_cond_frames=2"], "goes with --extend or --interpolate, not with a"),
        (["--prompt=a", "--label=x"], "--label goes with a sample from noise or"),
        (["--extend=/absent.mp4"], "/absent.mp4"),
        (["--num_frames=4"], "at least 8"),
        (["--overlap_frames=8"], "from 0 to 7"),
        (["--tiles=0x2"], "--tiles=0x2"),
        (["--negative_label=red", "--guidance_scale=1"], "needs --guidance_scale"),
        (["--negative_label=purple"], "--negative_label=purple"),
        (["--ancestral_gamma=0.5"], "--ancestral_gamma goes with sampler=ancestral"),
        (["--s_churn=1", "--sampler=dpm"], "--s_churn goes with sampler=heun"),
        (["--multidiffusion=true", "--overlap_frames=2"], "is for blocks"),
        (["--guidance_schedule=sine"], "oscillating:LOW:FIRST"),
        (["--workdir=/absent"], "holds no config.json"),
    ],
)
def test_sample_refuses(run, tmp_path, flags, message):
    given = {"--workdir": run, "--out": tmp_path / "s"}
    given |= dict(flag.split("=", 1) for flag in flags)
    assert message in refused("sample", *(f"{k}={v}" for k, v in given.items()))


@pytest.mark.parametrize("text", [b"[]", b'{"video": {}}', b"\xff\xfe"])
def test_a_corrupt_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    refusal = refused("sample", f"--workdir={tmp_path}", f"--out={tmp_path}/s")
    assert "config.json is not" in refusal


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


@pytest.mark.parametrize("edit", list(EDITS))
def test_an_edit_keeps_the_pixels_of_its_clip(run, tmp_path, edit):
    """From a file, through the model, to a file: known pixels are the file's."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, 16, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", videos=video)
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    clip = tmp_path / "samples.npz"
    if edit == "upscale":  # a file at the output's size does not exist: it is shrunk
        clip = tmp_path / "clip.mp4"
        video_io.write_video(clip, video[0], 8)
    files = {"clip": clip, "mask": tmp_path / "mask.png"}
    flags = [flag.format(**files) for flag in EDITS[edit]]
    out = tmp_path / "s"
    done = call("sample", f"--workdir={run}", f"--out={out}", "--num=2", *flags)
    assert done.returncode == 0, done.stderr
    made = np.load(out / "samples.npz")["videos"]
    described = json.loads((out / "samples.json").read_text())
    assert described["observation"]["clip"] == str(clip)
    # A label drawn at random would contradict what the clip shows.
    assert described["labels"] == ["", ""] and "without guidance" in done.stdout
    assert "the rest is ignored" in done.stdout
    if edit == "extend":
        assert made.shape == (2, 14, 16, 16, 3)
        np.testing.assert_array_equal(made[:, :3], np.stack([video[0, :3]] * 2))
    if edit == "inpaint":
        np.testing.assert_array_equal(made[0, :, 8:], video[0, :8, 8:])
        assert (made[0, :, :8] != video[0, :8, :8]).mean() > 0.5
    if edit == "upscale":
        assert made.shape == (2, 8, 16, 32, 3)


def test_prompts_of_a_file_end_where_its_lines_do(flags_of, tmp_path):
    flags_of("sample")
    FLAGS.mark_as_parsed()
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8and on\n\n")
    FLAGS["prompts"].parse(str(file))
    assert sample_cascade.read_prompts([(1, 2, 2, 3)]) == ["one", "two\u2028and on"]
    for bad in (b"a\0b", b"\xed\xa0\x80", b"\xff\xfea"):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="--prompts="):
            sample_cascade.read_prompts([])
    file.write_text("one")
    FLAGS["num"].parse(10**9)
    with pytest.raises(UserError, match="--num=1000000000.*GiB of memory needed"):
        sample_cascade.read_prompts([(8, 16, 16, 3)])
