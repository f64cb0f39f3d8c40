"""The smallest variant of configs/dit.py trains, with a picture behind each clip."""

from typing import Any

import numpy as np
import pytest

from configs import dit
from tests.sprite_cases import needs_pictures
from tests.training.test_inflation import DIM, WordTokens
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
