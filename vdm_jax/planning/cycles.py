"""Cycles of a program on a TPU, by the compiler's own estimate; no TPU is needed.

libtpu from PyPI holds the TPU's compiler. Its scheduled program has an estimate for
nearly every instruction of XLA, which sees no overlap of one with the next. A Pallas
kernel has none: the bundles of its final schedule are counted instead, a bundle being
what one cycle issues.
"""

import atexit
import contextlib
import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vdm_jax.errors import UserError
from vdm_jax.planning import hlo
from vdm_jax.planning.flops import product_flops

V5E_FLOPS_PER_CYCLE = 4 * 128 * 128 * 2  # of its four matrix units, bfloat16
# Between a chip and its memory: 819 GB/s at 1.5 GHz, 2765 and 1640 GB/s at 1.75 GHz.
BYTES_PER_CYCLE = {"v5e": 545, "v5p": 1580, "v6e": 937}


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Estimated cycles of a program on one chip.

    xla     cycles of XLA's instructions
    pallas  cycles of Pallas kernels: of each the larger of its bundles and its bytes
            over BYTES_PER_CYCLE
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


@functools.cache
def set_compiler_environment() -> Path:
    """Set what libtpu reads when it is loaded; return the folder of its schedules.

    To be called before anything of this process loads libtpu.
    """
    folder = Path(tempfile.mkdtemp(prefix="vdm_jax_schedules_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no machine with metadata
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.pop("XLA_FLAGS", None)  # libtpu aborts at a flag of another backend
    arguments = (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=^final_bundles$",
    )
    former = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = " ".join((former, *arguments)).strip()
    return folder


def chip_sharding(topology: str = "v5e") -> NamedSharding:
    """Return the sharding of an array on one chip, "v5e", "v5p", "v6e" or "v4".

    Raises:
      UserError: libtpu is not installed, or the compiler knows no such chip.
    """
    set_compiler_environment()
    # The smallest topology that libtpu has of each: one host of some has four chips.
    size = {"v5e": "1x1", "v6e": "1x1"}.get(topology, "2x2x1")
    try:
        chips = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology}:{size}"
        ).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"no compiler for {topology}: `pip install libtpu`, and a chip that it "
            f"knows ({str(error).splitlines()[0][:120]})"
        ) from error
    mesh = Mesh(np.array(chips[:1]), ("chip",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec())


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
    folder = set_compiler_environment()
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes
    )
    former = set(folder.iterdir())
    # The mesh in context says for which device kernels are chosen.
    mesh: Any = sharding.mesh
    with jax.set_mesh(mesh), _no_compilation_cache():
        lowered = jax.jit(fn, donate_argnums=donate_argnums).lower(*placed)
        compiled = lowered.compile()  # a cached program has no schedules
    schedules = {}
    for path in set(folder.iterdir()) - former:
        if named := re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name):
            schedules[named[1]] = path.read_text()
        path.unlink()
    bytes_per_cycle = BYTES_PER_CYCLE[topology]
    xla, pallas = program_cycles(str(compiled.as_text()), schedules, bytes_per_cycle)
    analysis: Any = compiled.memory_analysis()
    flops = product_flops(fn, *shapes) if flops is None else flops
    return Cycles(xla, pallas, flops, analysis.temp_size_in_bytes)


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


def program_cycles(
    text: str, schedules: dict[str, str], bytes_per_cycle: float = 545
) -> tuple[float, float]:
    """Return the cycles of a program's own instructions, and of its Pallas kernels.

    Loops and branches count as in `hlo.count`.

    Args:
      text: HLO of the scheduled program.
      schedules: name of an instruction -> text of its final bundles.
      bytes_per_cycle: of the chip's memory.
    """

    def cycles_of(one: hlo.Instruction) -> tuple[str, float] | None:
        if one.opcode in CONTROL_FLOW:
            return None
        if 'custom_call_target="tpu_custom_call"' in one.attributes:
            bundles = schedule_bundles(schedules[one.name])
            return "pallas", max(bundles, _kernel_bytes(one) / bytes_per_cycle)
        estimate = ESTIMATE.search(one.attributes)
        return ("xla", float(estimate[1])) if estimate else None

    cycles = hlo.count(text, cycles_of).sizes
    return cycles.get("xla", 0.0), cycles.get("pallas", 0.0)


ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
CONTROL_FLOW = ("while", "conditional", "call", "async-start")  # counted by their parts


def _kernel_bytes(kernel: hlo.Instruction) -> int:
    """Return the bytes of a kernel's operands and results, each once."""
    layouts = r"operand_layout_constraints=\{(.*?)\}, \w+="
    operands = re.search(layouts, kernel.attributes)
    return hlo.shape_bytes(f"{kernel.shape} {operands[1] if operands else ''}")


def schedule_bundles(schedule: str) -> float:
    """Return the bundles that a kernel's final schedule issues, loops by their trips.

    A bundle inside of n loops is marked by n ">". The branch that ends a loop reads the
    comparison of the loop's counter, which starts at 0, with a constant. A predicated
    region counts as if it always ran, and waits for a memory or a matrix unit do not
    count.
    """
    exits = dict(re.findall(_EXIT_TEST, schedule))
    loops = [_Loop(None, 1)]  # all of them; the first is the kernel itself
    nest = loops[:]  # those that the current bundle is in
    for marker, depth, text in re.findall(_BUNDLE, schedule):
        if (
            text[:1] != "}"
        ):  # an empty bundle has no mark: it is where the former one is
            del nest[len(depth) + 1 :]
        if marker == "LB":
            del nest[len(depth) :]
            nest.append(_Loop(nest[-1], None))
            loops.append(nest[-1])
        nest[-1].bundles += 1
        end = re.search(r"sbr\.rel \(!(%p\w+)\)", text)
        if end and end[1] in exits:  # of the innermost loop that is still open
            ended = [loop for loop in loops if loop.trips is None][-1]
            ended.trips = int(exits[end[1]])
        if "iteration index, stage = " in text and len(nest) == 2:
            nest[-1].is_grid = True
    return float(sum(loop.bundles * loop.runs() for loop in loops))


_EXIT_TEST = r"(%p\w+) = scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test"
_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +([A-Z]{2})?: (>*) *\{(.*)", re.M)


@dataclasses.dataclass
class _Loop:
    outer: "_Loop | None"
    trips: int | None
    bundles: int = 0
    is_grid: bool = False

    def runs(self) -> int:
        """Return how often the loop's body runs."""
        if self.trips is None:
            raise ValueError("a loop of a kernel's schedule has no constant trips")
        # The grid's loop starts a copy before its first step and ends one after the
        # last: two more turns, without the kernel's body.
        own = self.trips - 2 if self.is_grid else self.trips
        return own * (self.outer.runs() if self.outer else 1)
