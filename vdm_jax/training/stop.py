"""When to stop: signals and a time limit, agreed upon by all processes at one step."""

import contextlib
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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import runtime

CONTINUE, RESTART, INTERRUPT = 0, 1, 2  # what is asked for; of several, the largest
EXIT_STATUS = {RESTART: 42, INTERRUPT: 130}
SIGNAL_REQUESTS = {
    signal.SIGTERM: RESTART,  # a scheduler takes the machine away
    signal.SIGUSR1: RESTART,  # or is about to: Slurm's --signal=USR1@600
    signal.SIGHUP: RESTART,  # its terminal is gone
    signal.SIGINT: INTERRUPT,  # Ctrl-C
}
# Ignored from the start they stay so: nohup and a shell's & ask for that.
LEFT_IGNORED = (signal.SIGHUP, signal.SIGINT)


class PreemptionSignal:
    """Collects requests to stop on this process; says when all of them know.

    A signal reaches the processes of a run at different steps, or only one of them.
    So a request is a number that travels with the steps: each poll sends the largest
    of all processes' around, and the next poll, one step later, reads it. All save the
    same step then, and no step waits for another process.

    Args:
      time_limit: seconds from now after which a restart is asked for.
    """

    def __init__(self, time_limit: float | None = None):
        self.reason = ""  # of the request on this process, for people
        self._request = CONTINUE
        self._signalled = False
        self._heard = False  # whether somebody read what was said so far
        self._deadline = time.monotonic() + (time_limit or math.inf)
        self._sent: jax.Array | None = None

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Signals are requests inside; a second one ends the process at once."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in SIGNAL_REQUESTS
            if number not in LEFT_IGNORED
            or signal.getsignal(number) is not signal.SIG_IGN
        }
        self._heard = not runtime.output_reader_gone()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def poll(self) -> int:
        """Once a step, on all processes: what they agreed on. Does not wait."""
        if self._single:
            return self._own()
        sent, self._sent = self._sent, self._largest(self._own())
        return CONTINUE if sent is None else int(sent)

    def requested(self) -> int:
        """As `poll`, but of this moment, and waiting: for long work between steps."""
        return self._own() if self._single else int(self._largest(self._own()))

    def request_stop(self, request: int, reason: str) -> None:
        """Ask all processes to stop, as a signal does: the largest request counts."""
        self._request, self.reason = max(self._request, request), reason

    def _own(self) -> int:
        if time.monotonic() > self._deadline and not self._request:
            self.request_stop(RESTART, "time limit")
        if self._heard and runtime.output_reader_gone() and not self._request:
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
        write_stderr(f"{name}: saving after this step; once more leaves at once")

    @functools.cached_property
    def _single(self) -> bool:
        return jax.process_count() == 1

    @functools.cached_property
    def _largest(self):
        """The largest of all processes' numbers, computed beside the training step."""
        mesh = jax.make_mesh((jax.device_count(),), ("all",), (AxisType.Auto,))
        split, everywhere = NamedSharding(mesh, P("all")), NamedSharding(mesh, P())
        largest = jax.jit(jnp.max, out_shardings=everywhere)

        def of_all(own: int) -> jax.Array:
            numbers = np.full(jax.local_device_count(), own, np.int32)
            return largest(jax.make_array_from_process_local_data(split, numbers))

        return of_all


def write_stderr(text: str) -> None:
    """On standard error; not by print, which may be what a signal interrupts."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
