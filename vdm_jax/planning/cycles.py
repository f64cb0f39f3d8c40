"""Cycles of a program on a TPU, by the compiler's own estimate; no TPU is needed.

libtpu from PyPI holds the TPU's compiler. Its scheduled program has an estimate for
nearly every instruction of XLA, which sees no overlap of one with the next. A Pallas
kernel has none, see `kernels`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vdm_jax.planning import hlo
from vdm_jax.planning.flops import jaxpr_flops
from vdm_jax.planning.kernels import kernel_cycles
from vdm_jax.planning.topology import chip_sharding

KERNEL = 'custom_call_target="tpu_custom_call"'
CONTROL_FLOW = ("while", "conditional", "call", "async-start")  # counted by their parts
V5E_FLOPS_PER_CYCLE = 4 * 128 * 128 * 2  # of its four matrix units, bfloat16


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Estimated cycles of a program on one chip.

    xla     cycles of XLA's instructions
    pallas  cycles of Pallas kernels
    flops   FLOPs of products and convolutions, as `product_flops` counts them
    memory  bytes of temporaries that the program allocates
    """

    xla: float
    pallas: float
    flops: float
    memory: int

    @property
    def total(self) -> float:
        """Return the cycles of XLA's instructions and of the kernels."""
        return self.xla + self.pallas

    @property
    def utilisation(self) -> float:
        """Return FLOPs over those that a v5e's matrix units do in these cycles."""
        return self.flops / (self.total * V5E_FLOPS_PER_CYCLE)


def piece_cycles(
    fn: Callable,
    *shapes: Any,
    topology: str = "v5e",
    flops: float | None = None,
    donate_argnums: tuple[int, ...] = (),
) -> Cycles:
    """Compile fn(*shapes) for one chip and return its estimated cycles.

    Args:
      shapes: trees of arrays or of jax.ShapeDtypeStruct.
      topology: the chip, see `chip_sharding`.
      flops: FLOPs of the program if not those of its jaxpr, as of one that recomputes.
      donate_argnums: arguments whose memory the results may take.

    Raises:
      UserError: as `chip_sharding`.
    """
    sharding = chip_sharding(topology)
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes
    )
    # The mesh in context says for which device kernels are chosen.
    mesh: Any = sharding.mesh
    with jax.set_mesh(mesh), _no_compilation_cache():
        traced = jax.jit(fn, donate_argnums=donate_argnums).trace(*placed)
        compiled = traced.lower().compile()
    jaxpr, text = traced.jaxpr.jaxpr, str(compiled.as_text())
    pallas, count = kernel_cycles(jaxpr, topology)
    if text.count(KERNEL) != count:
        raise RuntimeError(f"{text.count(KERNEL)} kernels were compiled, not {count}")
    analysis: Any = compiled.memory_analysis()
    flops = jaxpr_flops(jaxpr) if flops is None else flops
    return Cycles(xla_cycles(text), pallas, flops, analysis.temp_size_in_bytes)


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compile without JAX's cache of programs."""
    name = "jax_enable_compilation_cache"
    former = getattr(jax.config, name)
    compilation_cache.reset_cache()  # it remembers whether it was enabled
    jax.config.update(name, False)
    try:
        yield
    finally:
        compilation_cache.reset_cache()
        jax.config.update(name, former)


def xla_cycles(text: str) -> float:
    """Return the cycles of the instructions of a scheduled program, by `hlo.count`."""

    def estimate(one: hlo.Instruction) -> tuple[str, float] | None:
        if one.opcode in CONTROL_FLOW:
            return None
        found = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        return ("cycles", float(found[1])) if found else None

    return hlo.count(text, estimate).sizes.get("cycles", 0.0)
