"""Notice a process that is stuck, and show a supervisor how far this one has come."""

import faulthandler
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src import distributed

from vdm_jax import files, runtime
from vdm_jax.errors import UserError

STALL_TIMEOUT = 600.0  # seconds
HEARTBEAT_INTERVAL = 10.0  # seconds between two writes of the heartbeat file
EXCHANGE_INTERVAL = 10.0  # seconds, or a quarter of the timeout if that is less
VERDICT_WAIT = 1.0  # seconds of one wait for the verdict; the longest wait at the end
COORDINATOR_EXIT_DELAY = 2.0  # seconds; the coordinator's end aborts the others
_numbers = itertools.count()  # of the loops that were watched


class Point(NamedTuple):
    """How far a process has come in `train_loop`.

    count: points that were passed. All processes pass the same ones in the same order.
    step, doing: what the process does since the last one.
    host: its name.
    """

    count: int = 0
    step: int = 0
    doing: str = "starting"
    host: str = ""


class Watchdog:
    """Records the points that this process passes, and compares them with the others'.

    A process is stuck if it has passed no point since another one went ahead of it
    `timeout` seconds ago. While all processes are at the same point none is stuck,
    however long it lasts: a step, an evaluation or a save that is slow on all of them
    does not end a run.

    Args:
      timeout: in seconds; 0 compares nothing.
      heartbeat: a file to rewrite when a point is passed, at most every
        HEARTBEAT_INTERVAL seconds: {"time", "process", "step", "doing"}.

    Raises:
      UserError: the heartbeat cannot be written.
    """

    def __init__(self, timeout: float = STALL_TIMEOUT, heartbeat: Path | None = None):
        self._timeout, self._heartbeat = timeout, heartbeat
        self._point = Point(host=socket.gethostname())
        self._written = 0.0
        self._write_heartbeat()

    def reach(self, step: int | None = None, doing: str | None = None) -> None:
        """Record that this process passes a point, which all processes pass.

        Args:
          step, doing: what follows; by default what came before continues.
        """
        last = self._point
        step = last.step if step is None else step
        self._point = Point(last.count + 1, step, doing or last.doing, last.host)
        if time.monotonic() - self._written > HEARTBEAT_INTERVAL:
            try:
                self._write_heartbeat()
            except UserError as error:  # no reason to lose the run
                runtime.write_stderr(str(error))

    def _write_heartbeat(self) -> None:
        if self._heartbeat is None:
            return
        self._written = time.monotonic()
        row = {
            "time": round(time.time(), 3), "process": jax.process_index(),
            "step": self._point.step, "doing": self._point.doing,
        }  # fmt: skip
        files.write_json(self._heartbeat, row)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End all processes with status 42 if one is stuck inside of the block.

        One that has not read the decision before process 0 ends has status 134.
        Process 0 decides; the exchange goes through JAX's coordination service and no
        device. All processes enter and leave the block together.
        """
        if jax.process_count() == 1 or not self._timeout:
            yield
            return
        ended = threading.Event()
        exchange = _Exchange(f"vdm_jax/watchdog/{next(_numbers)}", self._timeout)
        arguments = (exchange, ended)
        thread = threading.Thread(target=self._watch, args=arguments, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, exchange: "_Exchange", ended: threading.Event) -> None:
        interval = min(EXCHANGE_INTERVAL, self._timeout / 4)
        due = 0.0
        while not ended.is_set():
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + interval
                    exchange.publish(self._point)
                if stuck := exchange.verdict(min(interval, VERDICT_WAIT)):
                    break
            except jax.errors.JaxRuntimeError as error:
                # If another process is gone, JAX ends this one.
                reason = " ".join(str(error).split())[:200]
                runtime.write_stderr(f"watchdog, again in {interval:g} s: {reason}")
                ended.wait(interval)
        else:
            return
        process, line = stuck
        runtime.write_stderr(line)
        if process == jax.process_index():
            faulthandler.dump_traceback()  # where it is stuck
        if jax.process_index() == 0:
            time.sleep(COORDINATOR_EXIT_DELAY)
        os._exit(runtime.RESTART)


class _Exchange:
    """The points of all processes in the key-value store of JAX's coordinator.

    name: of the keys of this exchange.
    """

    def __init__(self, name: str, timeout: float):
        self._name, self._late = name, LateProcess(timeout)
        self._client: Any = distributed.global_state.client

    def publish(self, point: Point) -> None:
        """Publish the point of this process; process 0 decides whether one is stuck."""
        rank = jax.process_index()
        key = f"{self._name}/points/{rank}"
        self._client.key_value_set(key, json.dumps(point), allow_overwrite=True)
        if rank:
            return
        rows = self._client.key_value_dir_get(f"{self._name}/points/")
        points = {
            int(key.rpartition("/")[2]): Point(*json.loads(text)) for key, text in rows
        }
        if stuck := self._late.find(points, time.monotonic()):
            key = f"{self._name}/stuck"
            self._client.key_value_set(key, json.dumps(stuck), allow_overwrite=True)

    def verdict(self, seconds: float) -> tuple[int, str] | None:
        """Return what process 0 decides within so many seconds: process and line."""
        milliseconds = round(seconds * 1000)
        try:
            text = self._client.blocking_key_value_get(
                f"{self._name}/stuck", milliseconds
            )
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise
        return tuple(json.loads(text))


class LateProcess:
    """Finds the process that the others wait for.

    Seconds are those of one clock, that of process 0. So a process counts too that is
    stopped, or whose clock is wrong.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._behind: dict[int, tuple[int, float]] = {}  # count, since when

    def find(self, points: Mapping[int, Point], now: float) -> tuple[int, str] | None:
        """Return the process that is stuck and a line that names it, or None.

        Args:
          points: of each process, by its number.
          now: in seconds.
        """
        furthest = max(point.count for point in points.values())
        for process, (count, *_) in points.items():
            if count == furthest:
                self._behind.pop(process, None)
            elif self._behind.get(process, (-1, 0.0))[0] != count:
                self._behind[process] = count, now
        process = min(points, key=lambda each: points[each].count)
        point, (_, since) = points[process], self._behind.get(process, (0, now))
        if now - since < self._timeout or point.count == furthest:
            return None
        return process, (
            f"process {process} on {point.host} is stuck, last seen at step "
            f"{point.step}, {point.doing}: others have waited for {now - since:.0f} s. "
            "All exit; the same command resumes from the last checkpoint"
        )
