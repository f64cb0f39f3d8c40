"""BERT's encoder against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.recorded import write_folder
from vdm_jax.networks import bert
from vdm_jax.pretrained import name_maps, safetensors_io


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    recorded = write_folder(folder, "bert")
    config = recorded["config"]
    spec = bert.BertSpec(
        config["vocab_size"], config["max_position_embeddings"], 2,
        config["hidden_size"], config["intermediate_size"],
        config["num_hidden_layers"], config["num_attention_heads"],
        config["layer_norm_eps"],
    )  # fmt: skip
    network = bert.Bert(spec)
    like = jax.eval_shape(
        network.init, jax.random.key(0), recorded["ids"], recorded["mask"]
    )
    paths = safetensors_io.tensor_files(folder)
    params = safetensors_io.read(paths, like["params"], name_maps.BERT, jnp.float32)
    return network, params, recorded


def run(network, params, ids, mask):
    found = jax.jit(network.apply)({"params": params}, ids, mask)
    return np.where(mask[..., None], np.float32(found), 0)


def test_tokens_are_those_of_transformers(loaded):
    network, params, recorded = loaded
    found = run(network, params, recorded["ids"], recorded["mask"])
    error = np.abs(found - recorded["tokens"]).max()
    print("bert", error)
    assert error < 1e-5
    assert np.abs(recorded["tokens"]).max() > 1


def test_what_stands_where_no_token_is_does_not_matter(loaded):
    network, params, recorded = loaded
    ids, mask = recorded["ids"], recorded["mask"]
    other = np.where(mask, ids, (ids + 7) % 48)
    wide = np.pad(other, ((0, 0), (0, 8))), np.pad(mask, ((0, 0), (0, 8)))
    found = run(network, params, ids, mask)
    np.testing.assert_allclose(run(network, params, other, mask), found, atol=1e-6)
    np.testing.assert_allclose(run(network, params, *wide)[:, :24], found, atol=1e-5)
    assert np.abs(run(network, params, ids, mask | True) - found)[mask].max() > 0.1


def test_the_order_of_tokens_matters(loaded):
    network, params, recorded = loaded
    ids, mask = recorded["ids"][:1, :23], recorded["mask"][:1, :23]
    found = run(network, params, ids, mask)
    turned = run(network, params, ids[:, ::-1], mask)[:, ::-1]
    assert np.abs(found - turned).max() > 0.1


def test_bfloat16_is_near(loaded):
    network, params, recorded = loaded
    network = bert.Bert(network.spec, "bfloat16")
    found = run(network, params, recorded["ids"], recorded["mask"])
    difference = found - recorded["tokens"]
    assert np.sqrt(np.mean(difference**2)) < 0.05 * recorded["tokens"].std()


def test_a_row_without_a_token_is_finite(loaded):
    """As those that fill a batch."""
    network, params, recorded = loaded
    none = np.zeros_like(recorded["mask"])
    found = network.apply({"params": params}, recorded["ids"], none)
    assert np.isfinite(found).all()


def test_the_default_is_minilm():
    """22.6 million parameters: its 22,713,216 less the pooler's, which is not read."""
    ids = np.zeros((1, 8), int)
    tree = jax.eval_shape(bert.Bert().init, jax.random.key(0), ids, ids > 0)
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert total == 22_565_376
