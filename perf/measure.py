"""Timing and memory of a process, with the standard library and psutil alone.

Processes of the baselines, which have an environment of their own, import it too.
"""

import resource
import time
from collections.abc import Callable

STEPS = 5  # timed calls, after one that is not timed


def since_start() -> float:
    """Return seconds since this process was started."""
    import psutil

    return time.time() - psutil.Process().create_time()


def timed(step: Callable[[], None]) -> list[float]:
    """Return seconds of STEPS calls, after a first call that compiles or allocates."""
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measure_steps(
    parameters: int, train: Callable[[], None], sample: Callable[[], None]
) -> dict:
    """Return times of a training and a sampling step, the first step and memory.

    first: seconds from the start of the process to the end of the first training step.
    memory: peak GiB of the process.
    """
    train()
    first = since_start()
    times = {"train": timed(train), "sample": timed(sample)}
    return times | {"parameters": parameters, "first": first, "memory": peak_gib()}


def peak_gib() -> float:
    """Return the peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
