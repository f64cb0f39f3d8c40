"""New parameters, computed on the host.

A function that returns new parameters is traced, not compiled: to compile the hundreds
of small random arrays of a network takes longer than its first steps. Its operations
are evaluated in NumPy one by one, those of its parameters alone. Draws of normal and
truncated normal numbers are NumPy's too. So each initialiser keeps its distribution
without being known here.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from vdm_jax.trees import named_leaves

Rng = np.random.Generator


class Initializer:
    """A traced function of new parameters.

    Args:
      init_params: key -> parameters; traceable.

    Attributes:
      shapes: of the parameters, a tree of jax.ShapeDtypeStruct.
    """

    def __init__(self, init_params: Callable[[jax.Array], Any]):
        trace = jax.make_jaxpr(init_params, return_shape=True)
        self._program, self.shapes = trace(jax.random.key(0))

    def draw(self, key: jax.Array) -> Any:
        """Return new parameters as NumPy arrays.

        The numbers of a parameter depend on the key, its path and its shape alone. So
        each process draws the same ones, on any mesh.
        """
        seed = np.asarray(jax.random.key_data(key)).tobytes()
        evaluator = _Evaluator(self._program, [lambda _: key])
        leaves = []
        for i, path in enumerate(named_leaves(self.shapes)):
            digest = hashlib.blake2b(seed + path.encode(), digest_size=16).digest()
            value = evaluator.output(i, np.random.default_rng([*digest]))
            leaves.append(np.require(value, requirements=["C", "W"]))
        return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)


def evaluate(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function of arrays, evaluated in the same way.

    An output that is a copy of an argument is the argument itself.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    inputs = [lambda _, leaf=leaf: leaf for leaf in jax.tree.leaves(args)]
    evaluator = _Evaluator(program, inputs)
    rng = np.random.default_rng(0)
    structure = jax.tree.structure(shapes)
    leaves = [evaluator.output(i, rng) for i in range(structure.num_leaves)]
    return jax.tree.unflatten(structure, leaves)


class _Evaluator:
    """Evaluates the variables of a program when they are read, each of them once.

    inputs: functions that return the arguments; like every function here they take the
      generator of draws that have not been made yet.
    """

    def __init__(
        self, program: ClosedJaxpr | Jaxpr, inputs: Sequence[Callable[[Rng], Any]]
    ):
        consts: Sequence[Any] = ()
        if isinstance(program, ClosedJaxpr):
            program, consts = program.jaxpr, program.consts
        self._outputs = program.outvars
        self._values: dict[Any, Any] = dict(zip(program.constvars, consts, strict=True))
        self._inputs = dict(zip(program.invars, inputs, strict=True))
        self._equations = {var: eqn for eqn in program.eqns for var in eqn.outvars}
        self._calls: dict[int, _Evaluator] = {}

    def output(self, i: int, rng: Rng) -> Any:
        """Return an output of the program."""
        return self._read(self._outputs[i], rng)

    def _read(self, atom: Any, rng: Rng) -> Any:
        if isinstance(atom, Literal):
            return np.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
        if atom in self._inputs:
            return self._inputs[atom](rng)
        if atom not in self._values:
            equation = self._equations[atom]
            if equation.primitive.name in CALLS and not _is_draw(equation):
                call = self._call(equation)
                self._values[atom] = call.output(equation.outvars.index(atom), rng)
            else:
                values = self._evaluate(equation, rng)
                self._values |= zip(equation.outvars, values, strict=True)
        return self._values[atom]

    def _call(self, equation: JaxprEqn) -> "_Evaluator":
        """Return the evaluator of a function that the program calls."""
        if id(equation) not in self._calls:
            inputs = [functools.partial(self._read, atom) for atom in equation.invars]
            self._calls[id(equation)] = _Evaluator(equation.params["jaxpr"], inputs)
        return self._calls[id(equation)]

    def _evaluate(self, equation: JaxprEqn, rng: Rng) -> list[Any]:
        """Return the outputs of an operation."""
        primitive, params = equation.primitive, equation.params
        if _is_draw(equation):  # its first argument is the key
            bounds = [self._read(atom, rng) for atom in equation.invars[1:]]
            return [DRAWS[params["name"]](rng, equation.outvars[0].aval, *bounds)]
        inputs = [self._read(atom, rng) for atom in equation.invars]
        if primitive.name in OPERATIONS:
            return [OPERATIONS[primitive.name](*inputs, **params)]
        values = primitive.bind(*inputs, **params)
        return values if primitive.multiple_results else [values]


def _is_draw(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "jit" and equation.params["name"] in DRAWS


def _normal(rng: Rng, out: Any) -> np.ndarray:
    """Return draws of the normal distribution, of the shape and dtype of `out`."""
    dtype = np.float64 if out.dtype == np.float64 else np.float32
    return np.asarray(rng.standard_normal(out.shape, dtype)).astype(out.dtype)


def _truncated_normal(
    rng: Rng, out: Any, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Return draws of the normal distribution between two bounds."""
    draws = _normal(rng, out)
    while (outside := (draws < lower) | (draws > upper)).any():
        again = jax.ShapeDtypeStruct((np.count_nonzero(outside),), out.dtype)
        draws[outside] = _normal(rng, again)
    return draws


def _broadcast(
    x: np.ndarray,
    *,
    shape: Sequence[int],
    broadcast_dimensions: Sequence[int],
    **_: Any,
) -> np.ndarray:
    """Return an array with axes at these dimensions, repeated along the others."""
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
        sizes[axis] = size
    return np.broadcast_to(np.reshape(x, sizes), shape)


# Functions of jax.random by the names that they have in a trace, and primitives. What
# is missing is evaluated by JAX: it gives the same numbers, and takes longer.
DRAWS = {"_normal": _normal, "_truncated_normal": _truncated_normal}
CALLS = ("jit", "remat2")
OPERATIONS: dict[str, Callable[..., Any]] = {
    "mul": lambda x, y, **_: np.multiply(x, y),
    "div": lambda x, y, **_: np.divide(x, y),
    "sqrt": lambda x, **_: np.sqrt(x),
    "tile": lambda x, reps, **_: np.tile(x, reps),
    "broadcast_in_dim": _broadcast,
    "convert_element_type": lambda x, new_dtype, **_: np.asarray(x, new_dtype),
    "copy": lambda x, **_: x,
}
