"""Text without pooling: tokens alone, and those of "" where a text is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes
from tests.small_model import write_text_model
from vdm_jax import build, cascade, runs, sampling, text
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.text import NULL_TEXT, Text
from vdm_jax.data import embeddings
from vdm_jax.errors import UserError
from vdm_jax.training.captions import CaptionEmbeddings

DIM, NUM = 6, 3
TEXT = "text", "text_mask"


@pytest.fixture(scope="module")
def model():
    """A small U-Net of Stable Diffusion's kind with random parameters."""
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=1, height=8, width=8)
    config.data.update(label_vocabulary=(("a", "b"),), mean=0.0, variance=1.0)
    config.conditioning.update(text_dim=DIM, text_dropout=0.5, text_pooling=False)
    config.conditioning.update(cond_dim=16, label_dropout=0.5)
    level = {"channels": 8, "blocks": 1, "layers": ("spatial_transformer",)}
    del config.network
    config.network = {
        "kind": "sd", "levels": (level,), "mid_layers": (), "num_heads": (2,),
        "norm_groups": 4,
    }  # fmt: skip
    built = build.build_model(config)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape, p.dtype),
        built.init(jax.random.key(0)),
    )
    return built, params


def tokens(length, seed=0):
    """Return embeddings of texts of this length, the last token of the second masked"""
    rng = np.random.default_rng(seed)
    mask = np.ones((NUM, length), bool)
    mask[1, -1] = False
    return rng.normal(size=(NUM, length, DIM)).astype(np.float32), mask


@pytest.fixture(scope="module")
def arrays():
    (words, mask), (null, null_mask) = tokens(4), tokens(2, 1)
    return {
        "label": np.array([[0], [1], [0]]), "text": words, "text_mask": mask,
        "null_text": null, "null_text_mask": null_mask,
    }  # fmt: skip


def draw(model, cond, negative=None, **settings):
    """Sample one step, so that the video is linear in the prediction."""
    made, params = model
    own = {"sampler": "ddim", "steps": 1, "clip_x": 0.0, "batch_size": NUM}
    inputs = sampling.SamplingInputs(cond, negative)
    return sampling.generate(
        made, params, NUM, sampling.Settings(**own | settings), inputs
    )


def only(arrays, *names):
    return {name: arrays[name] for name in names}


def test_a_dropped_text_is_that_of_the_empty_string(arrays):
    encoder = ConditioningEncoder(8, 0, (("text", Text(DIM, pooling=False)),))
    keep = {"text": jnp.array([True, False, True])}
    inputs, params = encoder.init_with_output(
        jax.random.key(0), jnp.zeros(NUM), 1, {**arrays, "keep": keep}
    )
    np.testing.assert_array_equal(inputs.tokens[0], arrays["text"][0])
    np.testing.assert_array_equal(inputs.tokens[1, :2], arrays["null_text"][1])
    np.testing.assert_array_equal(inputs.token_mask[1], [True, False, False, False])
    assert inputs.token_mask[0].all() and inputs.token_mask[2].all()
    assert params["params"].keys() == {"noise_level"}
    np.testing.assert_array_equal(inputs.vector[0], inputs.vector[1])


def test_guidance_is_linear_between_the_text_and_the_empty_text(model, arrays):
    """uncond + s (cond - uncond), where uncond is sampled as a text of its own."""
    text = only(arrays, *TEXT, *NULL_TEXT)
    empty = text | {"text": text["null_text"], "text_mask": text["null_text_mask"]}
    cond, uncond = draw(model, text), draw(model, empty)
    assert abs(cond - uncond).max() > 1e-2
    expected = uncond + 3 * (cond - uncond)
    guided = draw(model, text, guidance_scale=3.0)
    np.testing.assert_allclose(guided, expected, atol=1e-5)
    # Without a text it is the empty one.
    none = draw(model, only(arrays, *NULL_TEXT))
    np.testing.assert_allclose(none, uncond, atol=1e-5)


def test_a_negative_label_drops_the_text_of_its_branch(model, arrays):
    negative = {"label": np.array([[1]])}
    cond = draw(model, arrays)
    uncond = draw(model, negative | only(arrays, *NULL_TEXT))
    guided = draw(model, arrays, negative, guidance_scale=2.0)
    np.testing.assert_allclose(guided, uncond + 2 * (cond - uncond), atol=1e-5)


def test_the_tokens_of_the_empty_text_are_not_forgotten(model, arrays):
    with pytest.raises(UserError, match="needs null_text, null_text_mask"):
        draw(model, only(arrays, *TEXT))


def test_training_drops_a_text_to_the_empty_one(model, arrays):
    made, _ = model
    batch = {"video": np.zeros((NUM, 1, 8, 8, 3), np.uint8), **arrays}
    kept = set()
    for seed in range(4):
        _, cond = made.prepare_batch(batch, jax.random.key(seed))
        np.testing.assert_array_equal(cond["null_text"], arrays["null_text"])
        kept |= set(np.asarray(cond["keep"]["text"]).tolist())
    assert kept == {True, False}


def test_captions_of_a_batch_come_with_the_empty_text(tmp_path):
    def encode(texts):
        return [np.full((len(t) + 1, DIM), len(t), np.float32) for t in texts]

    embeddings.write(tmp_path, ["ab", "abc"], encode, {"width": DIM})
    pooled, captions = (CaptionEmbeddings(tmp_path, p) for p in (True, False))
    assert pooled(["ab"]).keys() == {"text", "text_mask"}
    batch = captions([["ab", ""], ["abc", "ab"]])
    shapes = {n: (a.shape, a.dtype) for n, a in batch.items()}
    assert shapes == captions.shapes((2, 2))
    assert batch["null_text_mask"].sum(-1).tolist() == [[1, 1], [1, 1]]
    for name in ("text", "text_mask"):
        np.testing.assert_array_equal(batch[f"null_{name}"][1, 1], batch[name][0, 1])


def test_prompts_are_encoded_with_the_empty_text(tmp_path):
    workdir = write_text_model(tmp_path)
    trained = runs.load(workdir)
    trained.config.conditioning.text_pooling = False
    trained = trained._replace(model=build.build_model(trained.config))
    stage = cascade.as_stage(trained.model, trained.config, workdir=workdir)
    alone = cascade.Cascade(workdir, (stage,), trained.config.conditioning.text_encoder)
    encoder = text.load_encoder(alone.text_encoder)
    cond, negative = cascade.encode_conditions(alone, 1, prompts=["a red square"])
    assert negative is None and cond.keys() == {*TEXT, *NULL_TEXT}
    for name, words in (("text", "a red square"), ("null_text", "")):
        expected = encoder([words]).tokens
        np.testing.assert_allclose(cond[name], expected, atol=1e-5)
    assert cond["null_text_mask"].sum() == 2
    cond, negative = cascade.encode_conditions(alone, 1, negative_prompt="a square")
    assert negative is not None
    assert negative["text"].shape == cond["text"].shape
    np.testing.assert_array_equal(cond["text"], cond["null_text"])
    cond, negative = cascade.encode_conditions(alone, 1)
    assert cond.keys() == {*NULL_TEXT} and negative is None
