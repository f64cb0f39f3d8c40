"""T5's encoder against transformers, its buckets, its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.recorded import DATA, case, write_folder
from vdm_jax.networks import t5
from vdm_jax.networks.attention import relative_buckets
from vdm_jax.pretrained import name_maps, safetensors_io

VERSIONS = ("t5_relu", "t5_gated")


def spec_of(config: dict) -> t5.T5Spec:
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
    network = t5.T5(spec_of(recorded["config"]), dtype)
    paths = safetensors_io.tensor_files(folder)
    params = safetensors_io.read(paths, shapes(network), name_maps.T5, jnp.float32)
    return network, params, recorded


def run(network, params, ids, mask):
    found = jax.jit(network.apply)({"params": params}, ids, mask)
    return np.where(mask[..., None], np.float32(found), 0)


@pytest.mark.parametrize("name", VERSIONS)
def test_tokens_are_those_of_transformers(tmp_path, name):
    network, params, recorded = load(tmp_path, name)
    found = run(network, params, recorded["ids"], recorded["mask"])
    error = np.abs(found - recorded["tokens"]).max()
    print(name, error)
    assert error < 1e-5
    assert np.abs(recorded["tokens"]).max() > 1


def test_what_stands_where_no_token_is_does_not_matter(tmp_path):
    network, params, recorded = load(tmp_path, "t5_gated")
    ids, mask = recorded["ids"], recorded["mask"]
    other = np.where(mask, ids, (ids + 7) % 48)
    wide = np.pad(other, ((0, 0), (0, 8))), np.pad(mask, ((0, 0), (0, 8)))
    found = run(network, params, ids, mask)
    np.testing.assert_allclose(run(network, params, other, mask), found, atol=1e-6)
    np.testing.assert_allclose(run(network, params, *wide)[:, :24], found, atol=1e-5)
    assert np.abs(run(network, params, ids, mask | True) - found)[mask].max() > 0.1


def test_buckets_are_those_of_transformers_up_to_the_longest_texts():
    expected = np.load(DATA)["buckets"]  # of -600 to 600
    found = relative_buckets(601, 32, 128)
    np.testing.assert_array_equal(found[0], expected[600:])
    np.testing.assert_array_equal(found[-1], expected[:601])
    assert len(np.unique(expected)) == 31  # 16 would be 0 to the right


def test_all_layers_share_one_table_of_positions():
    tree = shapes(t5.T5(t5.T5Spec(48, 32, 8, 3, 40, 2)))
    assert tree["position"]["table"].shape == (3, 32)
    assert "position" not in tree["layer_0"] and set(tree["layer_1"]) == {
        "q", "k", "v", "out", "attention_norm", "norm", "gate", "expand", "project",
    }  # fmt: skip


def test_the_default_is_xxl():
    """4.76 billion parameters: v1.1 XXL's encoder."""
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes(t5.T5())))
    assert total == 4_762_310_656


@pytest.mark.parametrize("name", VERSIONS)
def test_bfloat16_is_near_and_needs_no_float32_parameters(tmp_path, name):
    network, params, recorded = load(tmp_path, name, "bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for tree in (params, half):
        found = run(network, tree, recorded["ids"], recorded["mask"])
        difference = found - recorded["tokens"]
        assert np.sqrt(np.mean(difference**2)) < 0.05 * recorded["tokens"].std()


def test_norms_are_taken_in_float32():
    """Of a bfloat16 norm, the last operation alone gives bfloat16."""
    x = jnp.ones((1, 1, 4096), jnp.bfloat16)

    class Norm(t5.nn.Module):
        @t5.nn.compact
        def __call__(self, x):
            return t5.norm(x, t5.T5Spec(), "norm")

    found, params = Norm().init_with_output(jax.random.key(0), x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, 1)
    operations = jax.make_jaxpr(lambda x: Norm().apply(params, x))(x).eqns
    half = [o for o in operations if o.outvars[0].aval.dtype == jnp.bfloat16]
    assert half == operations[-1:] and half[0].primitive.name == "convert_element_type"


def test_softmax_is_taken_in_float32():
    network = t5.T5(t5.T5Spec(48, 32, 8, 3, 40, 1), "bfloat16")
    ids, mask = case("t5_gated")["ids"], case("t5_gated")["mask"]
    params = network.init(jax.random.key(0), ids, mask)
    text = str(jax.make_jaxpr(network.apply)(params, ids, mask))
    exponents = [x for x in text.splitlines() if "= exp " in x]
    assert exponents and all("f32" in x and "bf16" not in x for x in exponents)
