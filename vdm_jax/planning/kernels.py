"""Cycles of Pallas kernels, by the final schedules that the TPU's compiler writes.

The compiler estimates no cycles of a kernel: the bundles of its schedule are counted, a
bundle being what one cycle issues. With the flag that has schedules written, a
convolution of XLA's own takes minutes to compile, as its text is long. So each kernel
is compiled alone, in a process that has the flag.
"""

import atexit
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from vdm_jax.planning.topology import chip_sharding

# Between a chip and its memory: 819 GB/s at 1.5 GHz, 2765 and 1640 GB/s at 1.75 GHz.
BYTES_PER_CYCLE = {"v5e": 545, "v5p": 1580, "v6e": 937}


def kernel_cycles(jaxpr: Any, chip: str) -> tuple[float, int]:
    """Return the cycles of all Pallas kernels of a jaxpr, and how many there are.

    A kernel counts the larger of the bundles of its schedule and of its bytes over
    those that the chip's memory moves in a cycle.
    """
    total, count = 0.0, 0
    for equation, times in _kernels(jaxpr, 1):
        variables = (*equation.invars, *equation.outvars)
        moved = sum(v.aval.size * v.aval.dtype.itemsize for v in variables)
        bundles = schedule_bundles(_schedule(equation, chip))
        total += times * max(bundles, moved / BYTES_PER_CYCLE[chip])
        count += 1
    return total, count


def _kernels(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Yield the calls of kernels and how often each runs.

    All branches of a conditional count, and a `while` once.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation, times
        inner = times * equation.params.get("length", 1)  # of a scan
        for each in jaxprs_in_params(equation.params):
            yield from _kernels(each, inner)


def _schedule(equation: Any, chip: str) -> str:
    """Return the text of a kernel's final schedule."""

    def kernel(*args: jax.Array) -> Any:
        return equation.primitive.bind(*args, **equation.params)

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    exported = jax.export.export(jax.jit(kernel), platforms=["tpu"])(*shapes)
    compiler, folder = _compiler()
    args = bytes(exported.serialize()), chip, folder
    return compiler.submit(_compile, *args).result()


@functools.cache
def _compiler() -> tuple[concurrent.futures.Executor, Path]:
    """Return the process that compiles kernels, and the folder of its schedules."""
    folder = Path(tempfile.mkdtemp(prefix="vdm_jax_schedules_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compiler = concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _write_schedules, (folder,)
    )
    return compiler, folder


def _write_schedules(folder: Path) -> None:
    """Have libtpu write the final schedules of what this process compiles."""
    arguments = (
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=^final_bundles$",
    )
    former = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = " ".join((former, *arguments)).strip()


def _compile(exported: bytes, chip: str, folder: Path) -> str:
    """Compile a kernel and return its schedule; runs in the compiler's process."""
    kernel = jax.export.deserialize(bytearray(exported))
    sharding = chip_sharding(chip)
    placed = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        for a in kernel.in_avals
    ]
    former = set(folder.iterdir())
    hlo = str(jax.jit(kernel.call).lower(*placed).compile().as_text())
    (name,) = re.findall(r"%(\S+) = .*custom_call_target=\"tpu_custom_call\"", hlo)
    return take_schedule(set(folder.iterdir()) - former, name)


def take_schedule(paths: Iterable[Path], name: str) -> str:
    """Return the final schedule of a kernel; all files are deleted.

    paths: what libtpu wrote as it compiled the kernel.

    Raises:
      RuntimeError: the schedule is not among them, or is empty.
    """
    text = ""
    for path in paths:
        if re.fullmatch(rf"\d+-{re.escape(name)}-\d+-final_bundles\.txt", path.name):
            text = path.read_text()
        path.unlink()
    if not text:
        raise RuntimeError(f"libtpu wrote no schedule of {name}: 0.0.52 does")
    return text


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
        if text[:1] != "}":
            # An empty bundle has no mark: it is where the former one is.
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
