"""The device mesh and the sharding of each array, by tables of path patterns.

pjit is `jax.jit` with shardings over a mesh; one device is a mesh of size one. The axis
"data" replicates the parameters, "fsdp" splits them, and a batch is split over both.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import migration
from vdm_jax.errors import UserError

MESH_AXES = ("data", "fsdp")

# Logical axes of activations in the networks -> mesh axes. Without a constraint of the
# batch axis in every block XLA shards convolutions over channels under fsdp.
ACTIVATION_RULES = (
    ("batch", MESH_AXES),
    ("frames", None),
    ("height", None),
    ("width", None),
    ("channel", None),
)

# Parameter path -> "split" the largest divisible axis over fsdp, or "copy" the array.
# The first match counts. Optimizer moments and EMA have paths with the same end.
PARAM_RULES = (
    (r".*(kernel|embedding)$", "split"),
    (r".*", "copy"),
)


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a leading batch axis over all devices."""
    return NamedSharding(mesh, P(MESH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is copied to each device."""
    return NamedSharding(mesh, P())


def path_name(path: Sequence[Any]) -> str:
    """Return a pytree path as a/b/c, the form that patterns match."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def match_rules(tree, rules: Sequence[tuple[str, Any]], table: str):
    """Return a tree with the value of the first rule that matches each leaf's path.

    rules: (pattern, value). A pattern must match the whole path; a pattern of version
    0.1 is compared with the path of that version. table: name of the rules, for the
    message.

    Raises UserError if no rule matches a leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = [path_name(path) for path, _ in leaves]
    former = {p for p, _ in rules if migration.is_former_pattern(p, paths)}
    unmatched = []

    def first_match(path, leaf):
        name = path_name(path)
        for pattern, value in rules:
            spelled = migration.former_path(name) if pattern in former else name
            if re.fullmatch(pattern, spelled):
                return value
        unmatched.append(name)

    values = jax.tree_util.tree_map_with_path(first_match, tree)
    if unmatched:
        raise UserError(f"no {table} pattern matches {', '.join(unmatched[:5])}")
    return values


def state_shardings(mesh: Mesh, tree, rules=PARAM_RULES):
    """Return a NamedSharding for every leaf of a tree of arrays or shapes."""
    fsdp = mesh.shape["fsdp"]

    def one(rule, leaf):
        axes: list[str | None] = [None] * len(leaf.shape)
        divisible = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if rule == "split" and fsdp > 1 and divisible:
            axes[max(divisible, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(one, match_rules(tree, rules, "sharding"), tree)


def with_shardings(tree, shardings):
    """Return shapes with the shardings of their arrays, for lowering and restoring."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        tree,
        shardings,
    )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Assemble the batch parts of all processes into arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def replicate(mesh: Mesh, tree):
    """Copy arrays to every device, so that each process can read them."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def activation_rules():
    """Return the context in which the networks' logical axes refer to the mesh."""
    return nn.logical_axis_rules(ACTIVATION_RULES)
