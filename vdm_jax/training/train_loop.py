"""The training loop. All that keeps a run from being lost is here, once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import agreement
from vdm_jax.checkpoint import on_first_process
from vdm_jax.errors import UserError
from vdm_jax.training.logging import Logger
from vdm_jax.training.run import BatchIterator, Run
from vdm_jax.training.stop import CONTINUE, EXIT_STATUS, RESTART

# Every how many steps, what it is called, and what it does: state -> scalars to log.
Observer = tuple[int, str, Callable[[Any], Mapping[str, float] | None]]


def train_loop(
    step: Callable[[Any, Any, Any, jax.Array], tuple[Any, dict]],
    state,
    aux_params,
    data: BatchIterator,
    *,
    num_steps: int,
    run: Run,
    config_train,
    key: jax.Array,
    put: Callable[[Any], Any],
    observers: Sequence[Observer] = (),
    diagnose: Callable[[Any, Any, Any, jax.Array], str | None] | None = None,
    more: bool = False,
):
    """Train from `state.step` to `until` finished steps; returns the state, saved.

    Every process of the run calls this together. The devices are never waited for but
    to save or observe: a step's metrics are read while the next one runs.

    Args:
      step: jitted; (state, frozen, batch, key) -> (state, scalars), with "loss" and
        "finite" among the scalars. It derives its keys from `key` and `state.step`,
        and leaves out an update that is not finite.
      data: each batch is taken once and used, so its position is the state's.
      put: batch of numpy -> arrays on the devices.
      observers: run together by all processes, after a save, and at the last step. One
        that takes long should return when `run.stop.requested()`.
      diagnose: (params, frozen, batch, folded key) -> what is not finite.
      more: something follows: a request to stop leaves after the last step as well.

    Raises:
      UserError (2): logs or looks could not be written; the state is saved.
      UserError (3): `max_nonfinite` updates in a row were not finite, or the state.
      SystemExit: stopped after saving; 42 asks for a restart, 130 after Ctrl-C.
    """
    done = int(state.step)
    if is_finished(run, done, num_steps):
        return state
    _check_state(run, state, done)  # compiled before a signal leaves little time
    run.checkpoints.wait()  # for processes that were slower to compile
    agreement.stop_comparing()
    meter = StepTimer(run.logger, num_steps, config_train.log_every)
    pending_metrics = None  # the step whose metrics are still on the devices
    request = CONTINUE

    def read(number: int, metrics, batch) -> None:
        clips = len(jax.tree.leaves(batch)[0])
        in_a_row = meter.add(number, jax.device_get(metrics), clips)
        if in_a_row >= config_train.max_nonfinite:
            first = None
            if diagnose is not None:
                folded = jax.random.fold_in(key, number - 1)
                first = diagnose(state.params, aux_params, batch, folded)
            _give_up(run, f"{in_a_row} updates in a row up to step {number}", first)

    with run.stop.handling_signals(), run.logger.progress(done, num_steps):
        while done < num_steps and not request:
            batch = put(next(data))
            done += 1
            with meter.first_call(done):
                state, metrics = step(state, aux_params, batch, key)
            if pending_metrics is not None:
                read(*pending_metrics)
            pending_metrics = (done, metrics, batch)
            if run.logger.failure is not None:
                run.stop.request_stop(RESTART, "a failure to write")
            request = run.stop.poll()
            run.checkpoints.check()

            last = done == num_steps
            due = [o for o in observers if last or (o[0] and done % o[0] == 0)]
            save = last or request or done % config_train.checkpoint_every == 0
            if not (save or due):
                continue
            read(*pending_metrics)  # before a step is kept, all is known about it
            pending_metrics = None
            with meter.paused():
                if save:
                    _check_state(run, state, done)
                    run.save(done, state, data)
                for _, name, observe in () if request and not last else due:
                    run.logger.phase(name)
                    run.logger.scalars(done, observe(state) or {})
                    run.logger.phase("")
        run.checkpoints.wait()

    if more:  # while the last step was looked at, too
        request = request or run.stop.requested()
    if request and (done < num_steps or more):
        why = f" after {run.stop.reason}" if run.stop.reason else ""
        run.logger.info(f"saved step {done}{why}; the same command goes on from there")
        on_first_process(run.logger.check)
        raise SystemExit(EXIT_STATUS[request])
    on_first_process(run.logger.check)
    return state


def is_finished(run: Run, done: int, until: int) -> bool:
    """Whether the last step is made; says so. Asked before anything is compiled."""
    if done >= until:
        run.logger.info(f"nothing to train: step {done} of {until} is reached")
    return done >= until


class StepTimer:
    """Means over the steps since the last line; compiling and pauses are left out."""

    def __init__(self, logger: Logger, until: int, every: int):
        self._logger, self._until, self._every = logger, until, every
        self._rows: list[Mapping[str, np.ndarray]] = []
        self._since = 0.0
        self._in_a_row = 0

    @contextlib.contextmanager
    def first_call(self, step: int) -> Iterator[None]:
        """Around the call of the step, which the first time may have to compile."""
        started = time.perf_counter()
        yield
        if not self._since:
            self._since = time.perf_counter()
            seconds = self._since - started
            self._logger.scalars(step, {"train/first_call_seconds": seconds})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is not training's."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def add(self, step: int, values: Mapping[str, np.ndarray], clips: int) -> int:
        """The metrics of a step just finished; how many in a row were not finite."""
        self._rows.append(values)
        self._logger.advance(step)
        self._in_a_row = 0 if values["finite"] else self._in_a_row + 1
        if self._in_a_row:
            self._logger.info(f"step {step}: not finite, the update is left out")
        if step % self._every == 0 or step == self._until:
            self._log(step, clips)
        return self._in_a_row

    def _log(self, step: int, clips: int) -> None:
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
        self._logger.scalars(step, {f"train/{n}": float(v) for n, v in scalars.items()})
        left = (self._until - step) * step_time
        self._logger.status(
            step, self._until, float(means["loss"]), clips / step_time, left
        )
        self._rows, self._since = [], now


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _check_state(run: Run, state, done: int) -> None:
    """A state that is not finite is not trained, and never saved over a good one."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    finite = jax.device_get(_finite([leaf for _, leaf in named]))
    for (name, _), good in zip(named, finite, strict=True):
        if not good:
            _give_up(run, f"the state of step {done}", name)


def _give_up(run: Run, what: str, first: str | None) -> None:
    saved = run.checkpoints.steps()
    raise UserError(
        f"not finite: {what}; first bad: {first or 'not found again'}; last saved: "
        f"{f'step {saved[-1]}' if saved else 'none'}. Try a lower config.train."
        "learning_rate, a longer warmup, or config.network.dtype=float32",
        status=3,
    )
