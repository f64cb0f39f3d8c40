"""Worker processes: vdm_jax/data/workers.py."""

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.numbered import (
    Numbered,
    assert_same,
    config,
    stream,
    take,
)
from vdm_jax.data import pipeline, shapes, workers
from vdm_jax.errors import UserError


def test_worker_processes_do_not_change_the_stream():
    source = shapes.Shapes(shapes.Geometry(3, 8, 8))
    expected = stream(source, 8, joint_image_frames=2)
    batches = pipeline.train_batches(config(joint_image_frames=2, workers=2), source)
    batches.set_state({"batches": 1})
    taken = list(itertools.islice(batches, 4))
    state = batches.get_state()
    batches.close()
    assert_same(taken, expected[1:5])
    threads = pipeline.train_batches(config(joint_image_frames=2), source)
    threads.set_state(state)
    assert_same(take(threads, 3), expected[5:])


@dataclasses.dataclass(frozen=True)
class Failing(Numbered):
    """A source whose load raises: a bug, or an error of the user's data."""

    error: Exception = ValueError("a defect")

    def load(self, index, rng, frames):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("a defect"), RuntimeError, "worker 0 .* failed, see"),
        (UserError("no disk", status=7), UserError, "^no disk"),
    ],
)
def test_an_error_in_a_worker_ends_the_run(error, kind, message):
    batches = pipeline.train_batches(config(workers=1), Failing(error=error))
    with pytest.raises(kind, match=message) as caught:
        next(batches)
    assert getattr(caught.value, "status", None) == getattr(error, "status", None)
    batches.close()
    assert not multiprocessing.active_children()


def test_a_batch_that_ends_within_is_the_end_of_its_worker(monkeypatch):
    """As when a worker is killed while it sends."""
    batch = pickle.dumps({"video": np.zeros((4, 8, 8), np.uint8)}, 5)
    whole = struct.pack("!i", len(batch)) + batch
    for content in (b"", whole[: len(whole) // 2], whole[:3]):
        pipe, worker_pipe = multiprocessing.Pipe(duplex=False)
        os.write(worker_pipe.fileno(), content)
        worker_pipe.close()
        pool = workers.WorkerPool.__new__(workers.WorkerPool)
        process = multiprocessing.Process()
        monkeypatch.setattr(process, "join", lambda: None)
        monkeypatch.setattr(type(process), "exitcode", -signal.SIGKILL)
        pool._workers, pool._next_worker = [(process, pipe)], itertools.repeat(0)
        with pytest.raises(UserError, match="killed by SIGKILL"):
            next(pool)


def test_a_killed_worker_is_reported_and_signals_are_ignored(monkeypatch):
    source = shapes.Shapes(shapes.Geometry(3, 8, 8))
    start = workers._start_worker

    def start_and_signal(process):
        start(process)
        os.kill(
            process.pid, signal.SIGTERM
        )  # handled by the main process: a worker continues
        os.kill(process.pid, signal.SIGINT)

    monkeypatch.setattr(workers, "_start_worker", start_and_signal)
    batches = pipeline.train_batches(config(workers=1), source)
    next(batches)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGTERM)
    items = list(itertools.islice(batches, 9))
    os.kill(child.pid or 0, signal.SIGKILL)
    message = (
        rf"worker 0 of config.data.workers=1 \(process {child.pid}\) was killed by"
    )
    with pytest.raises(UserError, match=message + " SIGKILL") as caught:
        for _ in range(100):
            items.append(next(batches))
    assert caught.value.status == 137 and len(items) >= 9
    batches.close()
    assert not multiprocessing.active_children()


def is_running(process):
    """Return whether the process exists and is not a zombie."""
    try:
        return (
            Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


RUN = """
import multiprocessing
from tests.data.numbered import config
from vdm_jax.data import pipeline, shapes
if __name__ == "__main__":
    source = shapes.Shapes(shapes.Geometry(3, 64, 64))
    batches = pipeline.train_batches(config(workers=1, batch_size=64), source)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while True:
        next(batches)
"""


def shared_memory(process: int) -> list[str]:
    """Return the files of shared memory of a process that would outlive it."""
    maps = Path(f"/proc/{process}/maps").read_text().splitlines()
    return [m for m in maps if "/dev/shm/" in m and not m.endswith("(deleted)")]


def test_workers_of_a_killed_run_end_and_leave_no_shared_memory(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "run.py"],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    try:
        assert run.stdout is not None
        children = [int(word) for word in run.stdout.readline().split()]
        assert children
        assert not any(map(shared_memory, [run.pid, *children]))
    finally:
        run.kill()
        run.communicate()
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlives its run"
        time.sleep(0.05)
