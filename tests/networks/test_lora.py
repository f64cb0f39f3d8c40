"""LoRA leaves of a network: merged, unmerged, and new ones that change nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks import lora


class Layers(nn.Module):
    """A 3x3 convolution of stride 2, one of a pixel, and a matrix."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), strides=2, padding=1, name="wide")(x)
        x = nn.remat(Inner)(name="inner")(nn.swish(x))
        return nn.Dense(3, name="out")(nn.LayerNorm()(x))


class Inner(nn.Module):
    """A layer within a module whose activations are recomputed."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(5, (1, 1), use_bias=False, name="point")(x)


X = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
BASE = Layers().init(jax.random.key(1), X)["params"]
SHAPES = {"wide": (3, 3, 4, 6), "inner/point": (1, 1, 6, 5), "out": (5, 3)}


def drawn(seed, rank):
    """Return deltas of all layers; a rank of 8 is above the channels of all."""
    rng = np.random.default_rng(seed)
    return {
        path: (rng.normal(size=(*shape[:-1], rank)), rng.normal(size=(rank, shape[-1])))
        for path, shape in SHAPES.items()
    }


def run(network, params):
    return network.apply({"params": params}, X)


@pytest.mark.parametrize("rank", [2, 8])
def test_merged_equals_unmerged(x64, rank):
    deltas = drawn(0, rank), drawn(1, 3)
    params = jax.tree.map(lambda a: a.astype(float), BASE)
    attached = lora.attach(lora.attach(params, deltas[0]), deltas[1])
    unmerged = run(lora.WithLora(Layers()), attached)
    np.testing.assert_allclose(unmerged, run(Layers(), lora.merge(attached)), rtol=1e-9)
    kernel = params["wide"]["kernel"]
    expected = kernel + sum(np.einsum("yxir,ro->yxio", *d["wide"]) for d in deltas)
    merged = lora.merge(attached)
    np.testing.assert_allclose(merged["wide"]["kernel"], expected, rtol=1e-9)
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_removing_leaves_every_bit_of_the_base():
    before = jax.tree.map(np.array, BASE)
    attached = lora.attach(BASE, drawn(0, 2))
    assert abs(run(lora.WithLora(Layers()), attached) - run(Layers(), BASE)).max() > 0.1
    lora.merge(attached)
    jax.tree.map(np.testing.assert_array_equal, BASE, before)
    deltas = lora.deltas_of(attached)
    assert deltas.keys() == SHAPES.keys()
    for path, pair in drawn(0, 2).items():
        assert all(map(np.array_equal, pair, deltas[path]))


def test_a_new_one_changes_no_bit():
    network = lora.WithLora(Layers(), rank=2, modules="wide|inner/.*")
    params = network.init(jax.random.key(1), X)["params"]
    assert lora.deltas_of(params).keys() == {"wide", "inner/point"}
    attached = lora.attach(BASE, lora.deltas_of(params))
    assert (
        attached["wide"][lora.DOWN].std() > 0.1 and not attached["wide"]["bias"].any()
    )
    np.testing.assert_array_equal(run(network, attached), run(Layers(), BASE))
    # Without a rank there are none, and all paths are those of the network.
    plain = lora.WithLora(Layers()).init(jax.random.key(1), X)["params"]
    jax.tree.map(np.testing.assert_array_equal, plain, BASE)


def test_half_precision_stays():
    params = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16), lora.attach(BASE, drawn(0, 2))
    )
    merged = lora.merge(params)
    assert {a.dtype for a in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
