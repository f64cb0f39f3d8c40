"""``python -m vdm_jax.data check``: what it says is what training would find."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from vdm_jax import video_io
from vdm_jax.data import __main__ as command
from vdm_jax.data import check as data_check

SMALL = ["--frames=4", "--height=16", "--width=16"]


def make_mp4(path, frames=12, fps=8, size=(16, 24), moves=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = np.zeros((frames, *size, 3), np.uint8)
    for number in range(frames):
        left = number % 12 if moves else 3
        video[number, 4:10, left : left + 6] = (200, 30, 90)
    video_io.write_video(path, video, fps, scale=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("check") / "videos"
    make_mp4(root / "cats" / "a.mp4")
    make_mp4(root / "cats" / "b.mp4", fps=16)
    make_mp4(root / "dogs" / "c.mp4", moves=False)
    make_mp4(root / "short.mp4", frames=3)
    make_mp4(root / "damaged.mp4", frames=30)
    (root / "empty.webm").write_bytes(b"")
    path = root / "damaged.mp4"
    data = bytearray(path.read_bytes())
    half = data.index(b"mdat") + 900
    data[half : half + 200] = bytes(200)  # the index stays whole
    path.write_bytes(data)
    (root / "cats" / "a.txt").write_text("a red box\nmoving\n")
    (root / "captions.jsonl").write_text('{"file": "lost.mp4", "caption": "x"}\n')
    return root


@pytest.fixture
def check(videos, tmp_path, capsys):
    def run(*flags, where=videos):
        if not any(flag.startswith(("--fps", "--stride")) for flag in flags):
            flags += ("--stride=1",)
        sheet = f"--sheet={tmp_path / 'sheet.png'}"
        cache = f"--cache-dir={videos.parent / 'cache'}"
        status = command.main(["check", str(where), sheet, cache, *SMALL, *flags])
        return status, *capsys.readouterr()

    return run


def test_json_holds_the_facts(check, tmp_path):
    status, out, _ = check("--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["found"], facts["kept"]) == (6, 3)
    dropped = {item["file"]: item["reason"] for item in facts["dropped"]}
    assert set(dropped) == {"damaged.mp4", "empty.webm", "short.mp4"}
    assert "frame" in dropped["damaged.mp4"] and "empty" in dropped["empty.webm"]
    assert "too short" in dropped["short.mp4"]
    assert facts["fps"] == {"8": 2, "16": 1} and facts["sizes"] == {"24x16": 3}
    assert facts["labels"] == {"cats": 2, "dogs": 1} and facts["without_label"] == 0
    assert (facts["captioned"], facts["captions"]) == (1, 2)
    assert facts["not_there"] == ["lost.mp4"] and facts["still"] == ["dogs/c.mp4"]
    assert facts["seconds"]["total"] == pytest.approx(12 / 8 + 12 / 16 + 12 / 8)
    assert facts["clips"] + facts["held_out_clips"] == 9 and facts["held_out_files"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * 64 and sheet.width > 8 * 64


def test_text_names_what_was_dropped_and_why(check):
    status, out, err = check()
    assert status == 0 and not err
    assert "refuses" not in check("--max-bad-share=0.5")[1]
    for words in (
        "found     6 videos",
        "short.mp4: too short: 3 frames, a clip spans 4 frames",
        "cats (2), dogs (1)",
        "1 of 3 videos have one, 2 in all",
        "no motion 1: dogs/c.mp4",
        "not there 1: lost.mp4",
        "training refuses this folder: 0.50 of it are dropped",
    ):
        assert words in out, words


def test_settings_decide_what_is_too_short(check):
    status, _, err = check("--stride=4")
    assert status == 2 and "too short: 12 frames, a clip spans 13 frames" in err


def test_a_rate_drops_the_slow(check):
    status, out, _ = check("--json", "--fps=16")
    facts = json.loads(out)
    assert status == 0 and facts["kept"] == 1
    status, out, err = check("--fps=100")
    assert status == 2 and not out and err.count("\n") == 1
    assert err.startswith("error: ") and "frames would repeat" in err


def test_the_defaults_are_those_of_the_config():
    parser = argparse.ArgumentParser()
    data_check.add_arguments(parser)
    given = parser.parse_args(["videos"])
    config = folder_config.get_config()
    video, data = config.video, config.data
    assert (given.frames, given.height, given.width) == (
        video.frames, video.height, video.width,
    )  # fmt: skip
    assert (given.fps, given.held_out) == (data.target_fps, data.held_out)
    assert given.max_bad_share == data.max_bad_share


@pytest.mark.parametrize("flags", [["--stride=0"], ["--frames=31"], ["--held-out=2"]])
def test_wrong_input_is_one_line_and_status_2(check, flags):
    status, out, err = check(*flags)
    assert status == 2 and not out and err.count("\n") == 1


def test_a_sheet_that_cannot_be_written(check, videos):
    status, out, err = check(f"--sheet={videos / 'short.mp4' / 'sheet.png'}")
    assert status == 2 and not out and err.count("\n") == 1
    assert "short.mp4 cannot be a folder for output" in err


def test_an_empty_folder_is_status_2(check, tmp_path):
    (tmp_path / "none").mkdir()
    status, out, err = check(where=tmp_path / "none")
    assert status == 2 and "no video found" in err


def test_the_command_line(videos):
    missing = subprocess.run(
        [sys.executable, "-m", "vdm_jax.data", "check", str(videos / "no")],
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    assert missing.stderr.count("\n") == 1
