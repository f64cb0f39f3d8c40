"""Tokenizers: vdm_jax/text/tokenization.py."""

import json

import numpy as np
import pytest

from vdm_jax import text
from vdm_jax.errors import UserError


def test_wordpiece_never_truncates(bert):
    encoder = text.load_encoder(bert)
    ids = encoder.tokenize(["A red square MOVES left", "zebra", ""])
    assert ids == [[2, 4, 5, 6, 7, 8, 9, 3], [2, 1, 3], [2, 3]]


def test_t5_ends_a_text_with_a_special_token(t5):
    encoder = text.load_encoder(t5)
    assert encoder.max_tokens == 512
    ids = encoder.tokenize(["red", ""])
    assert ids == [[3, 1], [1]]
    found = encoder(["red", ""])
    assert found.tokens.shape == (2, 8, 32)
    np.testing.assert_array_equal(found.mask.sum(1), [2, 1])


def test_texts_of_latte_are_read_as_its_pipeline_reads_them(t5, capsys):
    """In lower case, stripped, and of 120 tokens at most, the last of them the end."""
    plain = text.load_encoder(t5)
    index = t5.parent / "model_index.json"
    index.write_text(json.dumps({"_class_name": "LattePipeline"}))
    latte = text.load_encoder(t5)
    texts = ["  A Red rose\n", "red " * 119, "Red " * 130]
    own = [text.strip().lower() for text in texts]
    ids = plain.tokenize(own)
    assert plain.tokenize(texts[:1]) != ids[:1]
    assert len(ids[1]) == 120 and len(ids[2]) == 131
    assert latte.tokenize(texts) == [*ids[:2], [*ids[2][:119], 1]]
    assert "a text of 131 tokens is cut to 120: 'Red Red" in capsys.readouterr().err
    assert latte.max_tokens == 120
    assert latte(texts).mask.sum(1).tolist() == [len(ids[0]), 120, 120]
    index.write_text(json.dumps({"_class_name": "WanPipeline"}))
    assert text.load_encoder(t5).tokenize(texts[:1]) == plain.tokenize(texts[:1])


def test_an_id_beyond_the_network_is_reported(bert):
    path = bert / "tokenizer.json"
    fields = json.loads(path.read_text())
    words = fields["model"]["vocab"]
    words[max(words, key=words.get)] = 1000  # the number of words is unchanged
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="its tokenizer has 1001 tokens"):
        text.load_encoder(bert)


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0"}'])
def test_an_invalid_tokenizer_is_rejected(bert, content):
    (bert / "tokenizer.json").write_text(content)
    with pytest.raises(
        UserError, match="tokenizer.json is not a tokenizer: "
    ) as caught:
        text.load_encoder(bert)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(vocab={}), "is not a tokenizer: "),
        (lambda t: t["model"]["vocab"].pop("[UNK]"), "is not a tokenizer: "),
        (lambda t: t["model"].update(unk_token="[NONE]"), "is not a tokenizer: "),
        (
            lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[999]),
            "its tokenizer has 1000 tokens",
        ),
    ],
)
def test_special_and_unknown_tokens_are_checked(bert, change, message):
    path = bert / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        text.load_encoder(bert)
    assert "\n" not in str(caught.value)
