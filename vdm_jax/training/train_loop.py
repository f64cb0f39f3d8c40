"""The training loop. All that keeps a run from being lost is here, once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import agreement, runtime
from vdm_jax.checkpoint import on_first_process
from vdm_jax.data import mixed_sizes
from vdm_jax.data.pipeline import Batches
from vdm_jax.errors import UserError
from vdm_jax.training.run import OpenRun
from vdm_jax.training.stop import CONTINUE, RESTART
from vdm_jax.trees import first_non_finite

# (interval in steps, name, function: state -> scalars to log or None). An interval of
# 0 means: after the last step only.
Observer = tuple[int, str, Callable[[Any], Mapping[str, Any] | None]]


class Update(NamedTuple):
    """One update of a state, compiled.

    step: (state, aux_params, batch, key) -> (state, scalars), with "loss" and "finite"
      among the scalars. It derives its keys from `key` and `state.step`, and leaves
      out an update that is not finite.
    put_batch: batch of numpy arrays -> arrays on the devices.
    diagnose: (params, aux_params, batch, folded key) -> what is not finite.
    """

    step: Callable[[Any, Any, Any, jax.Array], tuple[Any, dict]]
    put_batch: Callable[[Any], Any]
    diagnose: Callable[[Any, Any, Any, jax.Array], str | None] = lambda *_: None


def train_loop(
    update: Update,
    state,
    aux_params,
    data: Batches,
    *,
    run: OpenRun,
    key: jax.Array,
    observers: Sequence[Observer] = (),
) -> Any:
    """Train from `state.step` to the last step of the run's config, which is saved.

    Every process of the run calls this together. The host waits for the devices only to
    save or observe: the metrics of a step are read while the next one runs. An implicit
    transfer in a step, which would make it wait, is an error; saving and observing may
    transfer as they like.

    Args:
      aux_params: what the loss reads apart from params, such as a teacher's.
      data: every batch that is taken is used, so its position is that of the state.
      observers: run by all processes, after a save, and at the last step. One that
        takes long should return when `run.stop.requested()`.

    Returns the state after the last step.

    Raises:
      UserError (2): logs or previews could not be written; the state is saved.
      UserError (3): the state or too many consecutive updates were not finite.
      SystemExit: stopped after saving; 42 requests a restart, 130 follows Ctrl-C. A
        request to stop at the last step is left to the caller.
    """
    done, num_steps = int(state.step), run.config.train.steps
    _check_state(run, state, done)  # compiled now: a signal leaves little time for it
    run.checkpoints.wait()  # for processes that were slower to compile
    agreement.stop_comparing()
    _print_cache_hits()
    metrics = _PendingMetrics(run, update, aux_params, key)
    request, reach, profiler = CONTINUE, run.stop.watchdog.reach, run.stop.profiler

    with (
        run.stop.handling_signals(),
        run.logger.progress(done, num_steps),
        run.stop.watchdog.watching(),
    ):
        while done < num_steps and not request:
            with _no_implicit_transfer():
                reach(done + 1, "reading a batch")
                batch = next(data)
                reach(done + 1, "placing a batch on the devices")
                with jax.transfer_guard("allow"):
                    batch = update.put_batch(batch)
                done += 1
                reach(done, "training")
                profiler.begin_step(run.workdir, state)
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, scalars = update.step(state, aux_params, batch, key)
                metrics.replace(done, scalars, batch, state.params)
                request = _poll(run)

            last = done == num_steps
            with metrics.paused():
                profiler.end_step(done, state, last or bool(request))
            due = [o for o in observers if last or (o[0] and done % o[0] == 0)]
            save = last or request or done % run.config.train.checkpoint_every == 0
            if save or due:
                metrics.read(state.params)  # before the step is saved
                with metrics.paused():
                    if save:
                        reach(done, "saving")
                        _check_state(run, state, done)
                        run.save(done, state, data)
                    _observe(run, state, done, () if request and not last else due)
        reach(done, "saving")
        run.checkpoints.wait()
    on_first_process(run.logger.check)
    if done < num_steps:
        run.stop.exit_if_requested(f"saved step {done}")
    return state


@contextlib.contextmanager
def _no_implicit_transfer() -> Iterator[None]:
    """Make transfers between host and devices errors, unless they are explicit."""
    with (
        jax.transfer_guard_host_to_device("disallow"),
        jax.transfer_guard_device_to_host("disallow"),
    ):
        yield


def _print_cache_hits() -> None:
    """Print whether this process has compiled its programs or read them.

    Only process 0 writes them. Another one that cannot read its folder compiles at
    every start.
    """
    counts, folder = runtime.programs, runtime.jax_setting("jax_compilation_cache_dir")
    if counts.hits or counts.misses:
        print(
            f"process {jax.process_index()}: compilation cache {folder or 'off'}: "
            f"{counts.hits} hits, {counts.misses} misses",
            flush=True,
        )


def _poll(run: OpenRun) -> int:
    """Return the request of all processes; raise an error of the background save."""
    if run.logger.failure is not None:
        run.stop.request_stop(RESTART, "a failure to write")
    request = run.stop.poll()
    run.checkpoints.check()
    return request


def _observe(run: OpenRun, state, done: int, observers: Sequence[Observer]) -> None:
    for _, name, observe in observers:
        run.stop.watchdog.reach(done, name)
        run.logger.phase(name)
        run.logger.scalars(done, observe(state) or {})
    run.logger.phase("")


class _PendingMetrics:
    """Logs means of the metrics of steps, without the time of compiling and pauses.

    Those of the newest step may still be computed by the devices: they are read later.
    """

    def __init__(self, run: OpenRun, update: Update, aux_params, key):
        self._run, self._update = run, update
        self._aux_params, self._key = aux_params, key
        self._pending: tuple[int, Any, Any] | None = None
        self._rows: list[Mapping[str, np.ndarray]] = []  # since the last line
        self._since = 0.0
        self._num_bad = 0  # consecutive updates that were not finite

    def replace(self, step: int, metrics, batch, params) -> None:
        """Read the metrics of the step before, and keep those of this one."""
        self._since = self._since or time.perf_counter()  # the first call may compile
        self.read(params)
        self._pending = step, metrics, batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is spent inside of the block."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def read(self, params) -> None:
        """Wait for the metrics, if any, and log them.

        params: to diagnose with, after too many consecutive bad updates.
        """
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        row = jax.device_get(metrics)
        settings = self._run.config.train
        self._rows.append(row)
        self._run.logger.advance(step)
        self._num_bad = 0 if row["finite"] else self._num_bad + 1
        if self._num_bad:
            self._run.logger.info(f"step {step}: not finite, the update is left out")
        if step % settings.log_every == 0 or step == settings.steps:
            clips = len(jax.tree.leaves(batch)[0])
            if "mixed_sizes" in self._run.config:
                clips = mixed_sizes.clips_per_batch(self._run.config.mixed_sizes)
            self._log(step, clips)
        if self._num_bad >= settings.max_nonfinite_updates:
            with jax.transfer_guard("allow"):
                key = jax.random.fold_in(self._key, step - 1)
                read = {**(self._aux_params or {}), "step": step - 1}
                first = self._update.diagnose(params, read, batch, key)
            what = f"{self._num_bad} consecutive updates up to step {step}"
            _give_up(self._run, what, first)

    def _log(self, step: int, clips: float) -> None:
        now = time.perf_counter()
        step_time = (now - self._since) / len(self._rows)
        good = [row for row in self._rows if row["finite"]]
        last = self._rows[-1]
        names = [name for name in last if name != "finite"]
        means = {n: np.mean([r[n] for r in good]) if good else np.nan for n in names}
        scalars = means | {
            "learning_rate": last["learning_rate"],
            "not_finite": len(self._rows) - len(good),
            "step_time": step_time,
            "clips_per_second": clips / step_time,
        }
        logger = self._run.logger
        num_steps = self._run.config.train.steps
        logger.scalars(step, {f"train/{n}": float(v) for n, v in scalars.items()})
        loss = float(means["loss"])
        left = (num_steps - step) * step_time
        logger.status(step, num_steps, loss, clips / step_time, left)
        self._rows = []
        self._since = now


def _check_state(run: OpenRun, state, done: int) -> None:
    """Raise UserError for a state that is not finite, before it replaces a good one."""
    if (name := first_non_finite(state)) is not None:
        _give_up(run, f"the state of step {done}", name)


def _give_up(run: OpenRun, what: str, first: str | None) -> None:
    saved = run.checkpoints.steps()
    raise UserError(
        f"not finite: {what}; first bad: {first or 'not found again'}; last saved: "
        f"{f'step {saved[-1]}' if saved else 'none'}. Try a lower config.train."
        "learning_rate, a longer warmup, or config.network.dtype=float32",
        status=3,
    )
