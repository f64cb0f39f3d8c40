"""Embeddings of texts: vdm_jax/text/encoder.py."""

import dataclasses

import numpy as np
import pytest

from tests.networks.recorded import case
from tests.text.folders import LEFT, RIGHT
from vdm_jax import text
from vdm_jax.data import assets
from vdm_jax.errors import UserError
from vdm_jax.text import encoder as encoder_module


def cosine(a, b) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_minilm_equals_transformers(minilm):
    recorded = case("minilm")
    prompts, mask = recorded["prompts"].tolist(), recorded["mask"]
    ids = minilm.tokenize(prompts)
    assert ids == [
        row[m].tolist() for row, m in zip(recorded["ids"], mask, strict=True)
    ]
    found = minilm(prompts)
    length = mask.shape[1]
    np.testing.assert_array_equal(found.mask[:, :length], mask)
    assert not found.mask[:, length:].any() and not found.tokens[:, length:].any()
    error = np.abs(found.tokens[:, :length] - recorded["tokens"]).max()
    print("minilm", error)
    assert error < 1e-5
    mean = recorded["tokens"].sum(1) / mask.sum(1)[:, None]
    np.testing.assert_allclose(found.pooled, mean, atol=1e-5)


def test_a_direction_changes_its_token_more_than_the_mean(minilm):
    found = minilm([LEFT, RIGHT])
    place = LEFT.split().index("left") + 1  # after the first special token
    token = cosine(found.tokens[0, place], found.tokens[1, place])
    pooled = cosine(found.pooled[0], found.pooled[1])
    print("token", token, "pooled", pooled)
    assert token == pytest.approx(0.699, abs=1e-3)  # the values of docs/text.md
    assert pooled == pytest.approx(0.963, abs=1e-3)


def test_minilm_takes_256_tokens(minilm):
    assert minilm(["word " * 254]).mask.sum() == 256
    with pytest.raises(UserError, match="of 257 tokens, minilm takes 256 .*'word word"):
        minilm(["word " * 255])


def test_sha256_is_that_of_the_weights(minilm):
    assert minilm.sha256().startswith(assets.MINILM[0].sha256)


def test_an_embedding_that_is_not_finite_is_refused(t5):
    encoder = text.load_encoder(t5)
    table = encoder.params["token"]["embedding"]
    red = encoder.tokenize(["red"])[0][0]
    params = {**encoder.params, "token": {"embedding": table.at[red].set(np.inf)}}
    broken = dataclasses.replace(encoder, params=params)
    assert np.isfinite(broken(["a"]).tokens).all()
    with pytest.raises(UserError, match="not finite for the text 'a red': compute in"):
        broken(["a", "a red"])


def test_mask_and_mean_cover_the_tokens(bert):
    tokens, mask, pooled = text.load_encoder(bert)(["a red square", ""])
    assert tokens.dtype == pooled.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, np.arange(8) < np.array([[5], [2]]))
    assert not tokens[1, 2:].any() and np.abs(tokens[1, :2]).min() > 0
    np.testing.assert_allclose(pooled[0], tokens[0, :5].mean(0), atol=1e-6)
    np.testing.assert_allclose(pooled[1], tokens[1, :2].mean(0), atol=1e-6)


def test_an_embedding_does_not_depend_on_the_batch(bert):
    """Longer texts pad it, and more texts need more batches."""
    encoder = text.load_encoder(bert)
    texts = ["a red square", "left", "", "red " * 20] * 20 + ["moves"]
    found = encoder(texts)
    assert found.tokens.shape == (81, 32, 24)
    for i in (0, 1, 2, 64, 80):
        alone = encoder([texts[i]])
        n = int(alone.mask.sum())
        np.testing.assert_allclose(found.tokens[i, :n], alone.tokens[0, :n], atol=1e-5)
        np.testing.assert_allclose(found.pooled[i], alone.pooled[0], atol=1e-5)
        assert int(found.mask[i].sum()) == n


def test_prompts_of_similar_length_compile_once(bert):
    encoder = text.load_encoder(bert)
    encoder(["a red square", "left"])
    before = encoder_module._run._cache_size()
    for texts in (["left", "red"], ["a a a a a", ""], ["square moves left", "a"]):
        encoder(texts)
    assert encoder_module._run._cache_size() == before
    encoder(["red " * 7, ""])  # nine tokens
    assert encoder_module._run._cache_size() == before + 1
    for number in (5, 6, 7, 8):
        encoder(["left"] * number)
    assert encoder_module._run._cache_size() == before + 2


@pytest.mark.parametrize("prompt", ["a \ud83d cat", "a\0cat"])
def test_invalid_text_is_rejected(bert, prompt):
    with pytest.raises(UserError, match="surrogate|NUL") as caught:
        text.load_encoder(bert)(["a cat", prompt])
    assert str(caught.value).isprintable()


def test_a_text_that_is_too_long_is_rejected_and_not_truncated(bert):
    encoder = text.load_encoder(bert)
    assert encoder.max_tokens == 32
    assert encoder(["red " * 30]).tokens.shape == (1, 32, 24)
    with pytest.raises(UserError, match=r"text of 33 tokens, .* takes 32 .*'red red"):
        encoder(["left", "red " * 31])


@pytest.mark.parametrize("texts", ["one text", []])
def test_an_encoder_takes_a_list(bert, texts):
    with pytest.raises(ValueError, match="a list of one text or more"):
        text.load_encoder(bert)(texts)
