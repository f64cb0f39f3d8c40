"""The pieces of a network, each compiled alone: their cycles on a chip of a TPU.

A whole training step of a large model compiles for hours on a few cores. Its modules do
not, and most of them are there many times. What is between them (the embedding of the
noise level, the noise, the loss, skips) is in no piece.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.control import Controlled, ControlNet
from vdm_jax.networks.parts import REMAT_POLICIES, Block
from vdm_jax.networks.unet3d import Down, Middle, UNet3D, Up
from vdm_jax.planning.compiler import cache_key, read_cached, write_cached
from vdm_jax.planning.cycles import piece_cycles
from vdm_jax.planning.flops import product_flops
from vdm_jax.planning.programs import Program, Work
from vdm_jax.planning.topology import Topology, chip_sharding
from vdm_jax.training.optimizer import make_optimizer
from vdm_jax.training.step import TrainState, apply_gradients

# Modules that are taken apart; those that they call are pieces.
CONTAINERS = (UNet3D, Down, Middle, Up, Block, Controlled, ControlNet)


@dataclasses.dataclass
class Piece:
    """A module with its arguments as shapes, and how often a program calls it.

    path: of the first call. params: shapes, of one chip.
    """

    path: str
    module: nn.Module
    params: Any
    args: tuple
    calls: int = 1

    @property
    def name(self) -> str:
        """Type of the module, and the shape of its first argument."""
        shape = ",".join(map(str, self.args[0].shape[2:]))
        return f"{type(self.module).__name__} {self.path.split('/')[-1]} [{shape}]"


def find_pieces(program: Program) -> list[Piece]:
    """Return the different pieces of a program's network, in the order of their calls.

    The program has the batch of one chip, and no rematerialisation.
    """
    pieces: dict[str, Piece] = {}

    def record(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        is_piece = (
            context.method_name == "__call__"
            and isinstance(module.parent, CONTAINERS)
            and not isinstance(module, CONTAINERS)
        )
        if is_piece:
            shapes = jax.tree.map(_shape, (args, kwargs))
            params = jax.tree.map(_shape, module.variables.get("params", {}))
            piece = Piece(
                "/".join(module.path), module.clone(parent=None, name=None), params,
                shapes[0],
            )  # fmt: skip
            key = _key(piece)
            if key in pieces:
                pieces[key].calls += 1
            else:
                pieces[key] = piece
        return next_call(*args, **kwargs)

    def call(*args: Any) -> Any:  # a new function: of an old one the trace is cached
        return program.function.__wrapped__(*args, **program.options)

    with nn.intercept_methods(record):
        jax.eval_shape(call, *program.args)
    return list(pieces.values())


def _shape(leaf: Any) -> Any:
    """Return an array as a shape; what is static as it is."""
    if isinstance(leaf, jax.Array) or hasattr(leaf, "aval"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf


def _key(piece: Piece) -> str:
    text = repr((piece.module, piece.params, piece.args))
    return hashlib.sha256(text.encode()).hexdigest()


def piece_function(
    piece: Piece, backward: bool, remat: str = "none"
) -> tuple[Callable, tuple]:
    """Return a function of a piece, and its arguments as shapes.

    backward: with the gradients of the parameters and of what is float of the
      arguments, from one of the result. remat: of the network's config.
    """
    leaves, structure = jax.tree.flatten((piece.params, piece.args))
    is_array = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]
    arrays = [leaf for leaf, a in zip(leaves, is_array, strict=True) if a]
    key = jax.eval_shape(lambda: jax.random.key(0))

    def apply(arrays: list, key: jax.Array) -> Any:
        given = iter(arrays)
        merged = [
            next(given) if a else leaf for leaf, a in zip(leaves, is_array, strict=True)
        ]
        params, args = jax.tree.unflatten(structure, merged)
        variables = {"params": params} if params else {}
        return piece.module.apply(variables, *args, rngs={"dropout": key})

    if not backward:
        return apply, (arrays, key)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in arrays]
    result = jax.eval_shape(apply, arrays, key)

    def both(arrays: list, key: jax.Array, cotangent: Any) -> Any:
        def of_floats(floats: list) -> Any:
            given = iter(floats)
            merged = [
                next(given) if a else leaf
                for leaf, a in zip(arrays, floating, strict=True)
            ]
            return apply(merged, key)

        if remat != "none":
            policy = REMAT_POLICIES[remat]
            of_floats = jax.checkpoint(of_floats, policy=policy)
        floats = [leaf for leaf, a in zip(arrays, floating, strict=True) if a]
        out, pull = jax.vjp(of_floats, floats)
        return out, pull(cotangent)

    return both, (arrays, key, result)


@dataclasses.dataclass(frozen=True)
class PieceCycles:
    """Estimated cycles of all calls of a piece in a call of the program.

    cycles, flops: of all calls. pallas: of the cycles, those of Pallas kernels, which
      are counted in their schedules. memory: bytes of temporaries of a call.
    """

    name: str
    calls: int
    cycles: float
    pallas: float
    flops: float
    memory: int


def measure_pieces(
    program: Program, work: Work, topology: Topology, state: Any
) -> Iterator[PieceCycles]:
    """Compile the pieces of a program for one chip, and the optimiser of a training.

    What is compiled once is kept in the user's cache folder.

    program: of the batch of one chip, on one device. state: of training, as the shapes
      that one chip holds; None for sampling.

    Raises:
      UserError: the compiler of the topology is not installed.
    """
    backward, remat = work.kind != "sample", work.config.network.get("remat", "none")
    for piece in find_pieces(program):
        function, shapes = piece_function(piece, backward, remat)
        flops = piece_flops(piece, backward)
        yield _measure(piece.name, piece.calls, function, shapes, flops, topology)
    if state is not None:
        function, shapes = optimiser_function(state, work.config.train)
        yield _measure("optimiser and average", 1, function, shapes, 0.0, topology)


def _measure(
    name: str, calls: int, function: Callable, shapes: tuple, flops: float,
    topology: Topology,
) -> PieceCycles:  # fmt: skip
    """Compile a function for one chip, or read what is known of it."""
    mesh: Any = chip_sharding(topology.kind).mesh
    with jax.set_mesh(mesh):  # which says who computes attention
        text = str(jax.make_jaxpr(function)(*shapes))
    key = cache_key(re.sub(r" at 0x\w+", "", text), topology.kind, "piece")
    if (known := read_cached(key)) is None:
        found = piece_cycles(function, *shapes, topology=topology.kind, flops=flops)
        known = [found.xla, found.pallas, found.memory]
        write_cached(key, known)
    xla, pallas, memory = known
    return PieceCycles(
        name, calls, calls * (xla + pallas), calls * pallas, calls * flops, memory
    )


def optimiser_function(state: TrainState, train: Any) -> tuple[Callable, tuple]:
    """Return the update of a state by its gradients, and its arguments as shapes.

    train: the section of the config.
    """
    optimizer = make_optimizer(train)

    def update(state: TrainState, grads: Any) -> Any:
        return apply_gradients(state, grads, optimizer, 1e-4, train.ema_decay)

    return update, (state, state.params)


def piece_flops(piece: Piece, backward: bool) -> float:
    """Return the FLOPs of a call of a piece, nothing recomputed."""
    function, shapes = piece_function(piece, backward)
    return product_flops(function, *shapes)
