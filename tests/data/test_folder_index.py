"""Usable files of a folder and their split: vdm_jax/data/folder_index.py."""

import dataclasses
import hashlib
import os

import numpy as np
import pytest

from tests.data.folders import (
    InProcessDecoder,
    make_frames,
    make_mp4,
    names,
    number,
    rng,
    stub,
)
from vdm_jax import video_io
from vdm_jax.data import folder_index
from vdm_jax.errors import UserError
from vdm_jax.video_io import FrameSelection


def test_too_many_unusable_files_are_an_error(videos, open_videos):
    for n in range(3):
        make_mp4(videos / f"{n}.mp4", n)
    for n in range(2):
        (videos / f"bad{n}.mp4").write_bytes(b"")
    assert len(open_videos(max_bad_fraction=0.4).report.skipped) == 2
    with pytest.raises(
        UserError, match=r"2 of 5 .*max_bad_fraction=0.3.*bad0.mp4: empty"
    ):
        open_videos(max_bad_fraction=0.3)


def test_unusable_files_are_skipped_with_their_reasons(videos, tmp_path, open_videos):
    make_mp4(videos / "good.mp4")
    make_mp4(videos / "short.mp4", frames=3)
    make_mp4(videos / "flat.mp4", video=np.full((9, 24, 32, 3), 7, np.uint8))
    make_mp4(videos / "said.mp4", 5)
    (videos / "said.txt").write_bytes(b"\xe9\x00bad")
    (videos / "empty.mov").write_bytes(b"")
    data = (videos / "good.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(data[:-500])
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(data)
    os.symlink(outside, videos / "out.mp4")
    os.symlink(videos / "nowhere", videos / "broken.webm")
    os.symlink(tmp_path, videos / "way-out")
    os.symlink(videos / "good.mp4", videos / "inside.mp4")
    make_frames(videos / "frames")
    os.symlink(tmp_path / "outside.mp4", videos / "frames" / "99.png")
    source = open_videos(validation_fraction=0.0)
    assert {file.name for file in source.files} == {"good.mp4", "inside.mp4"}
    reasons = dict(source.report.skipped)
    for name, reason in {
        "short.mp4": "too short: 3 frames",
        "flat.mp4": "constant",
        "said.mp4": "not UTF-8",
        "empty.mov": "empty file",
        "cut.mp4": "truncated",
        "out.mp4": "symlink that leaves the folder",
        "broken.webm": "broken symlink",
        "way-out": "symlink to a folder",
        "frames": "symlink that leaves the folder",
    }.items():
        assert reason in reasons.pop(name), name
    assert not reasons
    assert source.report.num_videos == 11
    text = "\n".join(source.report.summary_lines())
    assert "11 videos, 2 usable, 9 skipped" in text and "flat.mp4: constant" in text
    assert len(source.report.summary_lines(most=3)) == 5


def test_no_usable_video_is_reported_in_one_line(videos, open_videos):
    with pytest.raises(UserError, match="no videos found"):
        open_videos()
    for name in "abc":
        make_mp4(videos / f"{name}.mp4", frames=2)
    (videos / "0.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of 4 .* 3 for .* a.mp4: too") as caught:
        open_videos()
    assert caught.value.status == 2 and "\n" not in str(caught.value)


def test_the_index_is_stored(videos, open_videos, monkeypatch):
    make_mp4(videos / "a.mp4")
    make_mp4(videos / "flat.mp4", video=np.full((9, 24, 32, 3), 7, np.uint8))
    first = open_videos()

    def inspect(*_):
        raise AssertionError("a file is open_videos again")

    monkeypatch.setattr(InProcessDecoder, "inspect", inspect)
    assert open_videos().report == first.report


SHAPE = FrameSelection(4)


def test_the_split_is_by_file_stable_and_close_to_its_fraction():
    digest = hashlib.sha256(b"cats/a.mp4").hexdigest()  # on every machine
    assert folder_index._hash("cats/a.mp4") == int(digest[:16], 16) / 2**64
    files = [stub(f"{n}.mp4") for n in range(400)]
    train, out = folder_index.split_files(files, 0.1, SHAPE)
    assert names(train) | names(out) == names(files)
    assert not names(train) & names(out)
    assert 20 <= len(out) <= 60
    fewer, fewer_out = folder_index.split_files(files[:300], 0.1, SHAPE)
    assert names(fewer_out) <= names(out)  # more files move none of the old ones
    assert names(folder_index.split_files(files, 0.3, SHAPE)[1]) >= names(out)
    assert folder_index.split_files(files[::-1], 0.1, SHAPE)[1][0].name in names(out)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_both_parts_have_a_file(fraction):
    for count in (2, 3):
        train, out = folder_index.split_files(
            [stub(str(n)) for n in range(count)], fraction, SHAPE
        )
        assert train and out


def test_a_small_folder_holds_out_few_files():
    unlucky = sorted(
        (stub(str(n)) for n in range(200)), key=lambda f: folder_index._hash(f.name)
    )
    assert (
        len(folder_index.split_files(unlucky[:7], 0.1, SHAPE)[1]) == 2
    )  # all below the fraction


def test_one_file_is_split_in_time_or_not_at_all():
    (train,), (out,) = folder_index.split_files([stub("a", 100)], 0.1, SHAPE)
    assert (train.start, train.stop, out.start, out.stop) == (0, 90, 90, 100)
    (train,), (out,) = folder_index.split_files([stub("a", 8)], 0.1, SHAPE)
    assert (train.stop, out.start) == (4, 4)  # at least a clip
    train, out = folder_index.split_files([stub("a", 7)], 0.1, SHAPE)
    assert len(train) == 1 and not out
    assert folder_index.split_files([stub("a", 4)], 0.1, SHAPE)[1] == ()
    assert folder_index.split_files([stub("a", 100)], 0.0, SHAPE)[1] == ()


def test_one_file_that_slows_down_is_not_split():
    """The rate of its end alone would be below the target rate."""
    pts = np.cumsum([0] + [1] * 90 + [9] * 9)
    info = dataclasses.replace(stub("a", 100).info, pts=pts, time_base=1 / 40)
    file = dataclasses.replace(stub("a", 100), info=info)
    shape = FrameSelection(4, fps=10.0)
    train, out = folder_index.split_files([file], 0.1, shape)
    assert len(train) == 1 and not out
    assert folder_index.split_files([file], 0.5, shape)[1]


@pytest.mark.parametrize("frames", [4, 5, 9, 12, 100])
@pytest.mark.parametrize("stride", [1, 2])
def test_clip_ranges_cover_every_start_once(frames, stride):
    shape = FrameSelection(4, stride=stride)
    file = stub("a", frames)
    room = frames - 3 * stride
    if room < 1:
        with pytest.raises(video_io.BadVideo):
            folder_index.clip_ranges(file, shape)
        return
    ranges = folder_index.clip_ranges(file, shape)
    covered = [start for low, high in ranges for start in range(low, high)]
    assert covered == list(range(room))
    widths = [high - low for low, high in ranges]
    assert max(widths) - min(widths) <= 1 and max(widths) <= 3 * stride + 1


def test_slow_files_are_skipped_and_frames_have_no_rate(videos, open_videos):
    make_mp4(videos / "slow.mp4", fps=4)
    make_frames(videos / "frames")
    source = open_videos(validation_fraction=0.0, target_fps=8.0)
    assert names(source.files) == {"frames"}
    assert (
        "4 frames per second are below the 8" in dict(source.report.skipped)["slow.mp4"]
    )
    assert (np.diff(number(source.load(0, rng(), 4)["video"])) == 1).all()
