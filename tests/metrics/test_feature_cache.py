"""The cache of features: keys, damaged files, failures."""

import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.metrics import feature_cache


@pytest.fixture
def counted():
    """An extractor that counts its calls."""

    def extract(videos):
        extract.calls += 1
        return videos.reshape(len(videos), -1)[:, :7].astype(np.float32) / 3

    extract.calls = 0
    return extract


def test_features_are_computed_once(tmp_path, counted):
    videos = np.random.default_rng(0).integers(0, 256, (3, 9, 4, 4, 3), dtype=np.uint8)
    key = (tmp_path, "real Clips", "protocol")
    first = feature_cache.cached_features(*key, videos, counted)
    strided = np.ascontiguousarray(videos.swapaxes(2, 3)).swapaxes(2, 3)
    for same in (videos, videos.copy(), strided):
        again = feature_cache.cached_features(*key, same, counted)
        np.testing.assert_array_equal(again, first, strict=True)
    assert counted.calls == 1
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("real-clips-")


def test_other_videos_and_other_protocols_are_other_keys(tmp_path, counted):
    videos = np.zeros((3, 9, 4, 4, 3), np.uint8)
    other = videos.copy()
    other[2, 8, 3, 3, 2] = 1
    keys = [
        ("a", "p", videos),
        ("a", "p", other),
        ("a", "p", videos.reshape(3, 9, 8, 2, 3)),
        ("a", "p", videos.view(np.int8)),
        ("a", "p", videos[:2]),
        ("a", "q", videos),
    ]
    for number, (name, protocol, clips) in enumerate(keys, 1):
        feature_cache.cached_features(tmp_path, name, protocol, clips, counted)
        assert counted.calls == number
    for name, protocol, clips in keys:
        feature_cache.cached_features(tmp_path, name, protocol, clips, counted)
    assert counted.calls == len(keys)


def test_a_damaged_file_is_replaced(tmp_path, counted):
    videos = np.random.default_rng(0).integers(0, 256, (3, 9, 4, 4, 3), dtype=np.uint8)
    args = (tmp_path, "a", "p", videos, counted)
    first = feature_cache.cached_features(*args)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for calls, damaged in enumerate((flipped, whole[:-1], whole[:40], b"\n", b""), 2):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(feature_cache.cached_features(*args), first)
        assert counted.calls == calls and path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary files


def test_a_failing_extractor_leaves_no_file(tmp_path):
    def fails(videos):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        feature_cache.cached_features(tmp_path, "a", "p", np.zeros((1, 2)), fails)
    assert list(tmp_path.iterdir()) == []
