"""Which mesh axes split which axes of an array.

A mesh axis of a config, such as fsdp=12, is several axes of the `jax.sharding.Mesh`,
one for each prime factor: fsdp_0 = 2, fsdp_1 = 2, fsdp_2 = 3. So an array axis that 12
does not divide is still split by a part of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

LOGICAL_AXES = ("batch", "frames", "height", "width", "channel")  # of activations


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of n, the smallest first; those of 1 are [1]."""
    factors = []
    divisor = 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors or [1]


def factor_axes(axis: str, size: int) -> dict[str, int]:
    """Return name -> size of the factors of a mesh axis, the outermost first."""
    return {f"{axis}_{i}": n for i, n in enumerate(prime_factors(size))}


def factors_of(axis: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the factors of a mesh axis by their names in a mesh; of size 1: none."""
    return tuple(a for a, n in sizes.items() if a.rpartition("_")[0] == axis and n > 1)


def split_activation(
    shape: Sequence[int],
    logical_axes: Sequence[str | None],
    rules: Mapping[Any, Iterable[str] | None],
    sizes: Mapping[str, int],
) -> P:
    """Return the mesh axes that split each axis of an activation.

    From left to right, each axis takes the mesh axes of its rule that no axis before it
    has taken and that divide what is left of it. So what a small batch leaves splits
    the frames, where their rule has these mesh axes too.

    Rows and columns are split by all mesh axes that are left, or by none: where some
    devices hold copies, XLA (jax 0.10.2) multiplies the gradient of a kernel by their
    number.

    rules: logical axis -> factors of mesh axes. sizes: factor -> number of devices.
    """
    left = {axis: n for axis, n in sizes.items() if n > 1}
    spec: dict[str | None, tuple[str, ...]] = {}
    for size, name in zip(shape, logical_axes, strict=True):
        spec[name] = take_axes(size, rules.get(name) or (), left)
        if name == "width" and left:
            spec["height"] = spec["width"] = ()
    return P(*(spec[name] or None for name in logical_axes))


def take_axes(size: int, axes: Iterable[str], left: dict[str, int]) -> tuple[str, ...]:
    """Return those of mesh axes that split an array axis, taken out of `left`.

    Each divides what those before it leave of the size.

    left: mesh axis -> number of devices, of those that split nothing yet; changed.
    """
    taken = []
    for axis in axes:
        if axis in left and size % left[axis] == 0:
            taken.append(axis)
            size //= left.pop(axis)
    return tuple(taken)


def split_parameter(
    shape: Sequence[int], groups: Iterable[Sequence[str]], sizes: Mapping[str, int]
) -> P:
    """Return the mesh axes that split each axis of a parameter.

    groups: the factors of each mesh axis. They split the largest array axis that all of
    them divide. Where there is none, each alone splits the largest that it divides; one
    that divides none splits nothing.
    """
    left = list(shape)
    spec: list[tuple[str, ...]] = [()] * len(left)

    def place(factors: Sequence[str]) -> bool:
        n = math.prod(sizes[axis] for axis in factors)
        divisible = [i for i, size in enumerate(left) if size % n == 0]
        if not divisible:
            return False
        i = max(divisible, key=left.__getitem__)
        left[i] //= n
        spec[i] += tuple(factors)
        return True

    for factors in groups:
        if not place(factors):
            for axis in factors:
                place((axis,))
    return P(*(axes or None for axes in spec))


def constrain(
    x: jax.Array, logical_axes: Sequence[str | None] = LOGICAL_AXES
) -> jax.Array:
    """Pin an activation to the mesh in context by the rules in context.

    An axis None is whole.

    It does nothing without rules (`flax.linen.logical_axis_rules`) or on one device.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    rules = dict(nn.get_logical_axis_rules())
    if not rules or math.prod(sizes.values()) == 1:
        return x
    spec = split_activation(x.shape, logical_axes, rules, sizes)
    return jax.lax.with_sharding_constraint(x, spec)
