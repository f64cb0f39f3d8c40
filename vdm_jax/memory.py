"""The memory that this process can use."""

import contextlib
import os
import resource
from pathlib import Path

from vdm_jax.errors import UserError


def memory_limit() -> int:
    """Return the number of bytes of memory that this process can use at most.

    The smallest of the machine's memory, the limit of a container or job (cgroup), and
    ``ulimit -v``.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(limits)


def check_memory(need: float, what: str) -> None:
    """Raise UserError if ``what`` needs more bytes of memory than the limit."""
    if need > (limit := memory_limit()):
        raise UserError(
            f"{what}: {need / 2**30:,.1f} GiB of memory needed, {limit / 2**30:,.1f} "
            "available: process less at a time"
        )
