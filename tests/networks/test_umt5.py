"""UMT5's encoder: parity with transformers, its one embedding, half precision."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.networks.small_wan import RECORDED, described, torch_weights
from tests.networks.test_t5 import shapes as shapes_of
from tests.parity.recorded import real_network, write_weights
from tests.text.folders import write_unigram
from vdm_jax import text
from vdm_jax.errors import UserError
from vdm_jax.networks import t5
from vdm_jax.pretrained import name_maps
from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.text import loading
from vdm_jax.trees import named_leaves

CONFIG, SHAPES = described("text")
IDS, MASK, TOKENS = (RECORDED[f"text/{name}"] for name in ("ids", "mask", "tokens"))
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
    """Return text_encoder/ next to tokenizer/; the embedding is shared.weight alone."""
    encoder = tmp_path / "text_encoder"
    write_weights(encoder, torch_weights("wan/text", SHAPES), "model", shards=2)
    (encoder / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer").mkdir()
    write_unigram(tmp_path / "tokenizer")
    return encoder


def run(network, params, ids=IDS, mask=MASK):
    output = jax.jit(network.apply)({"params": params}, ids, mask)
    return np.where(mask[..., None], np.float32(output), 0)


def test_output_equals_transformers(folder):
    """Of 16 tokens and of 3, whose rows from 3 on are 0."""
    encoder = text.load_encoder(folder)
    assert SHARED in SHAPES and TIED not in SHAPES
    output = run(encoder.network, encoder.params)
    error = np.abs(output - TOKENS).max()
    print(error)
    assert error < 1e-5 and TOKENS.std() > 0.5
    assert not output[1, 3:].any() and output[1, :3].all()
    other = np.where(MASK, IDS, (IDS + 7) % 48)
    np.testing.assert_array_equal(run(encoder.network, encoder.params, other), output)
    neighbour = IDS.copy()
    neighbour[0] = IDS[0, ::-1]
    changed = run(encoder.network, encoder.params, neighbour)
    np.testing.assert_array_equal(changed[1], output[1])


def test_each_layer_has_a_table_of_distances(folder):
    params = text.load_encoder(folder).params
    assert "position" not in params
    tables = [params[f"layer_{i}"]["position"]["table"] for i in range(2)]
    assert tables[0].shape == (3, 8) and (tables[0] != tables[1]).any()


def test_a_text_is_padded_by_rows_of_0(folder):
    encoder = text.load_encoder(folder)
    found = encoder(["a red", ""])
    lengths = [len(row) for row in encoder.tokenize(["a red", ""])]
    assert found.mask.sum(1).tolist() == lengths and lengths[0] > lengths[1] == 1
    assert not np.asarray(found.tokens)[~np.asarray(found.mask)].any()


def test_prompts_are_cleaned(folder):
    """As diffusers' pipeline does; a T5 of another model reads them as they are."""
    encoder = text.load_encoder(folder)
    spaced = encoder(["  a\n\tred  &amp;amp; a"]).tokens
    np.testing.assert_array_equal(spaced, encoder(["a red & a"]).tokens)


def change(folder, edit):
    for path in folder.glob("*.safetensors"):
        save_file(edit(load_file(path)), path)


def test_an_embedding_under_both_names_is_one(folder):
    """An older file has it twice; one that differs is refused, and none is missed."""

    def add(tensors, factor=1):
        if SHARED in tensors:
            tensors[TIED] = factor * tensors[SHARED]
        return tensors

    before = text.load_encoder(folder).params["token"]["embedding"]
    change(folder, add)
    after = text.load_encoder(folder).params["token"]["embedding"]
    np.testing.assert_array_equal(before, after)
    change(folder, lambda tensors: add(tensors, 2))
    with pytest.raises(UserError, match="is a second, different token/embedding"):
        text.load_encoder(folder)


@pytest.mark.parametrize(
    "name", [SHARED, "encoder.block.1.layer.0.SelfAttention.relative_attention_bias"]
)
def test_a_parameter_that_is_never_filled_is_an_error(folder, name):
    change(folder, lambda t: {k: v for k, v in t.items() if not k.startswith(name)})
    with pytest.raises(UserError, match="lacks (token/embedding|layer_1/position)"):
        text.load_encoder(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_large_feed_forward_stays_finite_in_half_precision(folder, dtype):
    """Its last product is float32: 1e4 times as large it leaves float16's range."""
    encoder = text.load_encoder(folder)
    params = jax.tree.map(np.array, encoder.params)
    for i in range(2):
        params[f"layer_{i}"]["mlp_in"]["kernel"] *= 30
        params[f"layer_{i}"]["mlp_out"]["kernel"] *= 1e4
    exact = run(encoder.network, params)
    output = run(t5.T5(encoder.network.spec, dtype), params)
    assert np.isfinite(output).all()
    assert np.std(output - exact) < 0.05 * exact.std()


def test_parameters_stored_in_bfloat16_are_not_widened(folder):
    """So UMT5-XXL takes 11 GB and not 23; nothing is lost."""
    change(folder, lambda t: {k: v.astype(jnp.bfloat16) for k, v in t.items()})
    half = text.load_encoder(folder)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    wide = text.load_encoder(folder, param_dtype="float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(wide.params)} == {"float32"}
    a, b = (each(["a red"]).tokens for each in (half, wide))
    np.testing.assert_array_equal(a, b)


def test_names_and_shapes_of_the_published_encoder():
    listed = real_network("wan21_text")
    config = ConfigFile(loading.Path(), {"model_type": "umt5", **listed["config"]})
    network, name_map, longest = loading.FAMILIES["umt5"](config, "float32")
    assert isinstance(network, t5.T5) and longest == 512
    ours = named_leaves(shapes_of(network))
    found = {}
    for theirs, shape in listed["shapes"].items():
        target = name_maps.rename(name_map, theirs) or ""
        own = target.removeprefix(KERNEL)
        expected = shape[::-1] if target.startswith(KERNEL) else shape
        assert list(ours[own].shape) == expected, theirs
        found.setdefault(own, []).append(theirs)
    assert found.keys() == ours.keys()
    twice = {own: names for own, names in found.items() if len(names) > 1}
    assert twice == {"token/embedding": [SHARED, TIED]}
