"""sample.py: what it refuses before any compile, and what it writes."""

from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

from tests.run_command import ROOT, call, refused
from vdm_jax import cascade
from vdm_jax.commands import sampling
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
        (["--extend=a.mp4"], "--extend is edit.py --extend now"),
        (["--prompt=a"], "was trained without text"),
        (["--last_stage=base"], "--last_stage goes with --cascade, not with --workdir"),
        (["--out="], "--out= is empty"),
        (["--num=0"], "--num=0"),
        (["--num_frames=4"], "at least 8"),
        (["--overlap_frames=8"], "from 0 to 7"),
        (["--tiles=0x2"], "--tiles=0x2"),
        (["--size=18x16"], "size 18x16: video.height=18 must be a multiple of 4"),
        (["--size=16x"], "--size=16x: HEIGHTxWIDTH in pixels or one number for both"),
        (["--negative_label=red", "--guidance_scale=1"], "needs a guidance_scale"),
        (["--negative_label=purple"], "--negative_label=purple"),
        (["--steps=1024", "--sampling_schedule=discrete"], "use fewer steps"),
        (["--ancestral_gamma=0.5"], "ancestral_gamma goes with sampler=ancestral"),
        (["--s_churn=1", "--sampler=dpm"], "s_churn goes with sampler=heun"),
        (["--multidiffusion=true", "--overlap_frames=2"], "is for blocks"),
        (["--guidance_schedule=sine"], "oscillating:LOW:FIRST"),
        (["--workdir=/absent"], "holds no config.json"),
    ],
)
def test_sample_refuses(run, tmp_path, flags, message):
    given = {"--workdir": run, "--out": tmp_path / "s"}
    given |= dict(flag.split("=", 1) for flag in flags)
    assert message in refused("sample", *(f"{k}={v}" for k, v in given.items()))
    assert not (tmp_path / "s").exists()


def test_sample_makes_videos_of_another_size(run, tmp_path):
    out = f"--out={tmp_path}/s"
    done = call("sample", f"--workdir={run}", out, "--num=1", "--size=12x24")
    assert done.returncode == 0, done.stderr
    assert "12x24: the model was trained at 16x16" in done.stdout
    videos = np.load(tmp_path / "s" / "samples.npz")["videos"]
    assert videos.shape == (1, 8, 12, 24, 3) and videos.std() > 0


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ("20x16", "20x16: the model was trained at 16x16, 16x32, 8x8\n"),
        ("16x32", ""),
        ("16", ""),
    ],
)
def test_sizes_of_training_are_listed(flags_of, monkeypatch, capsys, size, line):
    flags_of("sample")
    FLAGS.mark_as_parsed()
    FLAGS["size"].parse(size)
    rows = [(8, 16, 16, 2), (4, 16, 32, 1), (1, 16, 32, 1), (8, 8, 8, 4)]
    config = ConfigDict({"mixed_sizes": {"rows": rows}, "network": {"kind": "dit"}})
    model = SimpleNamespace(video_shape=(8, 16, 16, 3))
    stage, read = SimpleNamespace(model=model, config=config), []

    def read_model(workdir, *size):
        read.extend(size)
        return SimpleNamespace(stages=(stage,))

    monkeypatch.setattr(sampling.cascades, "read_model", read_model)
    sampling.read_model()
    assert capsys.readouterr().out == line
    assert read == {"20x16": [(20, 16)], "16x32": [(16, 32)], "16": []}[size]


@pytest.mark.parametrize("text", [b"[]", b'{"video": {}}', b"\xff\xfe"])
def test_a_corrupt_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    refusal = refused("sample", f"--workdir={tmp_path}", f"--out={tmp_path}/s")
    assert "config.json is not" in refusal


def test_prompts_of_a_file_end_where_its_lines_do(flags_of, tmp_path):
    flags_of("sample")
    FLAGS.mark_as_parsed()
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8and on\n\n")
    FLAGS["prompts"].parse(str(file))
    model = cascade.read_model(ROOT / "models" / "shapes")
    assert sampling.read_prompts(model) == (["one", "two\u2028and on"], 2)
    for bad in (b"a\0b", b"\xed\xa0\x80", b"\xff\xfea"):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="--prompts="):
            sampling.read_prompts(model)
    file.write_text("one")
    FLAGS["num"].parse(10**9)
    with pytest.raises(UserError, match="num=1000000000.*GiB of memory needed"):
        sampling.read_prompts(model)
