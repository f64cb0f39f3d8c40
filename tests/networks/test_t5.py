"""T5's encoder: parity with transformers, position buckets, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.recorded import DATA, case, write_folder
from vdm_jax.networks import t5
from vdm_jax.networks.attention import relative_buckets
from vdm_jax.pretrained import name_maps, safetensors_io

VERSIONS = ("t5_relu", "t5_gated")


def spec_from_config(config: dict) -> t5.T5Spec:
    return t5.T5Spec(
        config["vocab_size"], config["d_model"], config["d_kv"], config["num_heads"],
        config["d_ff"], config["num_layers"],
        config["feed_forward_proj"] == "gated-gelu",
        config["relative_attention_num_buckets"],
        config["relative_attention_max_distance"], config["layer_norm_epsilon"],
    )  # fmt: skip


def shapes(network, length=24):
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), bool)
    return jax.eval_shape(network.init, jax.random.key(0), tokens, mask)["params"]


def load(folder, name, dtype="float32"):
    recorded = write_folder(folder, name)
    network = t5.T5(spec_from_config(recorded["config"]), dtype)
    paths = safetensors_io.tensor_files(folder)
    params = safetensors_io.read(paths, shapes(network), name_maps.T5, jnp.float32)
    return network, params, recorded


def run(network, params, ids, mask):
    output = jax.jit(network.apply)({"params": params}, ids, mask)
    return np.where(mask[..., None], np.float32(output), 0)


@pytest.mark.parametrize("name", VERSIONS)
def test_output_equals_transformers(tmp_path, name):
    network, params, recorded = load(tmp_path, name)
    output = run(network, params, recorded["ids"], recorded["mask"])
    largest = np.abs(recorded["tokens"]).max()
    error = np.abs(output - recorded["tokens"]).max() / largest
    print(name, error)
    assert error < 1e-5 and largest > 1


def test_padding_tokens_have_no_effect(tmp_path):
    network, params, recorded = load(tmp_path, "t5_gated")
    ids, mask = recorded["ids"], recorded["mask"]
    other = np.where(mask, ids, (ids + 7) % 48)
    padded = np.pad(other, ((0, 0), (0, 8))), np.pad(mask, ((0, 0), (0, 8)))
    output = run(network, params, ids, mask)
    np.testing.assert_allclose(run(network, params, other, mask), output, atol=1e-6)
    np.testing.assert_allclose(run(network, params, *padded)[:, :24], output, atol=1e-5)
    assert np.abs(run(network, params, ids, mask | True) - output)[mask].max() > 0.1


def test_buckets_equal_transformers_up_to_the_longest_texts():
    expected = np.load(DATA)["buckets"]  # for offsets -600 to 600
    output = relative_buckets(601, 32, 128)
    np.testing.assert_array_equal(output[0], expected[600:])
    np.testing.assert_array_equal(output[-1], expected[:601])
    assert len(np.unique(expected)) == 31  # bucket 16 would be offset +0


def test_all_layers_share_one_position_table():
    tree = shapes(t5.T5(t5.T5Spec(48, 32, 8, 3, 40, 2)))
    assert tree["position"]["table"].shape == (3, 32)
    assert "position" not in tree["layer_0"] and set(tree["layer_1"]) == {
        "q", "k", "v", "out", "attention_norm", "norm", "mlp_gate", "mlp_in",
        "mlp_out",
    }  # fmt: skip


def test_the_default_spec_is_xxl():
    """The encoder of version 1.1 XXL has 4.76 billion parameters."""
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes(t5.T5())))
    assert total == 4_762_310_656


@pytest.mark.parametrize("name", VERSIONS)
def test_bfloat16_is_close_also_with_bfloat16_parameters(tmp_path, name):
    network, params, recorded = load(tmp_path, name, "bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for tree in (params, half):
        output = run(network, tree, recorded["ids"], recorded["mask"])
        difference = output - recorded["tokens"]
        assert np.sqrt(np.mean(difference**2)) < 0.05 * recorded["tokens"].std()


def test_norms_are_computed_in_float32():
    """Only the last operation of a bfloat16 norm returns bfloat16."""
    x = jnp.ones((1, 1, 4096), jnp.bfloat16)

    class Norm(t5.nn.Module):
        @t5.nn.compact
        def __call__(self, x):
            return t5.norm(x, t5.T5Spec(), "norm")

    output, params = Norm().init_with_output(jax.random.key(0), x)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output, 1)
    operations = jax.make_jaxpr(lambda x: Norm().apply(params, x))(x).eqns
    half = [o for o in operations if o.outvars[0].aval.dtype == jnp.bfloat16]
    assert half == operations[-1:] and half[0].primitive.name == "convert_element_type"


def test_softmax_is_computed_in_float32():
    network = t5.T5(t5.T5Spec(48, 32, 8, 3, 40, 1), "bfloat16")
    ids, mask = case("t5_gated")["ids"], case("t5_gated")["mask"]
    params = network.init(jax.random.key(0), ids, mask)
    text = str(jax.make_jaxpr(network.apply)(params, ids, mask))
    exponents = [x for x in text.splitlines() if "= exp " in x]
    assert exponents and all("f32" in x and "bf16" not in x for x in exponents)
