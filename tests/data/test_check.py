"""``python -m vdm_jax.data check``: vdm_jax/data/check.py."""

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
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.errors import UserError

# ml_collections loads config files by what Python will one day be without.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SMALL = ["--num_frames=4", "--height=16", "--width=16"]


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
    make_mp4(root / "corrupt.mp4", frames=30)
    (root / "empty.webm").write_bytes(b"")
    path = root / "corrupt.mp4"
    data = bytearray(path.read_bytes())
    half = data.index(b"mdat") + 900
    data[half : half + 200] = bytes(200)  # the index stays intact
    path.write_bytes(data)
    (root / "cats" / "a.txt").write_text("a red box\nmoving\n")
    (root / "captions.jsonl").write_text('{"file": "lost.mp4", "caption": "x"}\n')
    return root


@pytest.fixture
def check(videos, tmp_path, capsys):
    def run(*flags, where=videos):
        if not any(flag.startswith("--fps") for flag in flags):
            flags += ("--fps=0",)
        sheet = f"--sheet={tmp_path / 'sheet.png'}"
        cache = f"--cache_dir={videos.parent / 'cache'}"
        status = command.main(["check", str(where), sheet, cache, *SMALL, *flags])
        return status, *capsys.readouterr()

    return run


def test_json_has_the_facts(check, tmp_path):
    status, out, _ = check("--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["videos"], facts["usable"]) == (6, 3)
    skipped = dict(line.split(": ", 1) for line in facts["skipped"])
    assert set(skipped) == {"corrupt.mp4", "empty.webm", "short.mp4"}
    assert "frame" in skipped["corrupt.mp4"] and "empty" in skipped["empty.webm"]
    assert "too short" in skipped["short.mp4"]
    assert facts["missing"] == ["lost.mp4"]
    files = {fact["file"]: fact for fact in facts["files"]}
    assert [fact["fps"] for fact in files.values()].count("8") == 2
    assert {fact["size"] for fact in files.values()} == {"24x16"}
    assert files["cats/b.mp4"]["label"] == "cats" and files["cats/a.mp4"]["moves"]
    assert files["cats/a.mp4"]["captions"] == 2 and files["cats/b.mp4"]["captions"] == 0
    assert not files["dogs/c.mp4"]["moves"]
    assert sum(fact["seconds"] for fact in files.values()) == pytest.approx(3.75)
    assert sum(fact["clips"] for fact in files.values()) == 9
    assert {fact["part"] for fact in files.values()} == {"training", "held out"}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * 64 and sheet.width > 8 * 64


def test_text_names_skipped_videos_and_reasons(check):
    status, out, err = check()
    assert status == 0 and not err
    assert "rejects" not in check("--max_bad_fraction=0.5")[1]
    for words in (
        "videos       6\n",
        "skipped      3\n  corrupt.mp4: ",
        "  short.mp4: too short: 3 frames, a clip spans 4 frames\n",
        "label        cats: 2, dogs: 1\n",
        "captions     0 to 2, 2 in total\n",
        "moves        True: 2, False: 1\n",
        "missing      1\n  lost.mp4\n",
        "training rejects this folder: 0.50 of it is skipped",
    ):
        assert words in out, words


def test_the_settings_define_too_short(check):
    status, _, err = check("--stride=4")
    assert status == 2 and "too short: 12 frames, a clip spans 13 frames" in err


def test_a_rate_skips_slower_videos(check):
    status, out, _ = check("--json", "--fps=16")
    facts = json.loads(out)
    assert status == 0 and facts["usable"] == 1
    status, out, err = check("--fps=100")
    assert status == 2 and not out and err.count("\n") == 1
    assert err.startswith("error: ") and "frames would repeat" in err


def config_of(*words):
    """Return the config of a command line of ``check``."""
    config, rest = command.parse(["check", *words])
    data_check.set_folder(config, rest.dir)
    return config


def clip(config):
    """Return what the check reads of a config."""
    fields = ("path", "stride", "target_fps", "validation_fraction", "cache_dir")
    data = {name: config.data[name] for name in (*fields, "max_bad_fraction")}
    return config.video.to_dict(), data


def test_the_defaults_are_those_of_the_config():
    config = folder_config.get_config().unlock()
    config.data.path = "videos"
    assert clip(config_of("videos")) == clip(config)
    assert clip(config_of("videos", "--config=configs/folder.py")) == clip(config)
    by_stride = config_of("videos", "--stride=2", "--fps", "0").data
    assert (by_stride.target_fps, by_stride.stride) == (0, 2)
    changed = config_of("v", "--num_frames=3", "--max_bad_fraction=1", "--fps=2")
    assert (changed.video.frames, changed.data.max_bad_fraction) == (3, 1.0)
    assert changed.data.target_fps == 2.0


def test_a_config_defines_a_clip():
    made = config_of(
        "--config", "configs/folder.py:cpu", "videos", "--config.video.frames=1",
        "--fps=0.", "--config.data.stride=3", "--config.data.cache_dir=c", "--json",
    )  # fmt: skip
    assert (made.video.frames, made.video.height, made.video.width) == (1, 32, 32)
    data = made.data
    assert (data.target_fps, data.stride, data.cache_dir) == (0.0, 3, "c")
    assert data.path == "videos"
    config = "--config=configs/folder.py"
    assert config_of(config, "--config.data.path=v").data.path == "v"
    for words, message in [
        ([config], "pass the folder"),
        ([config, "--config.data.path=gs://x"], "config.data.path=gs://x"),
        ([config, "v", "--config.data.cache_dir=s3://x"], "cache_dir=s3://x"),
        ([config, "v", "--config.nosuch=1"], "the config has no field 'nosuch'"),
        (["v", "--config.nosuch=1"], "the config has no field 'nosuch'"),
        (
            [config, "v", "--config.data.crop=left"],
            "crop='left': one of center, random",
        ),
        ([], "pass the folder"),
        (["v", "--stride=2"], "set only one of them"),
        (["--config=configs/shapes.py", "v"], "config.data.source=folder"),
        (["--config=configs/foldr.py", "v"], "no such file; did you mean configs/fol"),
        ([config + ":big", "v"], "no variant 'big'"),
        ([config, "v", "--config.video.frame=1"], "frame"),
        ([config, "v", "--config.video.frames=one"], "one"),
        (["v", "--num_frames=one"], "one"),
        (["v", "--config"], "--config= is empty"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            ClipShape.from_config(config_of(*words))
        assert str(caught.value).isprintable()


def test_single_images_are_checked_for_a_config_of_one_frame(tmp_path, check):
    for name in "abc":
        place = tmp_path / "images" / name
        place.mkdir(parents=True)
        pixels = np.random.default_rng(ord(name)).integers(
            0, 255, (40, 40, 3), np.uint8
        )
        Image.fromarray(pixels).save(place / "1.png")
    status, _, err = check(where=tmp_path / "images")
    assert status == 2 and "a clip spans 4" in err
    words = [str(tmp_path / "images"), f"--sheet={tmp_path / 's.png'}", "--json"]
    config = ["--config=configs/folder.py:smoke", "--config.video.frames=1"]
    config += [f"--config.data.cache_dir={tmp_path / 'cache'}"]
    assert command.main(["check", *words, *config]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--stride=0"],
        ["--num_frames=31"],
        ["--validation_fraction=2"],
        ["--max_bad_fraction=nan"],
        ["--num_frames=99999999999999999999"],
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


def test_the_report_is_printed_if_the_sheet_fails(check, monkeypatch):
    def full(*what, **how):
        raise UserError("sheet.png could not be written")

    monkeypatch.setattr(video_io, "write_sheet", full)
    status, out, err = check()
    assert status == 2 and "usable" in out and "sheet.png" in err


def test_an_empty_folder_is_status_2(check, tmp_path):
    (tmp_path / "none").mkdir()
    status, out, err = check(where=tmp_path / "none")
    assert status == 2 and "no videos found" in err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--frames=4", "--frames is --num_frames now"),
        ("--held-out", "--held-out is --validation_fraction now"),
        ("--max-bad-share=1", "--max-bad-share is --max_bad_fraction now"),
        ("--cache-dir=c", "--cache-dir is --cache_dir now"),
    ],
)
def test_a_retired_flag_is_answered_with_the_new_one(check, old, new):
    assert check(old) == (2, "", f"error: {new}\n")


def test_the_command_line(videos):
    missing = subprocess.run(
        [sys.executable, "-m", "vdm_jax.data", "check", str(videos / "no")],
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    assert missing.stderr.count("\n") == 1
