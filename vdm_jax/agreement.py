"""Check that all processes of a run agree on their config, files and libraries.

Each process computes replicated arrays for itself. With another config, library version
or file on one machine they would differ without an error. So the processes compare what
they depend on before they compute.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed

from vdm_jax.errors import UserError
from vdm_jax.runtime import PINNED_JAX_SETTINGS, jax_setting, write_stderr

T = TypeVar("T")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "grain")
ENVIRONMENT_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
TIMEOUT = 1800  # seconds to wait for the slowest, which may still read its data
ERROR = "error"  # key under which a process reports an error instead of facts
ERROR_TIMEOUT = 300  # seconds that a process with an error waits for the others
WAITING_INTERVAL = 300  # seconds after which a process says for whom it waits
_comparison_numbers = itertools.count()
_exchange_numbers = itertools.count()
_comparing = True


class ProcessMismatch(UserError):
    """The processes differ, or one of them reported an error; raised on all of them."""


def check(facts: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
    """Compare facts between all processes, which must call this together.

    The comparison uses JAX's coordination service and no device: devices may be set up
    differently by what differs.

    Args:
      facts: JSON values by name; nested dicts are compared value by value.
      timeout: seconds to wait for each of the other processes.

    Raises:
      ProcessMismatch: a fact differs; raised on all processes.
    """
    state = distributed.global_state
    client, count = state.client, state.num_processes
    if client is None or count == 1:
        return
    own = dict(flatten(json.loads(json.dumps(facts, default=str))))
    name = f"vdm_jax/agreement/{next(_comparison_numbers)}"
    rank = jax.process_index()

    def put(key: str | int, value: Any) -> None:
        client.key_value_set(f"{name}/{key}", json.dumps(value))

    def get(key: str | int) -> Any:
        return json.loads(
            client.blocking_key_value_get(f"{name}/{key}", round(timeout * 1000))
        )

    if rank == 0:
        put(0, own)
        differences = [get(other) for other in range(1, count)]
        put("first difference", next(filter(None, differences), ""))
    else:
        put(rank, describe_difference(get(0), own, rank))
    if difference := get("first difference"):
        raise ProcessMismatch(difference)


def check_command(command: str, facts: Mapping[str, Any]) -> None:
    """Compare which command the processes run, on what, and their environment.

    Raises:
      ProcessMismatch: they differ.
    """
    check({"command": command} | environment() | dict(facts))


def together(
    part: Callable[[], Any], whole: Callable[[list[Any]], T], number: int | None = None
) -> T:
    """Call `part` on every process, then `whole` with the results on process 0.

    Returns the result of `whole` on every process. All processes call this together; it
    goes through the service that connects them, so it may run in a thread. A process
    waits for the others without a limit, and says so every 5 minutes: some embed all
    captions, or verify a checkpoint, for hours. JAX ends it if another has ended.

    Args:
      part: returns JSON.
      whole: of the results in the order of the processes; returns JSON.
      number: of `next_exchange`, in a thread. Without it the order of calls counts.

    Raises:
      UserError: that of `part` of any process, or of `whole`; raised on all processes.
    """
    state = distributed.global_state
    client, count = state.client, jax.process_count()
    if client is None or count == 1:
        return whole([part()])
    name = f"vdm_jax/together/{next_exchange() if number is None else number}"
    rank = jax.process_index()

    def put(key: str | int, value: Any) -> None:
        client.key_value_set(f"{name}/{key}", json.dumps(value))

    def get(key: str | int) -> Any:
        other = 0 if key == "answer" else key
        for waits in itertools.count(1):
            try:
                return json.loads(
                    client.blocking_key_value_get(
                        f"{name}/{key}", WAITING_INTERVAL * 1000
                    )
                )
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            minutes = waits * WAITING_INTERVAL // 60
            write_stderr(
                f"process {rank} has waited for process {other} for {minutes} minutes"
            )

    own = _outcome(part)
    if rank:
        put(rank, own)
        answer = get("answer")
    else:
        outcomes = [own, *(get(other) for other in range(1, count))]
        failed = next((o for o in outcomes if "error" in o), None)
        values = [outcome.get("value") for outcome in outcomes]
        answer = failed or _outcome(lambda: whole(values))
        put("answer", answer)
    if "error" in answer:
        raise UserError(answer["error"], answer["status"])
    return answer["value"]


def next_exchange() -> int:
    """Return a new number for `together`; all processes draw them in the same order."""
    return next(_exchange_numbers)


def _outcome(decide: Callable[[], Any]) -> dict[str, Any]:
    """Return the value of a call, or its UserError with the process that has it."""
    try:
        return {"value": decide()}
    except UserError as error:
        rank = jax.process_index()
        where = f"process {rank} on {socket.gethostname()}: " if rank else ""
        return {"error": f"{where}{error}", "status": error.status}


def stop_comparing() -> None:
    """Record that training starts: from now on no process calls `check`."""
    global _comparing
    _comparing = False


def broadcast_error(error: UserError) -> None:
    """Make the other processes raise this process's error.

    They receive it at their next `check`; this waits ERROR_TIMEOUT for them. Once they
    train, nothing is sent: they stop when this process has ended.
    """
    if not _comparing or isinstance(error, ProcessMismatch):
        return
    with contextlib.suppress(UserError, jax.errors.JaxRuntimeError):
        # The check raises the error itself, or that the others did not come in time.
        check({ERROR: str(error)}, ERROR_TIMEOUT)


def describe_difference(first: dict[str, Any], own: dict[str, Any], rank: int) -> str:
    """Return the first difference between process 0 and another as a sentence, or "".

    first, own: flat dicts of facts, of process 0 and of process `rank`.
    """
    for process, facts in ((0, first), (rank, own)):
        if ERROR in facts:
            return f"process {process} of this run cannot begin: {facts[ERROR]}"
    for name, a, b in differences(first, own):
        return (
            f"the processes of this run differ: {name} is {a!r} in process 0 and "
            f"{b!r} in process {rank}: start all of them with the same"
        )
    return ""


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, value, value) where flat dicts differ; a value may be "absent"."""
    for name in {**first, **second}:
        a, b = first.get(name, "absent"), second.get(name, "absent")
        if a != b:
            yield name, a, b


def environment() -> dict[str, Any]:
    """Return what decides about results: versions, JAX settings, kind of devices."""
    devices = jax.local_devices()
    flags = {name: os.environ.get(name, "").split() for name in ENVIRONMENT_VARIABLES}
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "source of vdm_jax": _source_checksum(),
        **{
            name: sorted(word for word in words if not word.startswith("--xla_dump"))
            for name, words in flags.items()
        },
        **{name: str(jax_setting(name)) for name in PINNED_JAX_SETTINGS},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def arrays_checksum(tree: Any) -> str:
    """Return the CRC-32 of a tree of arrays that are not split between processes."""
    return _crc32(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def _source_checksum() -> str:
    """Return the CRC-32 of the library's own files."""
    paths = sorted(Path(__file__).parent.rglob("*.py"))
    return _crc32(path.read_bytes() for path in paths)


def _crc32(parts: Iterable[bytes]) -> str:
    """Return the CRC-32 of parts of bytes, in hexadecimal."""
    crc32 = 0
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of nested dicts, the names joined by dots."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
