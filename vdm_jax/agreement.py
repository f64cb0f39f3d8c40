"""What the processes of a run must have in common, compared before they compute.

Arrays that are called replicated are computed by each process for itself: with another
config, library or file on one of them they differ, and nothing would say so.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed

from vdm_jax.command import PINNED_JAX_SETTINGS, jax_setting
from vdm_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "grain")
ENVIRONMENT_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
TIMEOUT = 1800  # seconds for the slowest to come, which may be reading its data
ERROR = "error"  # the fact of a process that could not get as far as the others
ERROR_TIMEOUT = 300  # seconds that a process with an error waits to be heard
_comparisons = itertools.count()
_computing = False


class ProcessMismatch(UserError):
    """What a comparison found, which all processes know."""


def check(facts: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
    """Raise Disagreement, on all processes, unless all of them give the same facts.

    All call it together. It goes through the service that keeps them together, and not
    through their devices, which what differs may have set up in different ways.

    facts: what can be JSON, by name; nested names are joined by dots.
    patience: seconds to wait for the others, each time.
    """
    state = distributed.global_state
    client, count = state.client, state.num_processes
    if client is None or count == 1:
        return
    mine = dict(flatten(json.loads(json.dumps(facts, default=str))))
    name, rank = f"vdm_jax/agreement/{next(_comparisons)}", jax.process_index()

    def put(key: str | int, value: Any) -> None:
        client.key_value_set(f"{name}/{key}", json.dumps(value))

    def get(key: str | int) -> Any:
        return json.loads(
            client.blocking_key_value_get(f"{name}/{key}", round(timeout * 1000))
        )

    if rank == 0:
        put(0, mine)
        answers = [get(other) for other in range(1, count)]
        put("answer", next(filter(None, answers), ""))
    else:
        put(rank, describe_difference(get(0), mine, rank))
    if answer := get("answer"):
        raise ProcessMismatch(answer)


def stop_comparing() -> None:
    """Note that the first step comes: from now on no process compares until the end."""
    global _computing
    _computing = True


def broadcast_error(error: UserError) -> None:
    """Have the others of a run end with this process's error and its status.

    They learn it where they next compare, for which this waits a while. Where they
    compute, nothing is done: they end when this process is gone.
    """
    if _computing or isinstance(error, ProcessMismatch):
        return
    with contextlib.suppress(UserError, jax.errors.JaxRuntimeError):
        # What comes back is the same error, or that nobody came in time.
        check({ERROR: str(error)}, ERROR_TIMEOUT)


def describe_difference(first: dict[str, Any], own: dict[str, Any], rank: int) -> str:
    """What process 0 and another do not have in common, as a sentence; "" if nothing.

    Both are flat.
    """
    for process, facts in ((0, first), (rank, own)):
        if ERROR in facts:
            return f"process {process} of this run cannot begin: {facts[ERROR]}"
    for name in {**first, **own}:
        a, b = first.get(name, "absent"), own.get(name, "absent")
        if a != b:
            return (
                f"the processes of this run differ: {name} is {a!r} in process 0 and "
                f"{b!r} in process {rank}: start all of them with the same"
            )
    return ""


def environment() -> dict[str, Any]:
    """What of a machine decides about numbers: versions, settings, kind of devices."""
    devices = jax.local_devices()
    flags = {name: os.environ.get(name, "").split() for name in ENVIRONMENT_VARIABLES}
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "source of vdm_jax": _source(),
        **{
            name: sorted(flag for flag in given if not flag.startswith("--xla_dump"))
            for name, given in flags.items()
        },
        **{name: str(jax_setting(name)) for name in PINNED_JAX_SETTINGS},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def arrays_checksum(tree: Any) -> str:
    """CRC-32 of the bytes of arrays that this process has whole."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        found = zlib.crc32(np.asarray(leaf).tobytes(), found)
    return f"{found:08x}"


def _source() -> str:
    """CRC-32 of the library's own files."""
    found = 0
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found = zlib.crc32(path.read_bytes(), found)
    return f"{found:08x}"


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, by names joined with dots."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
