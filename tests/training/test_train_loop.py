"""Laws of the loop: resuming changes nothing, stopping loses nothing."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.training.run import open_run
from vdm_jax.training.step import diagnose, init_state, make_step
from vdm_jax.training.stop import RESTART, PreemptionSignal
from vdm_jax.training.train_loop import Update, train_loop

TX = optax.scale_by_adam()
KEY = jax.random.key(0)


def config(**changes) -> ConfigDict:
    train = {
        "steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2, "log_every": 1,
        "max_nonfinite_updates": 2,
    }  # fmt: skip
    return ConfigDict({"init_from": "", "train": {**train, **changes}})


def loss_fn(params, aux_params, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    error = params["w"] * (batch["x"] + 0.1 * noise) - 1
    return jnp.mean(error**2) + aux_params.get("offset", 0.0), {}


STEP = jax.jit(
    make_step(loss_fn, TX, lambda step, aux_params: jnp.float32(0.01), ema_decay=0.9),
    donate_argnums=0,
)


class Data:
    """Batches that are all different; `hook` sees the number of each."""

    def __init__(self, hook=lambda number: None):
        self.number, self.hook = 0, hook

    def __next__(self):
        self.number += 1
        value = self.hook(self.number)
        x = np.random.default_rng(self.number).normal(size=(4, 3)).astype(np.float32)
        return {"x": x if value is None else np.full_like(x, value)}

    def get_state(self):
        return self.number

    def set_state(self, number):
        self.number = number


def new_state():
    return init_state({"w": jnp.linspace(0.5, 2, 3)[None]}, TX, ema=True)


def train(
    workdir,
    until=4,
    data=None,
    drop=None,
    stop=None,
    seen=lambda run: 0,
    step=None,
    find_bad=lambda *_: None,
    **kwargs,
):
    """Like train.py: resume what is there and train to `until`."""
    data = data or Data()
    with open_run(workdir, config(steps=until), {}, stop) as run:
        seen(run)
        state = run.resume(jax.eval_shape(new_state), new_state, data)
        if drop is not None and run.restored_step:
            state, data.number = drop(state, data.number)
        update = Update(step or STEP, jax.device_put, find_bad)
        return train_loop(update, state, {}, data, run=run, key=KEY, **kwargs)


def steps(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_four_steps_are_two_and_a_restart_and_two(tmp_path, uninterrupted):
    train(tmp_path, until=2)
    assert same(train(tmp_path), uninterrupted)
    assert steps(tmp_path) == [2, 4]
    assert same(train(tmp_path), uninterrupted)  # finished: nothing more to do


@pytest.mark.parametrize(
    "drop",
    [
        lambda state, at: (state.replace(opt_state=TX.init(state.params)), at),
        lambda state, at: (state.replace(ema=jax.tree.map(jnp.copy, state.params)), at),
        lambda state, at: (state, 0),
    ],
    ids=["optimiser", "ema", "data position"],
)
def test_the_law_notices_what_a_restart_loses(tmp_path, uninterrupted, drop):
    train(tmp_path, until=2)
    assert not same(train(tmp_path, drop=drop), uninterrupted)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 42),
        (signal.SIGUSR1, 42),
        (signal.SIGHUP, 42),
        (signal.SIGINT, 130),
    ],
)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_signal_saves_the_step_and_leaves(
    tmp_path, uninterrupted, number, status, at
):
    before = signal.getsignal(number)
    data = Data(lambda n: os.kill(os.getpid(), number) if n == at else None)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, data=data)
    assert caught.value.code == status
    assert steps(tmp_path)[-1] == at
    assert signal.getsignal(number) is before
    assert same(train(tmp_path), uninterrupted)


@contextlib.contextmanager
def files_no_larger_than(size):
    """EFBIG where a full disk answers ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "at", "saved"),
    [("metrics.jsonl", 0, 2), ("samples", 1, 2), ("samples", 4, 4)],
)
def test_logs_on_a_full_disk_end_the_run_once_its_state_is_saved(
    tmp_path, uninterrupted, name, at, saved
):

    def observe(state):
        with run_of[0].logger.recording_failure():
            files.write_bytes(tmp_path / "samples", bytes(1 << 16))

    run_of = []
    if name == "metrics.jsonl":
        (tmp_path / name).write_bytes(b'{"step": 0}\n' * 2000)  # 24 kB
    observers = ((at, "sampling", observe),) if at else ()
    with (
        pytest.raises(
            UserError, match="could not be written .file too large"
        ) as caught,
        files_no_larger_than(20_000),
    ):
        train(tmp_path, observers=observers, seen=run_of.append)
    assert caught.value.status == 2 and steps(tmp_path)[-1] == saved
    assert same(train(tmp_path), uninterrupted)


def test_a_signal_in_an_observer_counts(tmp_path):
    def observe(state):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(tmp_path, observers=((1, "sampling", observe),))
    assert steps(tmp_path) == [2]  # the step after the one that was looked at


@pytest.mark.parametrize("when", ["step", "observer"])
def test_a_signal_at_the_end_is_left_to_the_caller(tmp_path, when, capsys):
    def ask(state=None):
        os.kill(os.getpid(), signal.SIGTERM)

    data = Data(lambda n: ask() if n == 4 and when == "step" else None)
    observers = ((0, "sampling", ask),) if when == "observer" else ()
    stop = PreemptionSignal()
    assert train(tmp_path, data=data, observers=observers, stop=stop).step == 4
    assert steps(tmp_path)[-1] == 4 and stop.requested() == RESTART
    stop.exit_if_requested("nothing", known=RESTART)
    with pytest.raises(SystemExit) as caught:
        stop.exit_if_requested("all")
    assert caught.value.code == 42
    assert "all after SIGTERM; the same command" in capsys.readouterr().out


def test_a_time_limit_saves_and_asks_for_a_restart(tmp_path, uninterrupted):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, stop=PreemptionSignal(1e-9))
    assert caught.value.code == 42 and steps(tmp_path) == [1]
    assert same(train(tmp_path), uninterrupted)


def test_the_second_signal_leaves_at_once():
    code = """
        import os, signal, time
        from vdm_jax.training.stop import PreemptionSignal
        with PreemptionSignal().handling_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 143
    assert "SIGTERM: saving after this step" in done.stderr


def test_bad_updates_are_left_out_and_counted(tmp_path, capsys):
    data = Data(lambda n: np.nan if n == 2 else None)
    state = train(tmp_path, data=data)
    assert state.skipped == 1 and state.step == 4
    assert np.isfinite(state.params["w"]).all()
    out = capsys.readouterr().out
    assert "step 2: not finite, the update is left out" in out
    assert "step 3: not finite" not in out
    assert steps(tmp_path) == [2, 4]


def test_too_many_bad_updates_stop_the_run_and_name_the_first(tmp_path):
    def find_bad(params, aux_params, batch, key):
        assert key == jax.random.fold_in(KEY, 3)  # as the step of state.step = 3 had it
        return diagnose(loss_fn, params, aux_params, batch, key)

    def bad(number):
        while number == 4 and not steps(tmp_path):  # saved in the background
            time.sleep(0.01)
        return np.nan if number >= 3 else None

    with pytest.raises(UserError) as caught:
        train(tmp_path, until=20, data=Data(bad), find_bad=find_bad)
    message = str(caught.value)
    assert caught.value.status == 3 and "\n" not in message
    assert "2 consecutive updates up to step 4" in message
    assert "first bad: batch x" in message and "learning_rate" in message
    assert "last saved: step 2" in message
    assert steps(tmp_path) == [2]


def test_a_bad_state_is_never_saved(tmp_path):
    @jax.jit
    def blow_up(state, aux_params, batch, key):
        state, metrics = STEP(state, aux_params, batch, key)
        bad = state.step > 2  # the gradient was fine, the update was not
        params = jax.tree.map(lambda p: jnp.where(bad, jnp.inf, p), state.params)
        return state.replace(params=params), metrics

    with pytest.raises(
        UserError, match="state of step 4; first bad: params/w"
    ) as caught:
        train(tmp_path, step=blow_up)
    assert caught.value.status == 3
    assert steps(tmp_path) == [2]


def test_a_bad_start_is_refused(tmp_path, monkeypatch):
    bad = new_state().replace(params={"w": jnp.full((1, 3), jnp.nan)})
    monkeypatch.setitem(globals(), "new_state", lambda: bad)
    with pytest.raises(
        UserError, match="step 0; first bad: params/w; last saved: none"
    ):
        train(tmp_path)


class Scalar:
    """A metric that notes when it is read."""

    def __init__(self, events, number, value):
        self.events, self.number, self.value = events, number, value

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.number}")
        return np.asarray(self.value)


def test_metrics_are_read_while_the_next_step_runs(tmp_path):
    events = []

    def step(state, aux_params, batch, key):
        number = int(jax.device_get(state.step)) + 1
        events.append(f"step {number}")
        metrics = {
            "loss": Scalar(events, number, 0.0), "learning_rate": 0.0, "finite": True
        }  # fmt: skip
        return state.replace(step=jax.device_put(np.int32(number))), metrics

    train(tmp_path, until=3, step=step)
    # Step 2 is saved, and so read before; else reading is one behind.
    assert events == ["step 1", "step 2", "read 1", "read 2", "step 3", "read 3"]


def test_observers_run_every_so_often_and_at_the_end(tmp_path):
    seen = []

    def note(state):
        seen.append(int(state.step))
        return {"val/loss": 0.5}

    train(tmp_path, until=5, observers=((2, "validating", note), (0, "never", note)))
    assert seen == [2, 4, 5, 5]
    rows = (tmp_path / "metrics.jsonl").read_text()
    assert rows.count("val/loss") == 4


def test_scalars_have_the_promised_names(tmp_path):
    train(tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text()
    for name in ("loss", "grad_norm", "learning_rate", "clips_per_second", "step_time"):
        assert rows.count(f'"train/{name}"') == 4


def test_an_implicit_transfer_in_a_step_is_an_error(tmp_path):
    """One of a number that the step would wait for, unseen."""

    def step(state, aux_params, batch, key):
        return STEP(state, {"offset": np.float32(0.1)}, batch, key)

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        train(tmp_path, step=step)


def test_observers_may_transfer(tmp_path):
    train(tmp_path, observers=((1, "noting", lambda state: {"x": state.step + 1}),))
