"""CLIP's text encoder: parity with transformers, causality, precision."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recorded import drawn_weights, load, write_weights
from vdm_jax.networks.clip import ClipText, ClipTextSpec
from vdm_jax.pretrained import name_maps, safetensors_io

NAMES = ("quick_gelu", "gelu")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, tmp_path_factory):
    name = request.param
    recorded = load("clip_text")
    config = json.loads(str(recorded[f"{name}/config"]))
    network = ClipText(
        ClipTextSpec(
            config["vocab_size"], config["max_position_embeddings"],
            config["hidden_size"], config["intermediate_size"],
            config["num_hidden_layers"], config["num_attention_heads"], name,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp(name)
    shapes = json.loads(str(recorded[f"{name}/shapes"]))
    write_weights(folder, drawn_weights(f"clip_text/{name}", shapes), "model")
    ids, mask = recorded["ids"], recorded["mask"]
    like = jax.eval_shape(network.init, jax.random.key(0), ids, mask)["params"]
    paths = safetensors_io.tensor_files(folder)
    params = safetensors_io.read(paths, like, name_maps.CLIP_TEXT, jnp.float32)
    outputs = {key: recorded[f"{name}/{key}"] for key in ("last", "skip_1", "masked")}
    return network, params, ids, mask, outputs


def run(network, params, ids, mask):
    return jax.jit(network.apply)({"params": params}, ids, mask)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_outputs_equal_transformers(loaded, x64, dtype, tolerance):
    network, params, ids, mask, outputs = loaded
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    network = network.clone(dtype=dtype)
    whole = np.ones_like(mask)
    for found, expected in (
        (run(network, params, ids, whole), outputs["last"]),
        (run(network.clone(clip_skip=1), params, ids, whole), outputs["skip_1"]),
        (run(network, params, ids, mask)[mask], outputs["masked"][mask]),
    ):
        error = np.abs(found - expected).max()
        print(network.spec.activation, dtype, error)
        assert found.dtype == dtype and error < tolerance


def test_a_token_reads_no_later_token(loaded):
    network, params, ids, mask, _ = loaded
    whole = np.ones_like(mask)
    other = np.where(np.arange(16) < 9, ids, (ids + 7) % 60)
    before, after = (run(network, params, x, whole) for x in (ids, other))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.abs(before[:, 9:] - after[:, 9:]).max() > 0.1


def test_bfloat16_is_close(loaded):
    network, params, ids, mask, outputs = loaded
    found = run(network.clone(dtype="bfloat16"), params, ids, np.ones_like(mask))
    difference = np.float32(found) - outputs["last"]
    assert np.sqrt(np.mean(difference**2)) < 0.05 * outputs["last"].std()


def test_a_row_without_tokens_is_finite(loaded):
    """Such rows fill up a batch."""
    network, params, ids, mask, _ = loaded
    assert np.isfinite(run(network, params, ids, np.zeros_like(mask))).all()


def test_the_default_spec_is_that_of_stable_diffusion_1():
    """CLIP ViT-L/14's text encoder has 123,060,480 parameters."""
    ids = np.zeros((1, 77), int)
    tree = jax.eval_shape(ClipText().init, jax.random.key(0), ids, ids == 0)
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert total == 123_060_480
