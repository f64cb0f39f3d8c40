"""The mesh, and where each array lives on it: tables of path patterns.

pjit is `jax.jit` with shardings over a mesh; one device is a mesh of one. Axes: "data"
holds copies of the parameters, "fsdp" splits them; a batch is split over both.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import UserError

MESH_AXES = ("data", "fsdp")

# Logical names of activations in the networks -> mesh axes. Without the batch
# constraint in every block XLA shards convolutions over channels under fsdp.
ACTIVATION_RULES = (
    ("batch", MESH_AXES),
    ("frames", None),
    ("height", None),
    ("width", None),
    ("channel", None),
)

# Parameter path -> "split" its largest divisible axis over fsdp, or "copy" it. The
# first match counts; optimiser moments and EMA follow, as their paths end alike.
PARAM_RULES = (
    (r".*(kernel|embedding)$", "split"),
    (r".*", "copy"),
)


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over all devices; -1 means: as many as are left."""
    devices = jax.device_count()
    if data == -1 and fsdp > 0 and devices % fsdp == 0:
        data = devices // fsdp
    if data < 1 or fsdp < 1 or data * fsdp != devices:
        raise UserError(
            f"mesh data={data} x fsdp={fsdp} does not cover the {devices} device(s): "
            f"their product must be {devices} (data=-1 takes what fsdp leaves)"
        )
    return jax.make_mesh((data, fsdp), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, P(MESH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def path_name(path: Sequence[Any]) -> str:
    """A pytree path as a/b/c, the form that patterns are matched against."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def match_rules(tree, rules: Sequence[tuple[str, Any]], what: str):
    """A tree of the value of the first rule that matches each leaf's whole path."""
    unmatched = []

    def one(path, leaf):
        name = path_name(path)
        for pattern, value in rules:
            if re.fullmatch(pattern, name):
                return value
        unmatched.append(name)

    out = jax.tree_util.tree_map_with_path(one, tree)
    if unmatched:
        raise UserError(f"no {what} pattern matches {', '.join(unmatched[:5])}")
    return out


def state_shardings(mesh: Mesh, tree, rules=PARAM_RULES):
    """NamedSharding for every leaf of a tree of arrays or shapes."""
    fsdp = mesh.shape["fsdp"]

    def one(rule, leaf):
        axes: list[str | None] = [None] * len(leaf.shape)
        fits = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0]
        if rule == "split" and fsdp > 1 and fits:
            axes[max(fits, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(one, match_rules(tree, rules, "sharding"), tree)


def with_shardings(tree, shardings):
    """Shapes that know where their arrays shall live, for lowering and restoring."""
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        tree,
        shardings,
    )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Each process's own part of a batch -> one global array split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def replicate(mesh: Mesh, tree):
    """Whole copies on every device, so that each process can read them."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def activation_rules():
    """Context under which the networks' logical constraints mean this mesh."""
    return nn.logical_axis_rules(ACTIVATION_RULES)
