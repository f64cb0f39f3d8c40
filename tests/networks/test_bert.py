"""BERT's encoder: parity with transformers, precision."""

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
    output = jax.jit(network.apply)({"params": params}, ids, mask)
    return np.where(mask[..., None], np.float32(output), 0)


def test_output_equals_transformers(loaded):
    network, params, recorded = loaded
    output = run(network, params, recorded["ids"], recorded["mask"])
    error = np.abs(output - recorded["tokens"]).max()
    print("bert", error)
    assert error < 1e-5
    assert np.abs(recorded["tokens"]).max() > 1


def test_padding_tokens_have_no_effect(loaded):
    network, params, recorded = loaded
    ids, mask = recorded["ids"], recorded["mask"]
    other = np.where(mask, ids, (ids + 7) % 48)
    padded = np.pad(other, ((0, 0), (0, 8))), np.pad(mask, ((0, 0), (0, 8)))
    output = run(network, params, ids, mask)
    np.testing.assert_allclose(run(network, params, other, mask), output, atol=1e-6)
    np.testing.assert_allclose(run(network, params, *padded)[:, :24], output, atol=1e-5)
    assert np.abs(run(network, params, ids, mask | True) - output)[mask].max() > 0.1


def test_the_order_of_tokens_matters(loaded):
    network, params, recorded = loaded
    ids, mask = recorded["ids"][:1, :23], recorded["mask"][:1, :23]
    output = run(network, params, ids, mask)
    reversed_tokens = run(network, params, ids[:, ::-1], mask)[:, ::-1]
    assert np.abs(output - reversed_tokens).max() > 0.1


def test_bfloat16_is_close(loaded):
    network, params, recorded = loaded
    network = bert.Bert(network.spec, "bfloat16")
    output = run(network, params, recorded["ids"], recorded["mask"])
    difference = output - recorded["tokens"]
    assert np.sqrt(np.mean(difference**2)) < 0.05 * recorded["tokens"].std()


def test_a_row_without_tokens_is_finite(loaded):
    """Such rows fill up a batch."""
    network, params, recorded = loaded
    none = np.zeros_like(recorded["mask"])
    output = network.apply({"params": params}, recorded["ids"], none)
    assert np.isfinite(output).all()


def test_the_default_spec_is_minilm():
    """MiniLM has 22,713,216 parameters; those of its pooler are not read."""
    ids = np.zeros((1, 8), int)
    tree = jax.eval_shape(bert.Bert().init, jax.random.key(0), ids, ids > 0)
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert total == 22_565_376
