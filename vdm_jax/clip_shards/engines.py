"""Engines: where the tasks of a preparation run.

An engine has one method, `map(function, tasks)`, which yields the results in any order.
The function and the tasks can be pickled.
"""

import concurrent.futures
import multiprocessing
import multiprocessing.process
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from vdm_jax.child_process import end_with_parent
from vdm_jax.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs tasks."""

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[Result, None, None]:
        """Yield the result of each task, in any order. Raises its errors."""
        ...


class LocalProcesses:
    """Processes of this machine.

    They are spawned, not forked, and end with this process, even if it is killed.

    Args:
      workers: number of processes; 0 runs the tasks in this one.
    """

    def __init__(self, workers: int):
        self.workers = workers

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[Result, None, None]:
        """Yield the results as they come. Raises UserError if a process is killed."""
        if not self.workers:
            yield from map(function, tasks)
            return
        before = {*multiprocessing.active_children()}
        pool = concurrent.futures.ProcessPoolExecutor(
            min(self.workers, max(len(tasks), 1)),
            multiprocessing.get_context("spawn"),
            _start_worker,
        )
        with pool:
            futures = [pool.submit(function, task) for task in tasks]
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process was killed: is there enough memory for "
                    f"--workers={self.workers}? The same command continues"
                ) from error
            finally:  # without waiting for tasks that nobody needs
                pool.shutdown(wait=False, cancel_futures=True)
                if not all(future.done() for future in futures):
                    for process in {*multiprocessing.active_children()} - before:
                        process.kill()


ENGINES: dict[str, Callable[[int], Engine]] = {"local": LocalProcesses}


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()
