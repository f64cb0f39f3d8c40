"""Clips of a folder of videos: vdm_jax/data/folder.py."""

import pickle

import numpy as np
import pytest

from tests.data.folders import (
    HEIGHT,
    WIDTH,
    InProcessDecoder,
    footage,
    make_frames,
    make_mp4,
    number,
    rng,
)
from vdm_jax import video_io
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError
from vdm_jax.video_io import cache
from vdm_jax.video_io.sandbox import SandboxedDecoder


def test_invalid_settings_are_rejected(videos, open_videos, tmp_path):
    make_mp4(videos / "a.mp4")
    for changes, words in [
        ({"path": ""}, "path is empty"),
        ({"path": str(tmp_path / "no")}, "does not exist"),
        ({"path": str(videos / "a.mp4")}, "is a file"),
        ({"stride": 2, "target_fps": 8.0}, "set only one of them"),
        ({"cache_dir": str(videos / "a.mp4")}, "folder .*: config.data.cache_dir choo"),
    ]:
        with pytest.raises(UserError, match=words):
            open_videos(**changes)


def test_parts_of_one_file_share_no_frame(videos, open_videos):
    make_mp4(videos / "a.mp4", frames=30)
    source = open_videos(validation_fraction=0.3)
    seen = {}
    for held_out in (False, True):
        part = source.split(held_out)
        for index in range(len(part)):
            for seed in range(30):
                for frames in (1, 4):
                    video = part.load(index, rng(seed), frames)["video"]
                    seen.setdefault(held_out, set()).update(number(video).tolist())
    assert seen == {False: set(range(21)), True: set(range(21, 30))}


def test_load_is_a_function_of_index_and_rng(videos, open_videos):
    make_mp4(videos / "a.mp4", 1)
    make_mp4(videos / "b.mp4", 2)
    source = open_videos(validation_fraction=0.0, crop="random", height=8, width=8)
    clips = set()
    for index in range(len(source)):
        for seed in range(6):
            one, two = (source.load(index, rng(seed), 4)["video"] for _ in range(2))
            assert one.shape == (4, 8, 8, 3) and one.dtype == np.uint8
            assert (one == two).all() and one.flags.c_contiguous
            clips.add(one.tobytes())
    assert len(clips) > 10


@pytest.mark.parametrize("crop, least, most", [("center", 1, 1), ("random", 4, 9)])
def test_crops_are_centered_or_random(videos, open_videos, crop, least, most):
    """The clip is as long as its file; 24x32 has nine square crops."""
    make_mp4(videos / "a.mp4", frames=4)
    source = open_videos(validation_fraction=0.0, crop=crop, height=24, width=24)
    found = {source.load(0, rng(seed), 4)["video"].tobytes() for seed in range(12)}
    assert least <= len(found) <= most


@pytest.mark.parametrize("cache_gib", [0.0, 0.01])
def test_clips_are_the_same_with_sandbox_and_in_a_worker(
    videos, open_videos, cache_gib
):
    make_mp4(videos / "a.mp4", 1)
    make_mp4(videos / "b.mp4", 2)
    expected = open_videos(cache_gib=0.0).load(0, rng(), 4)["video"]
    source = open_videos(cache_gib=cache_gib)
    source._reader.decoder = SandboxedDecoder()
    worker = pickle.loads(pickle.dumps(source))
    for one in (source, worker):
        assert (one.load(0, rng(), 4)["video"] == expected).all()
        assert one.split(True).names == source.split(True).names
        one._reader.decoder.close()


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"target_fps": 4.0}])
def test_clips_have_the_selected_frames(videos, open_videos, changes):
    make_mp4(videos / "a.mp4", frames=20, fps=8)
    source = open_videos(validation_fraction=0.0, **changes)
    step = 2 if changes else 1
    starts = set()
    for index in range(len(source)):
        for seed in range(40):
            shown = number(source.load(index, rng(seed), 4)["video"])
            assert (np.diff(shown) == step).all()
            starts.add(int(shown[0]))
    assert starts == set(range(20 - 3 * step))
    images = {
        int(number(source.load(i, rng(seed), 1)["video"])[0])
        for i in range(len(source))
        for seed in range(40)
    }
    assert images == set(range(20))


def test_cached_clips_equal_clips_by_seeking(videos, open_videos):
    make_mp4(videos / "a.mp4", 1)
    make_frames(videos / "b", 2)
    (videos / "c.gif").parent.mkdir(exist_ok=True)
    video_io.write_gif(videos / "c.gif", footage(3), 8, scale=1)
    cached = open_videos(validation_fraction=0.0)
    sought = open_videos(validation_fraction=0.0, cache_gib=0.0)
    assert len(cached._reader.cached) == 3 and not sought._reader.cached
    for index in range(len(cached)):
        pair = [s.load(index, rng(index), 4)["video"] for s in (cached, sought)]
        assert (pair[0] == pair[1]).all()


def test_files_with_the_highest_seek_cost_are_cached(videos, open_videos, tmp_path):
    make_mp4(videos / "short.mp4", frames=8)
    make_mp4(videos / "long.mp4", frames=40)  # one keyframe: a high seek cost
    size = cache.entry_bytes((40, HEIGHT, WIDTH))
    source = open_videos(validation_fraction=0.0, cache_gib=size / 2**30)
    assert list(source._reader.cached) == [str(videos / "long.mp4")]
    for index in range(len(source)):
        source.load(index, rng(), 4)
    held = list((tmp_path / "cache" / "frames").iterdir())
    assert [path.stat().st_size for path in held] == [size]


@pytest.mark.parametrize("cache_gib", [0.0, 0.01])
def test_a_file_that_is_corrupt_after_indexing_is_a_bad_clip(
    videos, open_videos, cache_gib
):
    make_mp4(videos / "a.mp4", 1, frames=30)
    make_mp4(videos / "b.mp4", 2)
    source = open_videos(validation_fraction=0.0, cache_gib=cache_gib)
    path = videos / "a.mp4"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # truncated after it was indexed
    bad = [name for name in source.names if name.startswith("a.mp4")]
    if not cache_gib:  # the first ranges can still be read
        bad = bad[-2:]
    for name in bad:
        for _ in range(2):
            with pytest.raises(BadClip, match="frame") as caught:
                source.load(source.names.index(name), rng(), 4)
            assert caught.value.name == name
    assert source.load(len(source) - 1, rng(), 4)["video"].any()  # b.mp4


def test_blank_segments_are_drawn_again(videos, open_videos):
    video = footage(1, frames=40)
    video[8:] = 0
    make_mp4(videos / "a.mp4", video=video)
    source = open_videos(validation_fraction=0.0)
    blank = 0
    for index in range(len(source)):
        try:
            assert not video_io.is_flat(source.load(index, rng(), 4)["video"])
        except BadClip as error:
            assert "constant" in str(error)
            blank += 1
    assert 0 < blank < len(source)


def test_a_full_disk_is_a_user_error(videos, open_videos, tmp_path, monkeypatch):
    make_mp4(videos / "a.mp4")
    source = open_videos(validation_fraction=0.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(InProcessDecoder, "fill_entry", full)
    with pytest.raises(UserError, match="no space left.*cache_gib=0"):
        source.load(0, rng(), 4)


def test_grey_clips_and_flips(videos, open_videos):
    make_mp4(videos / "a.mp4")
    make_mp4(videos / "b.mp4")
    colour = open_videos(validation_fraction=0.0)
    grey = open_videos(validation_fraction=0.0, channels=1)
    one = colour.load(0, rng(), 4)["video"].astype(float)
    luma = one @ [0.299, 0.587, 0.114]
    assert np.abs(grey.load(0, rng(), 4)["video"][..., 0] - luma).max() <= 0.51
    assert colour.flip
    (videos / "a.txt").write_text("a ball rolls to the Left side")
    assert not open_videos(validation_fraction=0.0).flip
    (videos / "a.txt").write_text("brightly lit")
    for label in ("move_left", "b"):
        make_mp4(videos / label / "c.mp4")
    assert not open_videos(validation_fraction=0.0).flip
    (videos / "move_left").rename(videos / "move_up")
    assert open_videos(validation_fraction=0.0).flip


def test_the_fingerprint_fields_distinguish_files(videos, open_videos):
    make_mp4(videos / "a.mp4", 1, frames=20)
    one = open_videos(validation_fraction=0.0)
    assert len(set(one.names)) == len(one) == len(one.sizes) > 1
    make_mp4(videos / "a.mp4", 2, frames=20)
    assert open_videos(validation_fraction=0.0).sizes != one.sizes
