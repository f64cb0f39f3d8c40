"""Compiling for chips that are not there, in a process that can be ended half-way.

XLA's partitioner, the passes that join collectives and the assignment of memory end
long before code generation does. The process writes what they made of the program, and
is ended once it has.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vdm_jax import files, sharding
from vdm_jax.child_process import end_with_parent
from vdm_jax.errors import UserError
from vdm_jax.planning import hlo
from vdm_jax.planning.programs import Work, make_programs
from vdm_jax.planning.topology import Topology

# Of the files that libtpu 0.0.52 writes: the program after the passes that join
# collectives, the bytes of each kind of memory, and what is written next where they are
# there, or where they are not.
DUMPED_PASS = "while-loop-async-post-fusion-scheduler"
PROGRAM, MEMORY = f"*before_{DUMPED_PASS}*", "*memory-usage-report*"
FITS, DOES_NOT_FIT = "*after_buffer_assignment*", "*oom_intermediate_module*"
POLL = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What is known of a compiled program, of one chip.

    collectives: as `hlo.count_collectives` counts them.
    memory: bytes at the peak: arguments, results and temporaries.
    fits: whether the compiler found place for it.
    kernels: calls by kind, of a program for GPUs; {} for TPUs.
    """

    collectives: hlo.Collectives
    memory: int
    fits: bool
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def compiling(
    work: Work, topology: Topology, index: int = 0
) -> Iterator[Callable[[], Compilation]]:
    """Compile a program of a work; yield a function that waits for what is known of it.

    The compiler ends with the block. The same program is compiled once: what is known
    is kept in the user's cache folder.

    index: of the program in `make_programs`.

    The function raises:
      UserError: as `make_programs`, or the compiler refuses the topology.
      RuntimeError: the compiler failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="vdm_jax_plan_") as name:
        folder = Path(name)
        args = work, topology, index, folder
        process = context.Process(target=_compile, args=args, daemon=True)
        process.start()
        try:
            yield lambda: _wait(process, folder)
        finally:
            process.kill()
            process.join()


def _wait(process: Any, folder: Path) -> Compilation:
    """Return what a process has found, or what its compiler has written half-way."""
    while True:
        process.join(POLL)
        has_ended = not process.is_alive()
        if (folder / RESULT).is_file():
            return _from_json(json.loads((folder / RESULT).read_text()))
        if result := read_dumps(folder / DUMPS):
            write_cached((folder / KEY).read_text(), dataclasses.asdict(result))
            return result
        if has_ended:
            raise _failure(folder, process.exitcode)


def dump_options(dumps: Path) -> dict[str, str | bool]:
    """Return the options of a compilation for TPUs that let `read_dumps` read it."""
    return {"xla_dump_to": str(dumps), "xla_dump_hlo_pass_re": DUMPED_PASS}


def read_dumps(dumps: Path) -> Compilation | None:
    """Return what libtpu has written of a program, None before it is complete.

    That is long before the compilation ends, or where it fails for lack of memory.

    dumps: the folder of `dump_options`.
    """
    fits = any(dumps.glob(FITS))
    if not fits and not any(dumps.glob(DOES_NOT_FIT)):
        return None
    program, memory = (
        "".join(path.read_text() for path in dumps.glob(name))
        for name in (PROGRAM, MEMORY)
    )
    size = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", memory)
    if size is None:
        raise ValueError(f"libtpu's report has no total: {memory[:200]!r}")
    return Compilation(hlo.count_collectives(program), int(size[1]), fits)


def _failure(folder: Path, status: int | None) -> Exception:
    """Return the error that ended a process."""
    if (folder / USER_ERROR).is_file():
        return UserError((folder / USER_ERROR).read_text())
    if status == 0:
        return RuntimeError("libtpu wrote no reports of the program: 0.0.52 does")
    log = (folder / LOG).read_text(errors="replace")[-2000:]
    return RuntimeError(f"the compiler's process ended with status {status}:\n{log}")


# Files of the folder that both processes have.
KEY, RESULT, USER_ERROR, LOG, DUMPS = "key", "result", "user_error", "log", "dumps"


def _compile(work: Work, topology: Topology, index: int, folder: Path) -> None:
    """Compile a program and write what is known of it; runs in a process of its own."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)  # libtpu writes there, too
    os.dup2(log, 2)
    end_with_parent()
    jax.config.update("jax_enable_compilation_cache", False)  # of it nothing is dumped
    try:
        devices = topology.devices()
        mesh = sharding.mesh_from_config(work.config.mesh, devices)
        lowered = make_programs(work, mesh)[index].lower()
    except UserError as error:
        (folder / USER_ERROR).write_text(str(error))
        sys.exit(2)
    key = cache_key(lowered.as_text(), str(topology), "program")
    (folder / KEY).write_text(key)
    if known := read_cached(key):
        files.write_json(folder / RESULT, known)
    elif topology.is_tpu:
        lowered.compile(dump_options(folder / DUMPS))
    else:
        known = dataclasses.asdict(_compile_for_gpu(lowered, topology))
        write_cached(key, known)
        files.write_json(folder / RESULT, known)


def _compile_for_gpu(lowered: Any, topology: Topology) -> Compilation:
    """Compile a program; kernels are not timed, as there is no GPU to time them on."""
    compiled = lowered.compile({"xla_gpu_autotune_level": "0"})
    of: Any = compiled.memory_analysis()
    memory = of.argument_size_in_bytes + of.temp_size_in_bytes
    memory += of.output_size_in_bytes - of.alias_size_in_bytes
    text = compiled.as_text()
    fits = memory <= topology.chip.memory
    kernels = hlo.count_kernels(text)
    return Compilation(hlo.count_collectives(text), memory, fits, kernels)


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
