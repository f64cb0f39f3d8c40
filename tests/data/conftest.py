"""Folders of videos, and data sets that TFDS has prepared."""

import pytest

from tests.data.folders import (
    InProcessDecoder,
    config,
)
from vdm_jax.data import folder


@pytest.fixture
def open_videos(tmp_path, monkeypatch):
    """Return a function that opens tmp_path/videos with some settings."""
    monkeypatch.setattr(folder, "SandboxedDecoder", InProcessDecoder)
    root, store = tmp_path / "videos", tmp_path / "cache"
    return lambda **changes: folder.open_folder(config(root, store, **changes))


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    return root


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory):
    """One data set of every storage of a video; "raw" has a test split too."""
    from tests.data import tfds_datasets  # its import takes seconds

    root = tmp_path_factory.mktemp("tfds")
    tfds_datasets.write_every_storage(root)
    return root
