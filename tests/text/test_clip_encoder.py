"""CLIP's text encoder in a folder of diffusers, with its tokenizer next to it."""

import json

import numpy as np
import pytest

from tests.parity.clip_vocabulary import END, write_padding
from tests.text.folders import write_clip
from vdm_jax import text
from vdm_jax.errors import UserError


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
