"""The device mesh and the sharding of each array, by the tables of config.mesh.

pjit is `jax.jit` with shardings over a mesh; one device is a mesh of size one. With the
rules below the axis "data" replicates the parameters, "fsdp" splits them, and a batch
is split over both. Sampling always uses these.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import migration
from vdm_jax.errors import UserError
from vdm_jax.settings.sections import Mesh as MeshSection
from vdm_jax.trees import named_leaves

MESH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, Any]]  # (name, None, a mesh axis, or a tuple of them)

# Logical axes of activations in the networks -> mesh axes. Without a constraint of the
# batch axis in every block XLA shards convolutions over channels under fsdp.
ACTIVATION_RULES: Rules = MeshSection.activation_rules

# Pattern of parameter paths -> mesh axes that split the largest divisible axis of the
# array, None to copy it. The first match counts. Optimizer moments and EMA have paths
# with the same end.
PARAM_RULES: Rules = MeshSection.param_rules


def mesh_from_config(config: Any) -> Mesh:
    """Return the mesh of a config's mesh section, whose rules are checked.

    Raises:
      UserError: a rule that names no axis of the network or of the mesh, a pattern that
        is no regular expression, or a mesh that is not of all devices.
    """
    logical = [name for name, _ in ACTIVATION_RULES]
    names = ", ".join(logical)
    _check_rules(config, "activation_rules", logical.index, f"one of {names}")
    _check_rules(config, "param_rules", re.compile, "a regular expression")
    return make_mesh(config.data, config.fsdp)


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


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Return a mesh over all devices; data=-1 uses those that fsdp leaves.

    Raises UserError if the product of the axes is not the number of devices.
    """
    devices = jax.device_count()
    if data == -1 and fsdp > 0 and devices % fsdp == 0:
        data = devices // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != devices:
        raise UserError(
            f"mesh data={data} x fsdp={fsdp} does not cover the {devices} device(s): "
            f"their product must be {devices} (data=-1 uses those that fsdp leaves)"
        )
    return jax.make_mesh((data, fsdp), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def batch_sharding(mesh: Mesh, rules: Rules = ACTIVATION_RULES) -> NamedSharding:
    """Return the sharding of a leading batch axis, by rules of activations."""
    return NamedSharding(mesh, P(_axes(dict(rules).get("batch"))))


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


def state_shardings(mesh: Mesh, tree, rules: Rules = PARAM_RULES):
    """Return a NamedSharding for every leaf of a tree of arrays or shapes.

    Raises UserError if no rule matches a leaf.
    """

    def one(split: P, leaf) -> NamedSharding:
        axes: list[Any] = [None] * len(leaf.shape)
        parts = math.prod(mesh.shape[axis] for axis in split)
        divisible = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
        if parts > 1 and divisible:
            longest = max(divisible, key=lambda i: leaf.shape[i])
            axes[longest] = tuple(split) if len(split) > 1 else split[0]
        return NamedSharding(mesh, P(*axes))

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


def activation_rules(rules: Rules = ACTIVATION_RULES):
    """Return the context in which the networks' logical axes refer to the mesh."""
    return nn.logical_axis_rules([(name, _axes(axes) or None) for name, axes in rules])
