"""Compiling for chips that are not there, in a process that can be ended half-way.

XLA's partitioner and the passes that join collectives end long before code generation
does. The process writes the program at that point, and is ended once it has.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vdm_jax import files, sharding
from vdm_jax.errors import UserError
from vdm_jax.planning import hlo
from vdm_jax.planning.programs import Work, make_programs
from vdm_jax.planning.topology import Topology

# The first pass after those that join collectives that is dumped always, and the next
# one, before which the dump of the first is complete (libtpu 0.0.52).
AFTER_COMBINERS = ("before_while-loop-async-post-fusion-scheduler", "host_collective")
DUMPED_PASSES = "while-loop-async-post-fusion-scheduler|host_collective_rewriter"
POLL = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What is known of a compiled program, of one chip.

    collectives: as `hlo.count_collectives` counts them; None where the program was
      compiled whole only.
    memory: bytes at the peak: arguments, results and temporaries; None where the
      program was not compiled whole.
    fits: whether the compiler found place for it.
    kernels: calls by kind, of a program for GPUs; {} for TPUs.
    """

    collectives: hlo.Collectives
    memory: int | None = None
    fits: bool | None = None
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def compiling(
    work: Work, topology: Topology, index: int = 0, whole: bool = False
) -> Iterator[Callable[..., Compilation]]:
    """Compile a program of a work; yield a function that waits for what is known of it.

    It takes a time limit in seconds, after which what is known half-way is enough. The
    compiler ends with the block. The same program is compiled once: what is known is
    kept in the user's cache folder.

    index: of the program in `make_programs`. whole: compile to the end, for memory.

    The function raises:
      UserError: as `make_programs`, or the compiler refuses the topology.
      RuntimeError: the compiler failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="vdm_jax_plan_") as name:
        folder = Path(name)
        args = work, topology, index, whole, folder
        process = context.Process(target=_compile, args=args, daemon=True)
        process.start()
        started = time.monotonic()
        try:
            yield lambda limit=float("inf"): _wait(
                process, folder, started + limit if whole else started
            )
        finally:
            process.kill()
            process.join()


def _wait(process: Any, folder: Path, end: float) -> Compilation:
    """Return the result of a process; after `end` that of the program half-way."""
    while True:
        process.join(POLL)
        if (folder / RESULT).is_file():
            return _from_json(json.loads((folder / RESULT).read_text()))
        if not process.is_alive():
            raise _failure(folder, process.exitcode)
        if time.monotonic() > end and (text := _partitioned(folder / DUMPS)):
            result = Compilation(hlo.count_collectives(text))
            write_cached((folder / KEY).read_text(), dataclasses.asdict(result))
            return result


def _partitioned(dumps: Path) -> str | None:
    """Return the text of the program after the passes, None before it is written."""
    first, second = (
        next(dumps.glob(f"*{part}*.txt"), None) for part in AFTER_COMBINERS
    )
    return first.read_text() if first and second else None


def _failure(folder: Path, status: int | None) -> Exception:
    """Return the error that ended a process."""
    if (folder / USER_ERROR).is_file():
        return UserError((folder / USER_ERROR).read_text())
    log = (folder / LOG).read_text(errors="replace")[-2000:]
    return RuntimeError(f"the compiler's process ended with status {status}:\n{log}")


# Files of the folder that both processes have.
KEY, RESULT, USER_ERROR, LOG, DUMPS = "key", "result", "user_error", "log", "dumps"


def _compile(
    work: Work, topology: Topology, index: int, whole: bool, folder: Path
) -> None:
    """Compile a program and write what is known of it; runs in a process of its own."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)  # libtpu writes there, too
    os.dup2(log, 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_enable_compilation_cache", False)  # of it nothing is dumped
    try:
        devices = topology.devices()
        mesh = sharding.mesh_from_config(work.config.mesh, devices)
        lowered = make_programs(work, mesh)[index].lower()
    except UserError as error:
        (folder / USER_ERROR).write_text(str(error))
        sys.exit(2)
    key = cache_key(lowered.as_text(), str(topology))
    (folder / KEY).write_text(key)
    known = read_cached(key)
    result = _from_json(known) if known else None
    if result is None or (whole and result.fits is None):
        compile_whole = _compile_for_tpu if topology.is_tpu else _compile_for_gpu
        result = compile_whole(lowered, topology, folder)
        write_cached(key, dataclasses.asdict(result))
    files.write_json(folder / RESULT, dataclasses.asdict(result))


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compile_for_tpu(lowered: Any, topology: Topology, folder: Path) -> Compilation:
    """Compile a program, which writes itself half-way, to its end."""
    options = {
        "xla_dump_to": str(folder / DUMPS),
        "xla_dump_hlo_pass_re": DUMPED_PASSES,
    }
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        memory, text = used_memory(str(error)), _partitioned(folder / DUMPS)
        if memory is None or text is None:
            raise
        return Compilation(hlo.count_collectives(text), memory, False)
    text = _partitioned(folder / DUMPS) or compiled.as_text()
    return Compilation(hlo.count_collectives(text), _peak(compiled), True)


def _compile_for_gpu(lowered: Any, topology: Topology, folder: Path) -> Compilation:
    """Compile a program; kernels are not timed, as there is no GPU to time them on."""
    compiled = lowered.compile({"xla_gpu_autotune_level": "0"})
    text, memory = compiled.as_text(), _peak(compiled)
    fits = memory <= topology.chip.memory
    kernels = hlo.count_kernels(text)
    return Compilation(hlo.count_collectives(text), memory, fits, kernels)


def _peak(compiled: jax.stages.Compiled) -> int:
    """Return the bytes of a chip's memory that a program takes at its peak."""
    of: Any = compiled.memory_analysis()
    size = of.argument_size_in_bytes + of.temp_size_in_bytes
    return size + of.output_size_in_bytes - of.alias_size_in_bytes


def used_memory(message: str) -> int | None:
    """Return the bytes that a program needs by a compiler's error, None for another.

    The error is "Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm."
    """
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    if found is None:
        return None
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


# --- what is known of programs that were compiled before ---------------------------


def cache_key(*parts: str) -> str:
    """Return the name under which what is known of a program is kept.

    parts: its text, and what else decides what the compiler makes of it.
    """
    compilers = ("jax", "jaxlib", "libtpu", "jax-cuda13-pjrt")
    known = (each for each in importlib.metadata.distributions(path=sys.path))
    versions = sorted(
        f"{each.name} {each.version}" for each in known if each.name in compilers
    )
    return hashlib.sha256("\n".join([*parts, *versions]).encode()).hexdigest()


def read_cached(key: str) -> Any:
    """Return what is known, None where nothing is; a damaged file is ignored."""
    with contextlib.suppress(files.CorruptFile, OSError):
        return files.read_json(files.cache_folder() / "plan" / f"{key}.json")
    return None


def write_cached(key: str, value: Any) -> None:
    """Keep a value as JSON."""
    files.write_json(files.cache_folder() / "plan" / f"{key}.json", value)


def _from_json(fields: Any) -> Compilation:
    collectives = hlo.Collectives(**fields["collectives"])
    return Compilation(**fields | {"collectives": collectives})
