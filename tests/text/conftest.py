"""MiniLM where it is installed, and folders of a small BERT and a small T5."""

import pytest

from tests.networks.recorded import write_folder
from tests.text.folders import write_unigram, write_wordpiece
from vdm_jax import text
from vdm_jax.data import assets


@pytest.fixture(scope="module")
def minilm():
    if any(asset.find() is None for asset in assets.MINILM):
        asset = assets.MINILM[0]
        package = f"{asset.package}=={asset.version}"
        pytest.skip(f"missing {package}; run: {assets.install_command([asset])}")
    return text.load_encoder()


@pytest.fixture
def bert(tmp_path):
    """Return the folder of a small BERT."""
    write_folder(tmp_path / "bert", "bert")
    write_wordpiece(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def t5(tmp_path):
    """Return the folder of a small T5 v1.1 in two shards."""
    write_folder(tmp_path / "t5", "t5_gated", shards=2)
    write_unigram(tmp_path / "t5")
    return tmp_path / "t5"
