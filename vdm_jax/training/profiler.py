"""Traces of training steps, for TensorBoard and XProf."""

import re
from pathlib import Path
from typing import Any

import jax

from vdm_jax.errors import UserError
from vdm_jax.runtime import write_stderr

NUM_STEPS = 3  # that a signal traces
ERRORS = (OSError, RuntimeError, ValueError)  # of a trace: no reason to lose the run


class Profiler:
    """Traces a few steps of `train_loop` on this process.

    The first step of a process is never traced: it contains what happens once, such as
    compiling. Steps before and after a trace are waited for, so that it holds whole
    steps.

    Args:
      start: steps of this process before the trace; 0 traces on request only.
      num_steps: steps to trace.
    """

    def __init__(self, start: int = 0, num_steps: int = NUM_STEPS):
        self._start, self._num_steps = start, num_steps
        self._begun = 0  # steps of this process
        self._left = 0  # to trace; 0: no trace is running
        self._requested = False
        self._folder = Path()

    @classmethod
    def from_flag(cls, text: str | None) -> "Profiler":
        """Return the profiler of --profile=START:STEPS, or one that waits for requests.

        Raises:
          UserError: the flag has another form.
        """
        if text is None:
            return cls()
        if not (found := re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,3})", text)):
            raise UserError(
                f"--profile={text}: START:STEPS, as 10:3 for three steps after the "
                "first ten; START is at least 1, since the first step is not traced"
            )
        return cls(int(found[1]), int(found[2]))

    def request(self, *_: object) -> None:
        """Trace the next steps; this may be the handler of a signal."""
        self._requested = True

    def begin_step(self, workdir: Path, state: Any) -> None:
        """Begin a trace in WORKDIR/profile/processNUMBER if one is due.

        A trace that fails is a line on standard error, here and in `end_step`.

        state: arrays of the step before, which are waited for.
        """
        due = self._requested or (
            self._begun == self._start and jax.process_index() == 0
        )
        if self._begun and due and not self._left:
            self._requested = False
            # Processes of one machine would write the same file of a second.
            self._folder = workdir / "profile" / f"process{jax.process_index()}"
            jax.block_until_ready(state)
            try:
                jax.profiler.start_trace(self._folder)
                self._left = self._num_steps
            except ERRORS as error:
                _write_failure(error)
        self._begun += 1

    def end_step(self, step: int, state: Any, last: bool) -> None:
        """End the trace if it has all of its steps, and print what it holds.

        Args:
          step: its number in the run.
          state: arrays of this step, which are waited for.
          last: whether no step follows.
        """
        if not self._left:
            return
        self._left -= 1
        if self._left and not last:
            return
        self._left = 0
        jax.block_until_ready(state)
        try:
            jax.profiler.stop_trace()
            traces = [*self._folder.glob("plugins/profile/*/*.xplane.pb")]
            if not traces:
                raise FileNotFoundError(f"JAX wrote none in {self._folder}")
            newest = max(traces, key=lambda path: path.stat().st_mtime)
            count = count_device_events(newest)
        except ERRORS as error:
            return _write_failure(error)
        events = (
            f"{count:,} events of devices"
            if count
            else (
                "no event of a device: is CUPTI installed (GPU), and does "
                "no other process trace?"
            )
        )
        print(
            f"traced up to step {step}: {events}; tensorboard --logdir={self._folder}",
            flush=True,
        )


def _write_failure(error: Exception) -> None:
    write_stderr(f"no trace: {' '.join(str(error).split())[:200]}")


def count_device_events(path: Path) -> int:
    """Return the number of events of devices in a trace (*.xplane.pb).

    A CPU has no plane of its own: its operations are on lines of XLA's threads.
    """
    count = 0
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if plane.name.startswith("/device:"):
                count += len(list(line.events))
            elif line.name.startswith("tf_XLA"):
                names = [event.name for event in line.events]
                count += sum(not n.startswith("ThreadpoolListener") for n in names)
    return count
