"""Training in batches of one size each, in turn."""

from typing import Any

import jax
import numpy as np
import pytest

from configs import dit
from tests.sprite_cases import needs_pictures
from tests.training.test_dit import PooledTokens
from tests.training.test_inflation import DIM
from vdm_jax import build
from vdm_jax.errors import UserError
from vdm_jax.training import train


def unet_config() -> Any:
    """Return a tiny `:unet` of pixels: clips, and pictures of another size."""
    config: Any = dit.get_config("unet").unlock()
    config.init_from = ""
    config.video.update(frames=4, height=32, width=32)
    config.data.update(batch_size=3, latents_dir="")
    config.codec.update(kind="identity", path="")
    config.network.update(
        levels=(dict(channels=8, blocks=1, layers=("temporal_conv",)),),
        mid_layers=("cross_attention", "temporal_attention"),
        head_dim=8,
        patch_size=8,
    )
    config.conditioning.update(cond_dim=16, text_dim=DIM)
    config.mixed_sizes.rows = (4, 32, 32, 2), (1, 32, 48, 3)
    config.train.update(
        steps=5, optimizer="adam", warmup=1, end_lr_fraction=1.0, checkpoint_every=3,
        log_every=3, sample_every=0, eval_every=0,
    )  # fmt: skip
    return config


@pytest.fixture
def captions(monkeypatch):
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: PooledTokens())


@pytest.mark.slow  # two programs; the streams are in tests/data/test_mixed_sizes.py
@needs_pictures
def test_a_run_trains_and_resumes(tmp_path, captions, capsys):
    """The resumed run has the parameters of one that was not stopped, bit for bit."""
    whole = train.train(unet_config(), tmp_path / "whole")
    text = capsys.readouterr().out
    assert "compiled the training step for 2 sizes" in text
    config = unet_config()
    config.train.steps = 3  # the next batch is one of pictures
    train.train(config, tmp_path / "run")
    state = train.train(unet_config(), tmp_path / "run")
    assert int(state.step) == 5 and int(state.skipped) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    for leaf in jax.tree.leaves(state.params):
        assert np.isfinite(leaf).all()


@needs_pictures
def test_a_size_that_the_network_does_not_take_is_refused(tmp_path, captions):
    config = unet_config()
    config.mixed_sizes.rows = (4, 32, 32, 2), (1, 32, 36, 3)
    with pytest.raises(UserError, match=r"size 1x32x36: .*width=36 must be a multiple"):
        train.train(config, tmp_path / "run")


def test_given_frames_of_clips_with_fewer():
    """A picture is always generated; a clip of two frames has masks of its own."""
    config = unet_config()
    config.conditioning.clean_frames = (("first", 1.0),)
    model = build.build_model(config)
    text = {"text": np.zeros((2, 1, DIM)), "text_mask": np.ones((2, 1), bool)}
    for frames, given in (1, [1]), (2, [0, 1]), (4, [0, 1, 1, 1]):
        video = np.zeros((2, frames, 32, 48, 3), np.uint8)
        _, cond = model.prepare_batch({"video": video, **text}, jax.random.key(0))
        np.testing.assert_array_equal(cond["clean"].strength, [given] * 2)
