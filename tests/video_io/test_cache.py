"""The index and the frame cache on disk: vdm_jax/video_io/cache.py."""

import os
import resource
import subprocess
import sys

import av
import av.error
import pytest
from PIL import Image

from tests.video_io.samples import (
    FRAMES,
    VIDEO,
    make_file,
)
from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo, cache, containers, file_types, images


@pytest.mark.parametrize(
    ("name", "module", "function", "error"),
    [
        ("a.mkv", file_types, "open", OSError),
        ("a.mkv", containers, "_open", av.error.OSError),
        ("a.mkv", containers, "_open", av.error.MemoryError),
        ("frames", images.Image, "open", OSError),
    ],
)
def test_a_temporary_read_error_is_not_stored(
    videos, tmp_path, monkeypatch, name, module, function, error
):
    def failing(*args, **kwargs):
        raise error(5, "Input/output error")

    def index():
        return cache.stored_index(tmp_path, videos[name], video_io.probe)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, failing, raising=False)
        with pytest.raises(BadVideo, match="nput/output error"):
            index()
    assert index().frames == FRAMES


SHAPE = VIDEO.shape[:3]


def fill_with(video):
    return lambda path: cache.write_entry(path, iter(video))


def test_the_cache_returns_the_decoded_frames(tmp_path):
    store, calls = cache.FrameCache(tmp_path, 1 << 20), []

    def fill(path):
        calls.append(path)
        fill_with(VIDEO)(path)

    for numbers in ([0], [3, 1, 1], range(FRAMES)):
        numbers = list(numbers)
        assert (store.read("a", SHAPE, numbers, fill) == VIDEO[numbers]).all()
    assert len(calls) == 1
    path = tmp_path / "frames" / "a"
    assert path.stat().st_size == cache.entry_bytes(SHAPE)


def test_the_cache_is_bounded_and_evicts_the_least_recently_used(tmp_path):
    size = cache.entry_bytes(SHAPE)
    store = cache.FrameCache(tmp_path, 3 * size)

    def entries():
        folder = tmp_path / "frames"
        return sorted(path.name for path in folder.iterdir())

    for number, name in enumerate("abc"):
        store.read(name, SHAPE, [0], fill_with(VIDEO))
        os.utime(tmp_path / "frames" / name, (number, number))
    store.read("a", SHAPE, [0], fill_with(VIDEO))  # used again
    store.read("d", SHAPE, [0], fill_with(VIDEO))
    assert entries() == ["a", "c", "d"]


def test_what_a_killed_process_was_writing_is_deleted_for_space(tmp_path):
    size = cache.entry_bytes(SHAPE)
    store = cache.FrameCache(tmp_path, 2 * size)
    store.read("a", SHAPE, [0], fill_with(VIDEO))
    left = tmp_path / "frames" / ".b-0.tmp"
    left.write_bytes(bytes(size))
    store.read("c", SHAPE, [0], fill_with(VIDEO))
    assert left.exists()  # another process may be writing it
    os.utime(left, (1e9, 1e9))
    store.read("d", SHAPE, [0], fill_with(VIDEO))
    assert not left.exists()


@pytest.mark.parametrize("place", [0, 200, -1, None, "empty"])
def test_corrupt_entries_are_written_again(tmp_path, place):
    store = cache.FrameCache(tmp_path, 1 << 20)
    store.read("a", SHAPE, [0], fill_with(VIDEO))
    path = tmp_path / "frames" / "a"
    data = bytearray(path.read_bytes())
    if place is None:
        data = data[:-5]
    elif place == "empty":
        data = bytearray()
    else:
        data[place] ^= 1
    path.write_bytes(data)
    made_again = []

    def fill(path):
        made_again.append(1)
        fill_with(VIDEO)(path)

    assert (store.read("a", SHAPE, range(FRAMES), fill) == VIDEO).all()
    assert made_again
    assert (cache.read_entry(path, SHAPE, [2]) == VIDEO[[2]]).all()


def test_a_failing_fill_leaves_no_file(tmp_path):
    store = cache.FrameCache(tmp_path, 1 << 20)

    def fill(path):
        path.write_bytes(b"half")
        raise BadVideo("a", "truncated")

    with pytest.raises(BadVideo):
        store.read("a", SHAPE, [0], fill)
    assert list((tmp_path / "frames").iterdir()) == []


CACHE_USER = """
import sys
import numpy as np
from vdm_jax.video_io import cache
store = cache.FrameCache(sys.argv[1], int(sys.argv[2]))
rng = np.random.default_rng(int(sys.argv[3]))
for _ in range(60):
    which = int(rng.integers(5))
    video = np.full((4, 16, 16, 3), which, np.uint8)
    fill = lambda path: cache.write_entry(path, iter(video))
    assert (store.read(f"v{which}", (4, 16, 16), [0, 3], fill) == which).all()
"""


def test_two_processes_share_a_bounded_cache(tmp_path):
    size = cache.entry_bytes((4, 16, 16))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CACHE_USER, str(tmp_path), str(3 * size), str(seed)]
        )
        for seed in range(2)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("frames/v*"))) <= 3
    assert not list(tmp_path.glob("frames/.*"))


def test_the_index_store_detects_changes_and_corruption(videos, tmp_path):
    calls = []

    def probe(path):
        calls.append(path)
        return video_io.probe(path)

    def count(path):
        return cache.stored_index(tmp_path, path, probe).frames

    path = tmp_path / "a.mkv"
    path.write_bytes(videos["a.mkv"].read_bytes())
    assert [count(path), count(path), len(calls)] == [FRAMES, FRAMES, 1]
    (entry,) = tmp_path.glob("index/*")
    entry.write_text(entry.read_text().replace("matroska", "x").replace("4", "5", 3))
    assert [count(path), len(calls)] == [FRAMES, 2]  # damaged: videos again
    make_file(tmp_path, "a.mkv", video=VIDEO[:9])
    assert [count(path), len(calls)] == [9, 3]  # another file with the same name
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(BadVideo, match="empty"):
            count(path)
    assert len(calls) == 4  # the reason is stored too


def test_rewriting_a_frame_of_a_folder_changes_its_key(tmp_path):
    path = make_file(tmp_path, "frames", video=VIDEO[:3])
    before = cache.file_key(path)
    assert cache.file_key(path) == before
    Image.fromarray(VIDEO[7]).save(path / "frame1.png")
    assert cache.file_key(path) != before


def test_a_full_disk_is_reported_in_one_line(tmp_path):
    store = cache.FrameCache(tmp_path / "cache", 1 << 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="frames/e could not be .*file too large"):
            store.read("e", SHAPE, [0], fill_with(VIDEO))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path / "cache" / "frames")
