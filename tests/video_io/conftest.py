"""Sample videos of every format, and a sandboxed decoder."""

import pytest

from tests.video_io.samples import (
    NAMES,
    make_file,
)
from vdm_jax.video_io.sandbox import SandboxedDecoder


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: make_file(folder, name) for name in NAMES}


@pytest.fixture(scope="session")
def decoder():
    decoder = SandboxedDecoder()
    yield decoder
    decoder.close()
