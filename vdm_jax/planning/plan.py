"""A plan: what each chip of a topology holds, moves and computes, before it is bought.

State is exact, from the shardings; FLOPs are those of the jaxpr; collectives are
counted in the partitioned program. Where a figure is an estimate its name says so.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from vdm_jax import partition, sharding
from vdm_jax.errors import UserError
from vdm_jax.planning import hlo
from vdm_jax.planning.compiler import Compilation, compiling
from vdm_jax.planning.flops import jaxpr_flops
from vdm_jax.planning.pieces import PieceCycles, measure_pieces
from vdm_jax.planning.programs import Program, Work, make_programs
from vdm_jax.planning.topology import Topology
from vdm_jax.training.step import TrainState

ASSUMED_UTILISATIONS = (0.3, 0.4, 0.5)
MAX_OTHER_MESHES = 8


@dataclasses.dataclass(frozen=True)
class MeshEstimate:
    """A mesh by what is cheap to know of it, a chip.

    axes: those that are not 1. collective_bytes: an estimate, see `estimate_meshes`.
    """

    axes: dict[str, int]
    state_bytes: int
    collective_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a chip does in a step of training, or in sampling a batch of videos.

    calls: of the main program, 1 in training, the steps of the sampler in sampling;
      steps that are a program of their own count as those of the main one.
    flops: of products and convolutions, forward and backward, nothing recomputed.
    compilation: of the main program.
    other_meshes: the best of the same topology.
    pieces: of the main program, () where cycles were not computed.
    memories: (name, bytes of a chip at the peak) of programs next to the main one, with
      the state that they do not read.
    """

    work: Work
    topology: Topology
    mesh: dict[str, int]
    calls: int
    parameters: int
    state_bytes: int
    flops: float
    compilation: Compilation
    other_meshes: tuple[MeshEstimate, ...]
    pieces: tuple[PieceCycles, ...] = ()
    memories: tuple[tuple[str, int], ...] = ()

    @property
    def batch(self) -> int:
        """Examples over all chips."""
        return self.work.batch

    @property
    def collectives(self) -> hlo.Collectives:
        """Those of all calls."""
        return self.compilation.collectives.times(self.calls)

    @property
    def memory_bytes(self) -> int:
        """Memory at the peak of all programs."""
        return max([self.compilation.memory, *(size for _, size in self.memories)])

    @property
    def fits(self) -> bool:
        """Whether the memory of a chip is enough for all programs."""
        return self.compilation.fits and self.memory_bytes <= self.topology.chip.memory

    @property
    def cycles(self) -> float | None:
        """Estimated cycles of all calls, the sum of the pieces; None without them."""
        total = sum(piece.cycles for piece in self.pieces)
        return self.calls * total if self.pieces else None

    @property
    def utilisation(self) -> float | None:
        """FLOPs of the pieces over those of the matrix units in their cycles."""
        if not self.pieces:
            return None
        flops = sum(piece.flops for piece in self.pieces)
        cycles = sum(piece.cycles for piece in self.pieces)
        return flops / (cycles * self.topology.chip.flops_per_cycle)

    def seconds(self, utilisation: float) -> float:
        """Return the time at a utilisation, without waiting for links."""
        return self.flops / (self.topology.chip.peak_flops * utilisation)

    def rate(self, utilisation: float) -> float:
        """Return the examples a second of all chips at a utilisation."""
        return self.batch / self.seconds(utilisation)

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a chip; None is what was not computed."""
        collectives, used = self.collectives, self.utilisation
        return {
            "work": self.work.kind,
            "topology": str(self.topology),
            "chips": self.topology.num_chips,
            "mesh": self.mesh,
            "batch": self.batch,
            "parameters": self.parameters,
            "state_bytes": self.state_bytes,
            "memory_bytes": self.memory_bytes,
            "memories": dict(self.memories),
            "fits": self.fits,
            "collective_bytes": collectives.total_bytes,
            "collective_link_bytes": collectives.link_bytes,
            "collective_calls": collectives.total_calls,
            "collectives": collectives.by_kind(),
            "kernels": self.compilation.kernels,
            "flops": self.flops,
            "utilisation": used,
            "cycles": self.cycles,
            "step_seconds": None if used is None else self.seconds(used),
            "examples_a_day": None if used is None else 86400 * self.rate(used),
            "pieces": [dataclasses.asdict(piece) for piece in self.pieces],
            "other_meshes": [dataclasses.asdict(mesh) for mesh in self.other_meshes],
        }


def make_plan(
    work: Work,
    topology: Topology,
    cycles: bool = False,
    progress: Callable[[PieceCycles], None] = lambda piece: None,
) -> Plan:
    """Return the plan of a work on a topology, by the mesh section of its config.

    cycles: compile the pieces of the network. progress: called with each piece.

    Raises:
      UserError: the mesh does not fit the topology, or the compiler refuses it.
    """
    axes = mesh_axes(work, topology)
    if cycles:
        _check_pieces(work, topology, axes)
    with compiling(work, topology) as wait:
        pieces = []
        for piece in step_pieces(work, topology, axes) if cycles else ():
            pieces.append(piece)
            progress(piece)
        main, *others = on_one_device(work, attention_backend="xla")
        flops = sum(
            count_flops(each) / (1 if each.on_one_chip else topology.num_chips)
            for each in (main, *others)
        )
        meshes = estimate_meshes(work, topology, main)
        state_bytes = chip_bytes(abstract_mesh(axes), main.state, _param_rules(work))
        compilation = wait()
    memories = []
    for index, other in enumerate(others, 1):
        with compiling(work, topology, index) as wait:
            size, fits = (found := wait()).memory, found.fits
        compilation = dataclasses.replace(compilation, fits=compilation.fits and fits)
        one = abstract_mesh({} if other.on_one_chip else axes)
        own = chip_bytes(one, other.state, _param_rules(work))
        memories.append((other.name, state_bytes - own + size))
    steps = sum(each.calls for each in (main, *others) if not each.on_one_chip)
    return Plan(
        work, topology, {name: n for name, n in axes.items() if n > 1}, steps,
        sum(leaf.size for leaf in jax.tree.leaves(main.params)), state_bytes, flops,
        compilation, tuple(meshes[:MAX_OTHER_MESHES]), tuple(pieces),
        tuple(memories),
    )  # fmt: skip


def _check_pieces(work: Work, topology: Topology, axes: dict[str, int]) -> None:
    """Raise UserError where a piece on one chip is not a part of the program."""
    if not topology.is_tpu:
        raise UserError(f"--cycles: no compiler counts those of {topology.kind}")
    split = [f"{name}={axes[name]}" for name in ("tensor", "context") if axes[name] > 1]
    if split or work.batch % topology.num_chips:
        what = (
            ", ".join(split) or f"{work.batch / topology.num_chips:g} examples a chip"
        )
        raise UserError(
            f"--cycles: pieces are compiled for whole examples on a chip, not {what}"
        )


def step_pieces(
    work: Work, topology: Topology, axes: dict[str, int]
) -> Iterator[PieceCycles]:
    """Yield the pieces of the main program, with the batch and state of one chip."""
    config = copy.deepcopy(work.config)
    section = config.sample if work.kind == "sample" else config.data
    section.batch_size = work.batch // topology.num_chips
    main = on_one_device(dataclasses.replace(work, config=config))[0]
    state = None
    if isinstance(main.args[0], TrainState):
        mesh, rules = abstract_mesh(axes), _param_rules(work)
        shardings = sharding.state_shardings(mesh, main.args[0], rules)
        state = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(s.shard_shape(leaf.shape), leaf.dtype),
            main.args[0],
            shardings,
        )
    # Rematerialisation is a part of a piece's backward pass, not of its trace.
    yield from measure_pieces(main, work, topology, state)


def mesh_axes(work: Work, topology: Topology) -> dict[str, int]:
    """Return the sizes of all mesh axes; data=-1 is what the others leave.

    Raises:
      UserError: their product is not the number of chips, or a batch that they do not
        divide.
    """
    axes = {axis: work.config.mesh[axis] for axis in sharding.MESH_AXES}
    chips = topology.num_chips
    others = math.prod(n for name, n in axes.items() if name != "data")
    if axes["data"] == -1 and chips % others == 0:
        axes["data"] = chips // others
    if math.prod(axes.values()) != chips:
        named = " x ".join(f"{name}={n}" for name, n in axes.items() if n != 1)
        raise UserError(
            f"--mesh: {named or 'data=1'} is not of the {chips} chip(s) of {topology}: "
            "their product must be that (data is the rest where it is not named)"
        )
    parts = sharding.batch_parts(abstract_mesh(axes), work.config.mesh.activation_rules)
    if work.batch > parts and work.batch % parts:
        raise UserError(
            f"--batch_per_chip: {work.batch} examples are not divided evenly by "
            f"the {parts} parts of the mesh that split a batch"
        )
    return axes


def on_one_device(work: Work, **network: Any) -> list[Program]:
    """Return the programs on a device of this machine, without rematerialisation.

    They have the FLOPs and the state of all chips together.

    network: other settings of the network: by chunks, as a CPU computes the attention
      of a large batch, its backward pass would compute the scores again.
    """
    config = copy.deepcopy(work.config)
    config.network.update(network)
    if "remat" in config.network:
        config.network.remat = "none"
    config.mesh.update(dict.fromkeys(sharding.MESH_AXES, 1))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return make_programs(dataclasses.replace(work, config=config), mesh)


def count_flops(program: Program) -> float:
    """Return the FLOPs of all calls of a program."""
    return jaxpr_flops(program.trace().jaxpr.jaxpr) * program.calls


def abstract_mesh(axes: dict[str, int]) -> AbstractMesh:
    """Return a mesh without devices; axes: those that are not 1."""
    sizes: dict[str, int] = {}
    for name in sharding.MESH_AXES:
        sizes |= partition.factor_axes(name, axes.get(name, 1))
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def _param_rules(work: Work) -> Any:
    """Return the rules that place the state; sampling has its own."""
    if work.kind == "sample":
        return sharding.PARAM_RULES
    return work.config.mesh.param_rules


def chip_bytes(mesh: AbstractMesh, tree: Any, rules: Any) -> int:
    """Return the bytes of a tree of shapes on each chip of a mesh."""
    shardings = sharding.state_shardings(mesh, tree, rules)
    sizes = jax.tree.map(
        lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def estimate_meshes(
    work: Work, topology: Topology, program: Program
) -> list[MeshEstimate]:
    """Return the meshes of all pairs of data and fsdp, the best one first.

    First are those whose state fits into half of a chip's memory; of these the one with
    the least collectives. They are estimated as those of a step that gathers each split
    parameter whole once, and in training reduces each gradient once, in the dtype of
    the products. The other axes are as they are in the config.

    program: of `on_one_device`.
    """
    rules = _param_rules(work)
    mesh_section = work.config.mesh
    fixed = {axis: mesh_section[axis] for axis in ("slice", "tensor", "context")}
    dtype = jnp.dtype(work.config.network.get("dtype", "float32"))
    leaves = jax.tree.leaves(program.params)
    reduced = sum(leaf.size for leaf in leaves) * (work.kind != "sample")
    meshes = []
    count = topology.num_chips // math.prod(fixed.values())
    for fsdp in (n for n in range(1, count + 1) if count % n == 0):
        axes = fixed | {"data": count // fsdp, "fsdp": fsdp}
        mesh = abstract_mesh(axes)
        shardings = sharding.state_shardings(mesh, program.params, rules)
        gathered = sum(
            leaf.size
            for leaf, own in zip(leaves, jax.tree.leaves(shardings), strict=True)
            if not own.is_fully_replicated
        )
        moved = (gathered + reduced * (topology.num_chips > 1)) * dtype.itemsize
        state = chip_bytes(mesh, program.state, rules)
        named = {name: n for name, n in axes.items() if n > 1}
        meshes.append(MeshEstimate(named, state, moved))
    limit = topology.chip.memory / 2
    return sorted(
        meshes,
        key=lambda m: (m.state_bytes > limit, m.collective_bytes, m.state_bytes),
    )
