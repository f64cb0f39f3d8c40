import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from vdm_jax.planning.flops import product_flops

S = jax.ShapeDtypeStruct


def test_a_product_and_its_gradients_are_three():
    x, w = S((5, 7), jnp.float32), S((7, 11), jnp.float32)
    forward = 2 * 5 * 7 * 11
    assert product_flops(jnp.matmul, x, w) == forward
    grads = jax.grad(lambda x, w: jnp.sum(x @ w), (0, 1))
    assert product_flops(grads, x, w) == 3 * forward


def convolve(x, w, stride=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", None, None, dims)


def test_a_convolution_and_its_gradients_are_three():
    x, w = S((2, 8, 6, 3), jnp.float32), S((3, 3, 3, 5), jnp.float32)
    forward = 2 * (2 * 8 * 6 * 5) * (3 * 3 * 3)
    assert product_flops(convolve, x, w) == forward
    grads = jax.grad(lambda x, w: convolve(x, w).sum(), (0, 1))
    assert product_flops(grads, x, w) == 3 * forward


def test_zeros_of_a_strided_gradient_do_not_count():
    x, w = S((2, 8, 8, 3), jnp.float32), S((2, 2, 3, 5), jnp.float32)
    forward = 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)
    assert product_flops(lambda x, w: convolve(x, w, 2), x, w) == forward
    grad = jax.vjp(lambda x: convolve(x, np.zeros(w.shape, "f"), 2), np.zeros(x.shape))
    assert product_flops(grad[1], S((2, 4, 4, 5), jnp.float32)) == forward


def test_loops_count_their_trips_and_a_branch_the_dearest():
    x = S((4, 4), jnp.float32)
    one = 2 * 4 * 4 * 4

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=6)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert product_flops(jax.jit(loop), x) == 6 * one
    assert product_flops(branch, x) == 2 * one


def test_a_kernel_counts_what_it_stands_for():
    def kernel(x, y):
        y[...] = x[...] @ x[...]

    def call(x):
        cost = pl.CostEstimate(flops=42, bytes_accessed=0, transcendentals=0)
        return pl.pallas_call(kernel, out_shape=x, cost_estimate=cost)(x)

    assert product_flops(call, S((8, 8), jnp.float32)) == 42
