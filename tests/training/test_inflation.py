"""A model of clips from one of pictures: configs/sprites.py."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import sprites
from tests import small_model
from tests.sprite_cases import needs_pictures
from vdm_jax import runs
from vdm_jax.commands.export import export_model
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.training import train
from vdm_jax.training.captions import CaptionEmbeddings
from vdm_jax.training.step import make_loss
from vdm_jax.trees import named_leaves

DIM = 8  # of the tokens


class WordTokens(CaptionEmbeddings):
    """A token for each word of a caption, drawn by the word."""

    def __init__(self):
        self.pooling, self.dim, self.max_tokens = False, DIM, 24
        self.metadata = {"keys": "words", "encoder": "words"}

    def __len__(self):
        return 1

    def __getitem__(self, caption):
        words = caption.replace(",", "").split() or [""]
        seeds = [zlib.crc32(word.encode()) for word in words]
        draws = [np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]
        return np.stack(draws).astype(np.float32)


def config(variant, **changes):
    """Return the lowest resolution of a smoke variant, whose program compiles fast."""
    value = sprites.get_config(variant).unlock()
    value.conditioning.text_dim = DIM
    network = value.network
    network.update(levels=network.levels[1:], num_heads=network.num_heads[1:])
    value.train.update(
        steps=2, checkpoint_every=2, log_every=1, sample_every=0, eval_every=0,
        optimizer="adam", learning_rate=0.01,
    )  # fmt: skip
    value.update(changes)
    return value


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    """Return the folder of a model of pictures of random parameters, none of them 0."""
    folder = tmp_path_factory.mktemp("inflation") / "image"
    small_model.write_model(folder, config("smoke"))
    return folder


def loss_and_frames(model, params, z):
    """Return the loss of pictures, and x that the model makes of z [2, f, h, w, c]."""
    captions = WordTokens()(np.array(["a rocket", "a frog on a red background"]))
    pictures = np.random.default_rng(0).integers(0, 255, (2, 1, 32, 32, 3), np.uint8)
    batch = {"video": pictures, **captions}

    @jax.jit
    def both(params):
        loss = make_loss(model, "snr_plus_one")(params, {}, batch, jax.random.key(0))
        level = schedules.noise_level_from_angle(jnp.array([0.4, 1.2]))
        denoise = model.denoiser(params)
        return loss[0], denoise(z, level, model.raw_conditions(captions)).x

    return jax.device_get(both(params))


@pytest.mark.slow
@needs_pictures
def test_new_layers_start_as_the_image_model_and_train_alone(
    image_run, tmp_path, monkeypatch
):
    starts, start_params = [], train._start_params

    def start(trainer, task):
        params = jax.device_get(start_params(trainer, task))
        starts.append((trainer.model, params))
        return starts[0][1]

    monkeypatch.setattr(train, "_start_params", start)
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: WordTokens())
    clips = config("clips_smoke", init_from=str(image_run))
    state = train.train(clips, tmp_path / "clips")
    [(model, before)] = starts
    image = runs.load(image_run)

    z = np.random.default_rng(1).standard_normal((2, 8, 32, 32, 3), np.float32)
    loss, frames = loss_and_frames(model, before, z)
    # A frame of the image model is a video of its own.
    picture_loss, last = loss_and_frames(image.model, image.params, z[:, 7:])
    np.testing.assert_allclose(loss, picture_loss, rtol=1e-6)  # of two programs
    assert picture_loss > 0 and np.abs(last).max() > 0
    np.testing.assert_allclose(frames[:, 7:], last, atol=1e-5)

    before, after = named_leaves(before), named_leaves(jax.device_get(state.params))
    changed = {n for n in after if not np.array_equal(before[n], after[n])}
    assert all(re.fullmatch(sprites.NEW, name) for name in changed)
    assert not any("/spatial_transformer/" in name for name in changed)
    ends = tuple(
        f"_0/{layer}/kernel"
        for layer in (
            "temporal_conv/conv",
            "temporal_attention/out",
            "cross_attention/out",
        )
    )
    assert {name for name in after if name.endswith(ends)} <= changed
    export_model(tmp_path / "clips", tmp_path / "shipped")
    stored = load_file(tmp_path / "shipped" / runs.PARAMS)
    assert stored.keys() == {n for n in after if re.fullmatch(sprites.NEW, n)}


@needs_pictures
def test_without_a_pattern_the_new_layers_are_named(image_run, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "open_caption_embeddings", lambda *args: WordTokens())
    clips = config("clips_smoke", init_from=str(image_run), init_new=())
    monkeypatch.setattr(train.Trainer, "compile_update", None)  # not reached
    with pytest.raises(UserError, match="(temporal|cross)_.*: here .* there absent"):
        train.train(clips, tmp_path / "clips")
