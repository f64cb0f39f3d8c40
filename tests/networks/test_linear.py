import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from vdm_jax.networks import layers, linear
from vdm_jax.networks.parts import save_products

B, F, N, C, K = 2, 3, 16, 4, 12


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("own", "flax", "options"),
    [
        (linear.Dense, nn.Dense, {}),
        (linear.Conv, nn.Conv, {"kernel_size": (3, 3)}),
        (linear.Conv, nn.Conv, {"kernel_size": (3, 3), "strides": 2, "padding": 1}),
        (
            linear.Conv,
            nn.Conv,
            {"kernel_size": (3, 3), "strides": (2, 2), "padding": ((0, 1), (0, 1))},
        ),
    ],
)
def test_layers_have_the_parameters_and_results_of_flax(own, flax, options, use_bias):
    x = normal(0, 2, 8, 8, C)
    options = {"features": 6, "use_bias": use_bias} | options
    params = flax(**options).init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, own(**options).init(jax.random.key(1), x)) == (
        jax.tree.map(jnp.shape, params)
    )
    params = jax.tree.map(lambda a: a + 0.5, params)
    expected = flax(**options).apply(params, x)
    np.testing.assert_allclose(own(**options).apply(params, x), expected, atol=1e-6)


def test_gradient_of_a_bias_in_bfloat16_is_an_exact_sum():
    grad = normal(0, F, N, C, dtype=jnp.bfloat16)
    y, pull = jax.vjp(
        lambda bias: linear.add_bias(jnp.zeros_like(grad), bias), jnp.ones(C)
    )
    assert (y == 1).all()
    (found,) = pull(grad)
    assert found.dtype == jnp.float32
    expected = np.asarray(grad, np.float64).sum((0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(B, F, 1, C), (B, 1, 1, C), (1, 1, 1, C)])
def test_product_is_that_of_the_scaled_array(shape):
    args = normal(0, B, F, N, C), normal(1, *shape), normal(2, *shape)
    kernels = normal(3, C, 5), normal(4, C, 2)
    grads = normal(5, B, F, N, 5), normal(6, B, F, N, 2)

    def plain(x, scale, shift, kernels):
        return tuple((x * scale + shift) @ kernel for kernel in kernels)

    for fn in (linear.product, plain):
        y, pull = jax.vjp(fn, *args, kernels)
        if fn is linear.product:
            found = y, pull(grads)
        else:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
                found,
                (y, pull(grads)),
            )


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, vector):
        return layers.norm_dense(x, vector, K, "out")


@pytest.mark.parametrize("size", [4, 1])  # more pixels than channels, and fewer
def test_norm_and_product_in_bfloat16_are_those_in_float32(size):
    x, vector = normal(0, B, F, size, size, C), normal(1, B, 7)
    params = Normed().init(jax.random.key(2), x, vector)
    params = jax.tree.map(lambda a: a + 0.1 * normal(3, *a.shape), params)
    grad = normal(4, B, F, size * size, K)

    def run(dtype):
        y, pull = jax.vjp(
            lambda p, x, v: Normed().apply(p, x, v), params, x.astype(dtype), vector
        )
        return y, pull(grad.astype(dtype))

    def compare(a, b):
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())

    jax.tree.map(compare, run("bfloat16"), run("float32"))


def test_rematerialisation_keeps_the_products(capsys):
    x, vector = normal(0, B, F, 4, 4, C, dtype=jnp.bfloat16), normal(1, B, 7)
    params = Normed().init(jax.random.key(2), x, vector)

    def squared(params):
        return jnp.square(Normed().apply(params, x, vector))

    print_saved_residuals(jax.checkpoint(squared, policy=save_products), params)
    assert f"bf16[{B},{F},16,{C}] output of dot_general" in capsys.readouterr().out
