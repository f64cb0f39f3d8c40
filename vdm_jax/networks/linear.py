"""Dense layers and convolutions, with what a chip and a mesh want of them.

Their parameters and names are Flax's, and so are the results. Kernels and biases have
the layer's param_dtype and are computed with in its dtype. Of Flax's fields those count
that are read here.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from vdm_jax.partition import constrain


class Dense(nn.Dense):
    """A linear map of the last axis."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        scale: jax.Array | None = None,
        shift: jax.Array | None = None,
    ) -> jax.Array:
        """[..., c] -> [..., features], of x or of x scale + shift (see `product`)."""
        shape = x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel, bias = cast_and_gather(self, x, kernel)
        if scale is None or shift is None:
            return add_bias(x @ kernel, bias)
        # A part of the columns for each array that a caller splits the result into:
        # in that case XLA never joins them in memory.
        parts = max(self.features // x.shape[-1], 1)
        kernels = jnp.split(kernel, parts if self.features % parts == 0 else 1, axis=1)
        y = jnp.concatenate(product(x, scale, shift, tuple(kernels)), axis=-1)
        return add_bias(y, bias)


AXES = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


class Conv(nn.Conv):
    """A convolution of images or, with a window of three, of videos."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, c] -> [n, h', w', features], or with frames behind n."""
        window: Any = self.kernel_size
        shape = *window, x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel, bias = cast_and_gather(self, x, kernel)
        padding: Any = self.padding
        if isinstance(padding, int):
            padding = [(padding, padding)] * len(window)
        strides = self.strides or 1
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides,) * len(window) if isinstance(strides, int) else strides,
            padding,
            dimension_numbers=AXES[len(window)],
        )
        return add_bias(y, bias)


def cast_and_gather(layer: nn.Dense | nn.Conv, x: jax.Array, kernel: jax.Array):
    """Return x, the kernel and the bias in the layer's dtype; the bias may be None.

    A kernel is cast, then gathered where a mesh has split it. Without this XLA shards
    the products themselves, over channels, and passes the parts of kernels round in
    rings: three times the bytes, and fifty times the calls. Only a mesh axis that
    splits channels keeps a part of the kernel's outputs.
    """
    bias = None
    if layer.use_bias:
        shape = (layer.features,)
        bias = layer.param("bias", layer.bias_init, shape, layer.param_dtype)
    x, kernel = promote_dtype(x, kernel, dtype=layer.dtype)
    axes = (None,) * (kernel.ndim - 1) + ("channel",)
    return x, constrain(kernel, axes), bias


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add a bias [c] to y [..., c]; None is none."""
    if bias is None:
        return y
    if y.dtype != jnp.bfloat16:
        return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    repeated: jax.Array = _repeat(bias, y.shape)
    return y + repeated


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeat(bias: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeat a bias for every position, in bfloat16."""
    return jax.lax.broadcast_in_dim(bias.astype(jnp.bfloat16), shape, (len(shape) - 1,))


def _sum(shape: tuple[int, ...], bias: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    return (sum_positions(grad, 0, bias.dtype),)


_repeat.defvjp(lambda bias, shape: (_repeat(bias, shape), bias), _sum)


def sum_positions(x: jax.Array, kept: int, dtype: Any) -> jax.Array:
    """Sum x [..., c] over its axes from the `kept`-th to the last but one, in `dtype`.

    As a product with ones it is the matrix units' work. A TPU's vector unit takes ten
    times as long.
    """
    # XLA makes a sum of a product with one column, or with a constant.
    ones = jax.lax.optimization_barrier(jnp.ones((*x.shape[:-1], 2), x.dtype))
    batch, axes = tuple(range(kept)), tuple(range(kept, x.ndim - 1))
    dims = ((axes, axes), (batch, batch))
    wide = {"preferred_element_type": dtype}
    return jax.lax.dot_general(ones, x, dims, **wide)[..., 0, :]


def _product(
    x: jax.Array, scale: jax.Array, shift: jax.Array, kernels: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Return (x scale + shift) kernel for each of the kernels, in the dtype of x.

    x [b, f, n, c], scale and shift [b or 1, f or 1, 1, c] in a wider dtype, kernels
    [c, k].

    The backward pass has no array of x's size but x and its gradient: a product x' dy
    of each frame, [c, k], gives the gradients of both the scale and the kernel. That
    costs more than it saves where n < c. Where a mesh splits the pixels of a frame, its
    devices add up these products.
    """
    y = (x.astype(scale.dtype) * scale + shift).astype(x.dtype)
    return tuple(y @ kernel for kernel in kernels)


def _product_backward(residuals: tuple, grads: tuple[jax.Array, ...]) -> tuple:
    x, scale, shift, kernels = residuals
    dtype = scale.dtype
    wide = {"preferred_element_type": dtype}
    b, f, _, c = x.shape
    scales, shifts = (jnp.broadcast_to(a, (b, f, 1, c)).mT for a in (scale, shift))
    dscale = dshift = dx = jnp.zeros((1, 1, 1, 1), dtype)
    dkernels = []
    for kernel, grad in zip(kernels, grads, strict=True):
        wide_kernel = kernel.astype(dtype)[None, None]
        frames = jnp.einsum("bfnc,bfnk->bfck", x, grad, **wide)
        sums = sum_positions(grad, 2, dtype)[:, :, None]
        dscale += (frames * wide_kernel).sum(axis=-1)[:, :, None]
        dshift += jnp.matmul(sums, wide_kernel.mT, precision="highest")
        dkernel = (frames * scales + shifts * sums).sum((0, 1))
        dkernels.append(dkernel.astype(kernel.dtype))
        dx += jnp.einsum("bfnk,ck->bfnc", grad, kernel, **wide)
    dx = (dx * scale).astype(x.dtype)
    return dx, _unbroadcast(dscale, scale), _unbroadcast(dshift, shift), tuple(dkernels)


def _unbroadcast(grad: jax.Array, like: jax.Array) -> jax.Array:
    """Sum a gradient over the axes along which `like` was repeated."""
    axes = [i for i, n in enumerate(like.shape) if n != grad.shape[i]]
    return grad.sum(axes, keepdims=True)


product = jax.custom_vjp(_product)
# Not `product` itself: a policy of jax.checkpoint does not look into that.
product.defvjp(lambda *args: (_product(*args), args), _product_backward)
