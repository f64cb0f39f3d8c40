"""FLOPs of a program's matrix products and convolutions, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def product_flops(fn: Callable, *shapes: Any) -> float:
    """Return the FLOPs of the products and convolutions of fn(*shapes).

    A multiplication and an addition are two. A loop counts as often as it runs, a
    `while` of unknown length once, a branch as the dearest one. A Pallas kernel counts
    as the dense products that it stands for, which is its `cost_estimate`. What
    jax.checkpoint recomputes is counted as well: count the function without it.

    shapes: trees of arrays or of jax.ShapeDtypeStruct.
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*shapes).jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """Return the FLOPs of a jaxpr's products and convolutions, see `product_flops`."""
    return float(sum(map(_equation_flops, jaxpr.eqns)))


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = [equation.invars[0].aval.shape[axis] for axis in contracted]
        return 2.0 * equation.outvars[0].aval.size * math.prod(inner)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
        inner = [kernel.shape[axis] for axis in spec[1:]]  # input features, then space
        zeros = math.prod(params["lhs_dilation"])  # of a strided one's gradient
        return 2.0 * equation.outvars[0].aval.size * math.prod(inner) / zeros
    if name == "pallas_call":
        estimate = params["cost_estimate"]
        return float(estimate.flops) if estimate is not None else 0.0
    inner_flops = [jaxpr_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner_flops)
    return sum(inner_flops) * (params["length"] if name == "scan" else 1)
