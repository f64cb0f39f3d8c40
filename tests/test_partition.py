"""Which mesh axes split an array: closed cases, and laws for any sizes."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vdm_jax import partition

AXES = partition.LOGICAL_AXES


def used(spec: P) -> list[tuple[str, ...]]:
    """The mesh axes of each axis of an array."""
    return [(axes,) if isinstance(axes, str) else axes or () for axes in spec]


def test_the_factors_of_an_axis():
    assert partition.prime_factors(1) == [1]
    assert partition.prime_factors(360) == [2, 2, 2, 3, 3, 5]
    sizes = partition.factor_axes("fsdp", 12) | partition.factor_axes("data", 1)
    assert sizes == {"fsdp_0": 2, "fsdp_1": 2, "fsdp_2": 3, "data_0": 1}
    assert partition.factors_of("fsdp", sizes) == ("fsdp_0", "fsdp_1", "fsdp_2")
    assert partition.factors_of("data", sizes) == ()  # one device splits nothing


SIZES = partition.factor_axes("data", 8) | partition.factor_axes("context", 3)
DATA = ("data_0", "data_1", "data_2")
RULES = {"batch": DATA, "frames": ("context_0", *DATA), "height": ("context_0",)}


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 6, 4, 4, 3), P(DATA, ("context_0",), None, None, None)),
        # What a small batch leaves of its mesh axes splits the frames,
        ((2, 12, 4, 4, 3), P(DATA[:1], ("context_0", *DATA[1:]), None, None, None)),
        ((3, 6, 4, 4, 3), P(None, ("context_0", "data_0"), None, None, None)),
        # and rows are split where the frames are not.
        ((8, 4, 6, 4, 3), P(DATA, None, ("context_0",), None, None)),
        ((1, 1, 1, 1, 1), P(None, None, None, None, None)),
    ],
)
def test_the_mesh_axes_of_an_activation(shape, spec):
    assert partition.split_activation(shape, AXES, RULES, SIZES) == spec


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((3, 3, 64, 128), 16, P(None, None, None, ("a", "b", "c", "d"))),
        ((3, 3, 128, 64), 16, P(None, None, ("a", "b", "c", "d"), None)),
        # 2^4 does not divide 24 = 2^3 3: the last factor splits the other axis.
        ((3, 3, 2, 24), 16, P(None, None, ("d",), ("a", "b", "c"))),
        ((3, 3, 3, 24), 16, P(None, None, None, ("a", "b", "c"))),
        ((7,), 16, P(None)),
        ((), 16, P()),
    ],
)
def test_the_mesh_axes_of_a_parameter(shape, fsdp, spec):
    sizes = dict(zip("abcd", partition.prime_factors(fsdp), strict=True))
    assert partition.split_parameter(shape, ["abcd"], sizes) == spec


def test_each_mesh_axis_splits_the_largest_part_that_is_left():
    sizes = {"t": 2, "a": 2, "b": 2}
    spec = partition.split_parameter((3, 3, 12, 16), ["t", "ab"], sizes)
    assert spec == P(None, None, ("a", "b"), ("t",))


def test_a_larger_mesh_never_leaves_more_on_a_device():
    """For widths that 512 does not divide, and at every size on the way."""
    for width in (384, 768, 896, 1536):
        shape, before = (3, 3, width, 2 * width), math.inf
        for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
            sizes = partition.factor_axes("fsdp", size)
            factors = partition.factors_of("fsdp", sizes)
            spec = partition.split_parameter(shape, [factors], sizes)
            parts = math.prod(sizes[axis] for axes in used(spec) for axis in axes)
            assert math.prod(shape) / parts <= before
            before = math.prod(shape) / parts
        assert parts == 1024


def test_splits_divide_and_use_each_mesh_axis_once():
    rng = np.random.default_rng(0)
    sizes = {}
    for axis in ("slice", "data", "fsdp", "tensor", "context"):
        sizes |= partition.factor_axes(axis, int(rng.choice([1, 2, 3, 4, 6])))
    names = [*sizes]
    for _ in range(200):
        shape = rng.choice([1, 2, 3, 4, 6, 8, 12, 24], size=5).tolist()
        rules = {name: rng.permutation(names).tolist()[:4] for name in AXES}
        for spec in (
            partition.split_activation(shape, AXES, rules, sizes),
            partition.split_parameter(shape, [names[:3], names[3:]], sizes),
        ):
            all_axes = [axis for axes in used(spec) for axis in axes]
            assert len(all_axes) == len(set(all_axes)) and len(spec) == 5
            for n, axes in zip(shape, used(spec), strict=True):
                assert n % math.prod(sizes[axis] for axis in axes) == 0


def test_one_device_is_not_constrained():
    x = jax.numpy.zeros((2, 4, 4, 4, 3))
    assert "sharding_constraint" not in str(jax.make_jaxpr(partition.constrain)(x))
