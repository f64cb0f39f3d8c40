"""The smallest variant of configs/dit.py trains, with a picture behind each clip."""

from typing import Any

import numpy as np
import pytest

from configs import dit
from tests import small_model
from tests.sprite_cases import needs_pictures
from tests.training.test_inflation import DIM, WordTokens
from vdm_jax import runs
from vdm_jax.training import train
from vdm_jax.trees import named_leaves


class PooledTokens(WordTokens):
    """For a model without tokens of an empty text."""

    def __init__(self):
        super().__init__()
        self.pooling = True


@needs_pictures
@pytest.mark.parametrize(
    "attend", ["full", *(pytest.param(a, marks=pytest.mark.slow) for a in ("v1", "v3"))]
)
def test_it_trains(tmp_path, monkeypatch, attend):
    """All parameters move in a few updates, and previews are made of them."""
    config: Any = dit.get_config("smoke").unlock()
    config.network.attend = attend
    config.conditioning.text_dim = DIM
    config.train.update(steps=4, eval_every=0, learning_rate=0.01, optimizer="adam")
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: PooledTokens())
    state = train.train(config, tmp_path / "run")
    for path, leaf in named_leaves(state.params).items():
        array = np.asarray(leaf)
        assert np.isfinite(array).all() and array.any(), path
    assert list((tmp_path / "run" / "samples").iterdir())


@pytest.mark.slow
@needs_pictures
def test_a_model_of_videos_starts_from_one_of_pictures(tmp_path, monkeypatch):
    """What mixes frames is new, and all else is that of the pictures."""
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: PooledTokens())
    pictures: Any
    videos: Any
    pictures, videos = (dit.get_config("smoke").unlock() for _ in range(2))
    for config in (pictures, videos):
        config.conditioning.text_dim = DIM
    pictures.video.frames = 1
    pictures.data.joint_image_frames = 0
    small_model.write_model(tmp_path / "pictures", pictures)
    videos.network.attend = "v1"
    videos.init_from = str(tmp_path / "pictures")
    videos.init_new = (".*/time_.*",)
    videos.train.update(steps=1, sample_every=0, eval_every=0, learning_rate=0.0)
    state = train.train(videos, tmp_path / "videos")
    before = named_leaves(runs.load(tmp_path / "pictures").params)
    after = named_leaves(state.params)
    new = {path for path in after if path not in before}
    assert new and all("/time_block_" in path for path in new)
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])
