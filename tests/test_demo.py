"""The demo: its commands, its page, and, slow, a run of it."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.run_command import ROOT
from vdm_jax import demo, video_io
from vdm_jax.errors import UserError


def write_noise(part, out):
    """Write what the command of a part writes, with noise as videos."""
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    meta, folder = {"command": "x", "workdir": "models/shapes"}, out / part.name
    if part.name == "pictures":
        videos = videos[:, :1]
    if part.name == "prompts":
        meta, folder = meta | {"stages": ["base", "ssr1"]}, folder / "ssr1"
    video_io.write_samples(folder, "samples", videos, 8, meta, ["a", "<b>"])


def test_the_page_has_all_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "sample", write_noise)
    demo.main([f"--out={tmp_path}"])
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == tmp_path / "report" / "index.html"
    page = path.read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "A student of eight steps", "Pictures from sentences",
        "A video of an image model: Text2Video-Zero", "Prompts, stage by stage",
        "A model of natural videos", "Seconds", "Next commands",
    ]  # fmt: skip
    assert "<b>" not in page and page.count("sample.py") >= len(demo.PARTS)
    assert page.count("<img") == 3 + 2 * len("ab")


def test_the_next_commands_name_what_exists():
    words = [word for line in demo.NEXT_COMMANDS for word in shlex.split(line)]
    paths = [word.split("=")[-1] for word in words if "/" in word]
    paths = [path for path in paths if not path.startswith((".venv", "runs", "out"))]
    assert paths and all((ROOT / path).exists() for path in paths)
    assert "tour:" in (ROOT / "Makefile").read_text()


def test_a_failed_command_is_one_line(tmp_path):
    part = demo.Part("x", "x", "--workdir=absent")
    with pytest.raises(UserError, match="failed: python sample.py --workdir=absent"):
        demo.sample(part, tmp_path)


def test_an_installed_package_has_no_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    with pytest.raises(UserError, match="run the demo in a clone of the repository$"):
        demo.main([f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run(tmp_path, capfd):
    demo.main([f"--out={tmp_path}"])
    assert (tmp_path / "report" / "index.html").is_file()
    assert len([*tmp_path.rglob("samples-*.mp4")]) == 8 + 2 + 2 * 5
    assert len([*tmp_path.rglob("samples-*.png")]) == 6
    assert capfd.readouterr().out.endswith("index.html\n")
