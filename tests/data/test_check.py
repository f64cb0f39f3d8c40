"""``python -m vdm_jax.data check``: what it says is what training would find."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from vdm_jax import config_files, video_io
from vdm_jax.data import __main__ as command
from vdm_jax.data import check as data_check
from vdm_jax.errors import UserError

# ml_collections loads config files by what Python will one day be without.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
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


def settled(*words):
    config, rest = config_files.take_config_flags(words)
    parser = argparse.ArgumentParser()
    data_check.add_arguments(parser)
    return data_check.fill_in_defaults(parser.parse_args(rest), config)


def test_the_defaults_are_those_of_the_config():
    given = settled("videos")
    config = folder_config.get_config()
    video, data = config.video, config.data
    assert (given.frames, given.height, given.width) == (
        video.frames, video.height, video.width,
    )  # fmt: skip
    assert (given.fps, given.held_out) == (data.target_fps, data.validation_fraction)
    assert (given.max_bad_share, given.cache_dir) == (data.max_bad_fraction, "")
    assert given == settled("videos", "--config=configs/folder.py")
    assert settled("videos", "--stride=2").fps == 0


def test_a_config_says_what_a_clip_is():
    given = settled(
        "--config", "configs/folder.py:cpu", "videos", "--config.video.frames=1",
        "--config.data.target_fps=0.", "--config.data.stride=3",
        "--config.data.cache_dir=c", "--json",
    )  # fmt: skip
    assert (given.frames, given.height, given.width) == (1, 32, 32)
    assert (given.fps, given.stride, given.cache_dir) == (0.0, 3, "c")
    assert str(given.dir) == "videos" and given.json
    config = "--config=configs/folder.py"
    assert settled(config, "--config.data.path=v").dir == "v"
    for words, said in [
        ([config, "v", "--held-out=.2"], "--config.data.validation_fraction=0.2"),
        ([config, "v", "--fps=2"], "beside it, --config.data.target_fps=2"),
        ([config], "give the folder"),
        ([config, "--config.data.path=gs://x"], "config.data.path=gs://x"),
        ([config, "v", "--config.data.cache_dir=s3://x"], "cache_dir=s3://x"),
        ([config, "v", "--config.nosuch=1"], "the config has no field 'nosuch'"),
        ([], "give the folder"),
        (["--config=configs/shapes.py", "v"], "config.data.source=folder"),
        (["--config=configs/foldr.py", "v"], "no such file; did you mean configs/fol"),
        ([config + ":big", "v"], "no variant 'big'"),
        ([config, "v", "--config.video.frame=1"], "frame"),
        ([config, "v", "--config.video.frames=one"], "one"),
        (["v", "--config"], "--config= is empty"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            settled(*words)
        assert str(caught.value).isprintable()


def test_single_pictures_are_checked_for_a_config_of_images(tmp_path, check):
    for name in "abc":
        place = tmp_path / "pictures" / name
        place.mkdir(parents=True)
        pixels = np.random.default_rng(ord(name)).integers(
            0, 255, (40, 40, 3), np.uint8
        )
        Image.fromarray(pixels).save(place / "1.png")
    status, _, err = check(where=tmp_path / "pictures")
    assert status == 2 and "a clip spans 4" in err
    words = [str(tmp_path / "pictures"), f"--sheet={tmp_path / 's.png'}", "--json"]
    config = ["--config=configs/folder.py:smoke", "--config.video.frames=1"]
    config += [f"--config.data.cache_dir={tmp_path / 'cache'}"]
    assert command.main(["check", *words, *config]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--stride=0"],
        ["--frames=31"],
        ["--held-out=2"],
        ["--max-bad-share=nan"],
        ["--frames=99999999999999999999"],
        ["--fps=1e300"],
    ],
)
def test_wrong_input_is_one_line_and_status_2(check, flags):
    status, out, err = check(*flags)
    assert status == 2 and not out and err.count("\n") == 1


def test_a_sheet_that_cannot_be_written(check, videos):
    status, out, err = check(f"--sheet={videos / 'short.mp4' / 'sheet.png'}")
    assert status == 2 and not out and err.count("\n") == 1
    assert "short.mp4 cannot be an output folder" in err


def test_a_report_whose_sheet_fails_is_printed_all_the_same(check, monkeypatch):
    def full(*what, **how):
        raise UserError("no space left on device")

    monkeypatch.setattr(video_io, "write_sheet", full)
    status, out, err = check()
    assert status == 2 and "kept" in out and "--sheet=" in err


def test_an_empty_folder_is_status_2(check, tmp_path):
    (tmp_path / "none").mkdir()
    status, out, err = check(where=tmp_path / "none")
    assert status == 2 and "no videos found" in err


def test_the_command_line(videos):
    missing = subprocess.run(
        [sys.executable, "-m", "vdm_jax.data", "check", str(videos / "no")],
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    assert missing.stderr.count("\n") == 1
