"""CLIP's text encoder in a folder of diffusers, with its tokenizer next to it."""

import json

import numpy as np
import pytest

from configs.base import base
from tests.parity.clip_vocabulary import END, write_padding
from tests.text.folders import write_clip
from vdm_jax import text
from vdm_jax.data.embeddings import EmbeddingStore
from vdm_jax.errors import UserError
from vdm_jax.text import __main__ as command
from vdm_jax.training.captions import open_caption_embeddings


@pytest.fixture(params=["", "text_model."], ids=["now", "former"])
def folder(request, tmp_path):
    """Return text_encoder/ next to tokenizer/."""
    return write_clip(tmp_path, request.param)


def test_all_positions_are_read(folder):
    encoder = text.load_encoder(folder)
    tokens, mask, pooled = encoder(["a cat", "", "a cat " * 9])
    assert tokens.shape == (3, 16, 24) and mask.all() and encoder.max_tokens == 16
    ids = np.array(encoder.tokenize(["a cat"]))
    assert ids.shape == (1, 16) and (ids[0, 4:] == 0).all()
    expected = encoder.network.apply({"params": encoder.params}, ids, ids >= 0)
    np.testing.assert_allclose(tokens[:1], expected, atol=1e-5)
    np.testing.assert_allclose(pooled, tokens.mean(1), atol=1e-5)
    write_padding(folder.parent / "tokenizer", END)
    other = text.load_encoder(folder)(["a cat"]).tokens
    np.testing.assert_allclose(other[0, :4], tokens[0, :4], atol=1e-5)
    assert np.abs(other[0, 4:] - tokens[0, 4:]).max() > 0.1


def test_the_last_layers_can_be_skipped(folder, tmp_path):
    """It is another embedding of the same weights, and embeddings say so."""
    whole, skipped = (text.load_encoder(folder, clip_skip=n) for n in (0, 1))
    assert (whole.clip_skip, skipped.clip_skip) == (0, 1)
    ids = np.array(whole.tokenize(["a cat"]))
    network = whole.network.clone(clip_skip=1)
    expected = network.apply({"params": whole.params}, ids, ids >= 0)
    tokens = skipped(["a cat"]).tokens
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert abs(whole(["a cat"]).tokens - tokens).max() > 0.1
    sections = [
        {"text_encoder": "", "text_encoder_sha256": "", "clip_skip": encoder.clip_skip}
        for encoder in (whole, skipped)
    ]
    assert not text.same_text_encoder(sections)
    (tmp_path / "a.txt").write_text("a cat\n")
    out = tmp_path / "out"
    flags = f"--captions={tmp_path / 'a.txt'}", f"--out={out}", "--clip_skip=1"
    command.main([*flags, f"--text_encoder={folder}"])
    store = EmbeddingStore(out)
    assert store.metadata["clip_skip"] == 1
    np.testing.assert_allclose(store["a cat"], tokens[0], atol=5e-3)
    config = base()
    config.data.text_embeddings_dir, config.conditioning.text_dim = str(out), 24
    open_caption_embeddings(config, None)
    assert config.conditioning.clip_skip == 1


@pytest.mark.parametrize("clip_skip", [-1, 3])
def test_a_layer_that_is_not_there(folder, clip_skip):
    with pytest.raises(UserError, match=f"clip_skip={clip_skip}: of .* from 0 to 2$"):
        text.load_encoder(folder, clip_skip=clip_skip)
    with pytest.raises(UserError, match="clip_skip=1: minilm is no CLIP: give 0$"):
        text.load_encoder(clip_skip=1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "clip_vision_model"}, "model_type='clip_vision_model'"),
        ({"hidden_act": "relu"}, "hidden_act='relu': quick_gelu or gelu"),
        ({"num_attention_heads": 5}, "hidden_size=24 is not a multiple of"),
        ({"vocab_size": 500}, "its tokenizer has 516 tokens, its network 500"),
    ],
)
def test_another_encoder_is_refused_in_one_line(folder, changes, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as caught:
        text.load_encoder(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named(folder):
    for path in (folder.parent / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="tokenizer has no vocab.json with merges.txt"):
        text.load_encoder(folder)
