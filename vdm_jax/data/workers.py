"""Worker processes that load batches and send them through pipes."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import signal
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import grain
import numpy as np

from vdm_jax.child_process import end_with_parent
from vdm_jax.errors import UserError

Batch = dict[str, np.ndarray]
Worker = tuple[multiprocessing.process.BaseProcess, Connection]

PREFETCH_BATCHES = 4  # batches in the buffer
# Schedulers and terminals send these to all processes. The main process handles them.
RUN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def prefetch(
    dataset: grain.MapDataset[Batch], threads: int, buffer: int
) -> grain.DatasetIterator[Batch]:
    """Iterate over batches that threads load ahead, at most ``buffer`` of them."""
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, buffer)))


class WorkerPool:
    """An iterator of batches in order; each of n processes loads every n-th batch.

    Batches are pickled into pipes: shared memory would outlive a killed run. A worker
    ends with this process, even if that is killed, because it waits for its end.
    """

    def __init__(self, dataset: grain.MapDataset[Batch], number: int):
        spawn = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []
        buffer = -(-PREFETCH_BATCHES // number)
        for worker in range(number):
            pipe, worker_pipe = spawn.Pipe(duplex=False)
            arguments = dataset[worker::number], buffer, worker_pipe
            process = spawn.Process(target=_worker_main, args=arguments, daemon=True)
            _start_worker(process)
            worker_pipe.close()  # so that the pipe ends with the worker
            self._workers.append((process, pipe))
        self._next_worker = itertools.cycle(range(number))
        # At exit multiprocessing sends SIGTERM, which workers ignore: kill them before.
        self.close = multiprocessing.util.Finalize(
            self, _stop_workers, (self._workers,), exitpriority=10
        )

    def __next__(self) -> Batch:
        number = next(self._next_worker)
        process, pipe = self._workers[number]
        try:
            answer = pipe.recv()
        except (EOFError, OSError) as error:  # it has ended
            process.join()
            name = f"worker {number} of config.data.workers={len(self._workers)}"
            name += f" (process {process.pid})"
            raise _worker_error(name, process.exitcode or 0) from error
        if isinstance(answer, UserError):
            raise answer
        return answer


def _worker_error(name: str, status: int) -> Exception:
    """Return the error for a worker that has ended with an exit status."""
    if status >= 0:
        return RuntimeError(f"{name} failed, see the error above")
    killer = signal.Signals(-status).name
    return UserError(
        f"{name} was killed by {killer}: is there enough memory for all workers? "
        "The same command resumes from the newest checkpoint",
        status=128 - status,
    )


def _start_worker(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process with the signals of the run blocked from its start on."""
    # Otherwise the first start would start the tracker, which unblocks the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, RUN_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_workers(workers: list[Worker]) -> None:
    for process, pipe in workers:
        pipe.close()
        process.kill()
        process.join()


def _worker_main(
    dataset: grain.MapDataset[Batch], buffer: int, pipe: Connection
) -> None:
    """Send the batches of an infinite data set: the main function of a worker."""
    end_with_parent()
    with contextlib.suppress(ConnectionError):  # the parent closes the pipe to stop
        try:
            for batch in prefetch(dataset, 1, buffer):
                pipe.send(batch)
        except UserError as error:
            pipe.send(error)
