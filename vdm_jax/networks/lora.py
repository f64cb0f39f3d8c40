"""Low-rank adaptation, LoRA (Hu et al. 2021, arXiv:2106.09685).

A linear map or convolution with a kernel [*window, in, out] may have two leaves more,
`lora_down` [*window, in, rank] and `lora_up` [rank, out]. Their product is added to the
kernel: by `merge` once, or unmerged by `WithLora` at every call.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.layers import zeros_init

DOWN, UP = "lora_down", "lora_up"
LEAVES = f".*/({DOWN}|{UP})"  # pattern of their paths

Params = Mapping[str, Any]
Delta = tuple[Any, Any]  # lora_down, lora_up


class WithLora(nn.Module):
    """A network whose linear maps and convolutions read the LoRA leaves that they have.

    Parameter paths are those of the network. A layer computes y + (x down) up, which
    takes less than adding a product to its kernel, in the backward pass too.

    rank: of the leaves in new parameters. Their up is 0, so a new one changes nothing.
    modules: pattern of the whole paths of the modules that get them.
    """

    network: nn.Module
    rank: int = 0
    modules: str = ""

    def setup(self):
        """Share the paths of the network."""
        nn.share_scope(self, self.network)

    def __call__(self, *args, **kwargs):
        """Call the network."""
        # No method of a module: those are intercepted themselves.
        add = functools.partial(_add_output, self.rank, self.modules)
        with nn.intercept_methods(add):
            return self.network(*args, **kwargs)


def _add_output(rank: int, modules: str, call, args, kwargs, context):
    """Return the output of a method of a module, plus that of its LoRA leaves."""
    y, layer = call(*args, **kwargs), context.module
    if not isinstance(layer, nn.Dense | nn.Conv):
        return y
    is_target = rank and re.fullmatch(modules, "/".join(layer.path))
    if layer.is_initializing() and is_target:
        down, up = _new_leaves(layer, rank)
    elif layer.has_variable("params", DOWN):
        down, up = (layer.get_variable("params", name) for name in (DOWN, UP))
    else:
        return y
    # The same layer, its strides too, with another number of features.
    low = layer.clone(features=up.shape[0], use_bias=False, parent=None)
    return y + low.apply({"params": {"kernel": down}}, *args) @ up.astype(y.dtype)


def _new_leaves(layer: nn.Module, rank: int) -> Delta:
    """Return new leaves of a layer, of the shape of its kernel."""
    kernel: Any = layer.get_variable("params", "kernel")
    small = nn.initializers.normal(1 / rank)  # as in diffusers
    down = layer.param(DOWN, small, (*kernel.shape[:-1], rank), kernel.dtype)
    up = layer.param(UP, zeros_init, (rank, kernel.shape[-1]), kernel.dtype)
    return down, up


def product(down: Any, up: Any) -> jax.Array:
    """Return what is added to a kernel: [*window, in, r], [r, out] -> its shape."""
    return jnp.matmul(down, up, precision="highest")


def attach(params: Params, deltas: Mapping[str, Delta], prefix: str = "") -> dict:
    """Return the parameters with further LoRA leaves; products add up.

    deltas: by the path of the module, after `prefix`.
    """
    attached = {}
    for name, child in params.items():
        path = f"{prefix}{name}"
        if isinstance(child, Mapping):
            child = attach(child, deltas, f"{path}/")
        if path in deltas:
            down, up = deltas[path]
            if DOWN in child:
                down = jnp.concatenate([child[DOWN], down], axis=-1)
                up = jnp.concatenate([child[UP], up], axis=0)
            child = {**child, DOWN: down, UP: up}
        attached[name] = child
    return attached


def merge(params: Params) -> dict:
    """Return the parameters of the plain network that computes the same."""
    merged = {
        name: merge(child) if isinstance(child, Mapping) else child
        for name, child in params.items()
        if name not in (DOWN, UP)
    }
    if DOWN in params:
        kernel = params["kernel"]
        merged["kernel"] = (kernel + product(params[DOWN], params[UP])).astype(
            kernel.dtype
        )
    return merged


def deltas_of(params: Params, prefix: str = "") -> dict[str, Delta]:
    """Return the LoRA leaves by the paths of their modules: inverts `attach`."""
    deltas = {}
    for name, child in params.items():
        if isinstance(child, Mapping):
            path = f"{prefix}{name}"
            if DOWN in child:
                deltas[path] = child[DOWN], child[UP]
            deltas |= deltas_of(child, f"{path}/")
    return deltas
