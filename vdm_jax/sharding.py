"""The device mesh and the sharding of each array, by the tables of config.mesh.

pjit is `jax.jit` with shardings over a mesh; one device is a mesh of size one. With the
rules below all axes but tensor split a batch, and what is left of them its frames;
tensor splits channels; fsdp and tensor split the parameters. Sampling always uses these
rules. `partition` says what becomes of an axis that does not divide.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import migration, partition
from vdm_jax.errors import UserError
from vdm_jax.settings.sections import Mesh as MeshSection
from vdm_jax.trees import named_leaves

MESH_AXES = ("slice", "data", "fsdp", "tensor", "context")  # the outermost first
Rules = Sequence[tuple[str, Any]]  # (name, None, a mesh axis, or a tuple of them)

# Logical axes of activations in the networks -> mesh axes. Without a constraint of the
# batch axis in every block XLA shards convolutions over channels under fsdp.
ACTIVATION_RULES: Rules = MeshSection.activation_rules

# Pattern of parameter paths -> mesh axes, each of which splits the largest array axis
# that it divides; None to copy the array. The first match counts. Optimizer moments and
# EMA have paths with the same end.
PARAM_RULES: Rules = MeshSection.param_rules


def mesh_from_config(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a config's mesh section, whose rules are checked.

    devices: as for `make_mesh`.

    Raises:
      UserError: a rule that names no axis of the network or of the mesh, a pattern that
        is no regular expression, or a mesh that is not of all devices.
    """
    logical = partition.LOGICAL_AXES
    names = ", ".join(logical)
    _check_rules(config, "activation_rules", logical.index, f"one of {names}")
    _check_rules(config, "param_rules", re.compile, "a regular expression")
    axes: Any = {axis: config[axis] for axis in MESH_AXES}
    return make_mesh(**axes, devices=devices)


def parse_mesh(text: str) -> dict[str, int]:
    """Return the axes of "fsdp=4,context=2"; {} for "". data is the rest.

    Raises UserError for another form, or an axis that there is not.
    """
    axes = dict(re.findall(r"(\w+)=([1-9]\d{0,5})(?:,|$)", text))
    whole = ",".join(f"{axis}={n}" for axis, n in axes.items())
    if whole != text or not axes.keys() <= {*MESH_AXES}:
        raise UserError(
            f"mesh={text}: axes and their devices, such as fsdp=4,context=2, of "
            f"{', '.join(MESH_AXES)}"
        )
    return {axis: int(n) for axis, n in axes.items()}


def mesh_from_text(text: str) -> Mesh:
    """Return the mesh of `parse_mesh` over all devices, by default of all slices.

    Raises UserError for another form, or a mesh that is not of all devices.
    """
    axes: dict[str, Any] = {"slice": num_slices()} | parse_mesh(text)
    return make_mesh(**axes)


def _check_rules(config: Any, field: str, parse: Callable, names: str) -> None:
    """Raise UserError for the first rule whose name `parse` refuses, or whose axes."""
    for rule in config[field]:
        try:
            name, axes = rule
            parse(name)
            good = set(_axes(axes)) <= set(MESH_AXES)
        except (TypeError, ValueError, re.error):
            good = False
        if not good:
            raise UserError(
                f"config.mesh.{field} holds {rule!r}: pairs of {names}, and of None or "
                f"some of the mesh axes {', '.join(MESH_AXES)}"
            )


def _axes(value: Any) -> tuple[str, ...]:
    """Return the mesh axes of a rule."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    slice: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Return a mesh over all devices; data=-1 uses those that the others leave.

    Its axes are the prime factors of these (`partition.factor_axes`). Neighbours in the
    last axis are neighbours in the pod's network; the axis slice is the slices of a TPU
    pod, which only the data centre's network joins.

    devices: by default all of this run.

    Raises UserError if the product of the axes is not the number of devices, or slice
    not that of slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    others = slice * fsdp * tensor * context
    if data == -1 and others > 0 and count % others == 0:
        data = count // others
    axes = dict(zip(MESH_AXES, (slice, data, fsdp, tensor, context), strict=True))
    if min(axes.values()) < 1 or math.prod(axes.values()) != count:
        named = [f"{name}={n}" for name, n in axes.items() if n != 1 or name == "data"]
        raise UserError(
            f"mesh {' x '.join(named)} does not cover the {count} device(s): their "
            f"product must be {count} (data=-1 uses those that the others leave)"
        )
    placed = _place_devices(list(axes.values()), devices)
    sizes: dict[str, int] = {}
    for name, n in axes.items():
        sizes |= partition.factor_axes(name, n)
    placed = placed.reshape([*sizes.values()])
    return Mesh(placed, [*sizes], axis_types=(AxisType.Auto,) * len(sizes))


def _place_devices(shape: list[int], devices: Sequence[Any]) -> np.ndarray:
    """Return devices as an array of a shape whose first axis is the slices."""
    slices = num_slices(devices)
    split = devices[0].platform == "tpu"  # mesh axes may share one of the network
    if slices == 1:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=split
        )
    if shape[0] != slices:
        raise UserError(
            f"mesh slice={shape[0]}: these devices are of {slices} slices of a pod, "
            f"which have an axis of their own: set slice={slices}"
        )
    ones = [1] * (len(shape) - 1)
    within, across = [1, *shape[1:]], [slices, *ones]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=split
    )


def num_slices(devices: Sequence[Any] | None = None) -> int:
    """Return the number of slices of a TPU pod that the devices are of, else 1."""
    devices = jax.devices() if devices is None else devices
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def axis_sizes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """Return the sizes of MESH_AXES in a mesh of `make_mesh`."""
    sizes: dict[str, int] = dict.fromkeys(MESH_AXES, 1)
    for factor, n in mesh.shape.items():
        sizes[str(factor).rpartition("_")[0]] *= n
    return sizes


def describe(mesh: Mesh) -> str:
    """Return "data=4 x fsdp=2": the axes of a mesh that are not 1."""
    sizes = {axis: n for axis, n in axis_sizes(mesh).items() if n > 1}
    return " x ".join(f"{axis}={n}" for axis, n in sizes.items()) or "of one device"


def batch_parts(mesh: Mesh | AbstractMesh, rules: Rules = ACTIVATION_RULES) -> int:
    """Return the number of parts that a large enough batch is split into."""
    sizes = axis_sizes(mesh)
    return math.prod(sizes[axis] for axis in _axes(dict(rules).get("batch")))


def whole_batch(mesh: Mesh, size: int) -> int:
    """Return `size`, or the next size that fills every part of a split batch.

    A batch that is smaller than the number of parts stays as it is: the rest of the
    mesh splits its frames.
    """
    parts = batch_parts(mesh)
    return size + -size % parts if size > parts else size


def batch_sharding(
    mesh: Mesh, shape: Sequence[int], rules: Rules = ACTIVATION_RULES
) -> NamedSharding:
    """Return the sharding of an array of a batch, by rules of activations.

    Videos [b, f, h, w, c] are split by all rules, other arrays [b, ...] by that of the
    batch.
    """
    names = partition.LOGICAL_AXES[: 5 if len(shape) == 5 else 1]
    spec = partition.split_activation(
        shape[: len(names)], names, factor_rules(mesh, rules), mesh.shape
    )
    return NamedSharding(mesh, spec)


def constrain_batch(tree, mesh: Mesh, rules: Rules = ACTIVATION_RULES):
    """Pin arrays of a batch, in a compiled program, to their `batch_sharding`."""

    def one(x):
        return jax.lax.with_sharding_constraint(x, batch_sharding(mesh, x.shape, rules))

    return jax.tree.map(one, tree)


def process_rows(sharding: NamedSharding, batch: int) -> list[int]:
    """Return which rows of a batch this process holds, all or a part of each."""
    first = NamedSharding(sharding.mesh, P(*sharding.spec[:1]))
    rows = first.addressable_devices_indices_map((batch,)).values()
    return sorted({i for index in rows if index for i in range(batch)[index[0]]})


def place_rows(rows: np.ndarray, shape: jax.ShapeDtypeStruct, numbers: Sequence[int]):
    """Return the array of a batch, of which each process has some rows.

    rows: those of `numbers`, in this order, the `process_rows` of shape.sharding.
    """
    position = {number: i for i, number in enumerate(numbers)}

    def part(index):
        first, *others = index
        take = [position[i] for i in range(shape.shape[0])[first]]
        return rows[(take, *others)]

    return jax.make_array_from_callback(shape.shape, shape.sharding, part)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is copied to each device."""
    return NamedSharding(mesh, P())


def match_rules(tree, rules: Sequence[tuple[str, Any]], table: str):
    """Return a tree with the value of the first rule that matches each leaf's path.

    rules: (pattern, value). A pattern must match the whole path; a pattern of version
    0.1 is compared with the path of that version. table: name of the rules, for the
    message.

    Raises UserError if no rule matches a leaf.
    """
    names = list(named_leaves(tree))
    former = {p for p, _ in rules if migration.is_former_pattern(p, names)}

    def matches(pattern: str, name: str) -> bool:
        spelled = migration.former_path(name) if pattern in former else name
        return re.fullmatch(pattern, spelled) is not None

    found = [[v for p, v in rules if matches(p, name)][:1] for name in names]
    if unmatched := [n for n, values in zip(names, found, strict=True) if not values]:
        raise UserError(f"no {table} pattern matches {', '.join(unmatched[:5])}")
    return jax.tree.unflatten(jax.tree.structure(tree), [value for [value] in found])


def state_shardings(mesh: Mesh | AbstractMesh, tree, rules: Rules = PARAM_RULES):
    """Return a NamedSharding for every leaf of a tree of arrays or shapes.

    Raises UserError if no rule matches a leaf.
    """

    def one(axes: P, leaf) -> NamedSharding:
        groups = [partition.factors_of(axis, mesh.shape) for axis in axes]
        spec = partition.split_parameter(leaf.shape, groups, mesh.shape)
        return NamedSharding(mesh, spec)

    rules = [(pattern, P(*_axes(axes))) for pattern, axes in rules]  # P is a leaf
    return jax.tree.map(one, match_rules(tree, rules, "mesh.param_rules"), tree)


def with_shardings(tree, shardings):
    """Return shapes with the shardings of their arrays, for lowering and restoring."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        tree,
        shardings,
    )


def replicate(mesh: Mesh, tree):
    """Copy arrays to every device, so that each process can read them."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def factor_rules(mesh: Mesh, rules: Rules) -> dict[str, tuple[str, ...]]:
    """Return rules of activations as those of the mesh's own axes."""
    return {
        name: tuple(f for a in _axes(axes) for f in partition.factors_of(a, mesh.shape))
        for name, axes in rules
    }


def activation_rules(mesh: Mesh, rules: Rules = ACTIVATION_RULES):
    """Return the context in which the networks' logical axes refer to the mesh."""
    return nn.logical_axis_rules([*factor_rules(mesh, rules).items()])
