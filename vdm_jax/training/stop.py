"""When to stop: signals and a time limit, on which all processes agree at one step."""

import functools
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import runtime
from vdm_jax.runtime import write_stderr
from vdm_jax.training.profiler import Profiler
from vdm_jax.training.watchdog import Watchdog

CONTINUE, RESTART, INTERRUPT = 0, 1, 2  # requests; the largest of several counts
EXIT_STATUS = {RESTART: runtime.RESTART, INTERRUPT: runtime.INTERRUPTED}
SIGNAL_REQUESTS = {
    signal.SIGTERM: RESTART,  # a scheduler takes the machine back
    signal.SIGUSR1: RESTART,  # or will soon: Slurm's --signal=USR1@600
    signal.SIGHUP: RESTART,  # the terminal is closed
    signal.SIGINT: INTERRUPT,  # Ctrl-C
}
# They stay ignored if they are at the start, as under nohup or a shell's &.
LEFT_IGNORED = (signal.SIGHUP, signal.SIGINT)


class PreemptionSignal:
    """Collects requests to stop on this process, and agrees on them with all others.

    A signal reaches the processes of a run at different steps, or only one of them. So
    every poll starts the reduction of this process's request to the largest of all, and
    returns that of the poll before: all processes save the same step, and no step waits
    for another process. A command makes one, for all runs that follow one another.

    Args:
      time_limit: seconds from now after which a restart is requested.
      watchdog: that of the command; every call of `requested` is a point of it.
      profiler: that of the command, for `train_loop`.
    """

    def __init__(
        self,
        time_limit: float | None = None,
        watchdog: Watchdog | None = None,
        profiler: Profiler | None = None,
    ):
        self.watchdog = watchdog or Watchdog()
        self.profiler = profiler or Profiler()
        self.reason = ""  # for the request on this process, as text
        self._request = CONTINUE
        self._signalled = False
        self._has_reader = False  # whether the output was read at the start
        self._deadline = time.monotonic() + (time_limit or math.inf)
        self._sent: jax.Array | None = None

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turn signals into requests; a second one ends the process immediately."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in SIGNAL_REQUESTS
            if number not in LEFT_IGNORED
            or signal.getsignal(number) is not signal.SIG_IGN
        }
        self._has_reader = not runtime.output_reader_gone()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def poll(self) -> int:
        """Return what all processes agreed on one step ago, without waiting.

        All processes call this once per step.
        """
        if jax.process_count() == 1:
            return self._own()
        sent, self._sent = self._sent, self._largest(self._own())
        return CONTINUE if sent is None else int(jax.device_get(sent))

    def requested(self) -> int:
        """Return the present request of all processes, which this waits for.

        All processes call this together, during long work between steps.
        """
        self.watchdog.reach()
        own = self._own()
        if jax.process_count() == 1:
            return own
        return int(jax.device_get(self._largest(own)))

    def exit_if_requested(self, saved: str, known: int = CONTINUE) -> None:
        """Exit where everything is saved, if more than `known` is requested.

        All processes call this together. saved: what is, for the message.
        """
        if (request := self.requested()) <= known:
            return
        why = f" after {self.reason}" if self.reason else ""
        if jax.process_index() == 0:
            print(f"{saved}{why}; the same command resumes from there", flush=True)
        raise SystemExit(EXIT_STATUS[request])

    def request_stop(self, request: int, reason: str) -> None:
        """Request all processes to stop, as a signal does."""
        self._request = max(self._request, request)
        self.reason = reason

    def _own(self) -> int:
        if time.monotonic() > self._deadline and not self._request:
            self.request_stop(RESTART, "time limit")
        if self._has_reader and runtime.output_reader_gone() and not self._request:
            self.request_stop(RESTART, "the reader of its output left")
            write_stderr(f"{self.reason}: saving after this step")
        return self._request

    def _on_signal(self, number: int, frame) -> None:
        del frame
        name = signal.Signals(number).name
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self.request_stop(SIGNAL_REQUESTS[signal.Signals(number)], name)
        write_stderr(f"{name}: saving after this step; a second signal exits at once")

    @functools.cached_property
    def _largest(self):
        """Reduce the numbers of all processes to the largest, on the devices."""
        # Not by jax.make_mesh, which refuses the slices of a pod.
        mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
        split, everywhere = NamedSharding(mesh, P("all")), NamedSharding(mesh, P())
        largest = jax.jit(jnp.max, out_shardings=everywhere)

        def of_all(own: int) -> jax.Array:
            numbers = np.full(jax.local_device_count(), own, np.int32)
            with jax.transfer_guard("allow"):
                numbers = jax.make_array_from_process_local_data(split, numbers)
            return largest(numbers)

        return of_all
