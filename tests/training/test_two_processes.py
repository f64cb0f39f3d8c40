"""Two processes of four simulated devices each, on loopback, as one run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests import run_command
from vdm_jax.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
LIMIT = 550  # seconds after which processes that wait for each other are ended

# The loop alone: a model of three numbers, whose batches are rows of one stream.
TOY = textwrap.dedent("""
    import os, signal, sys, time
    import jax, jax.numpy as jnp, numpy as np, optax
    from ml_collections import ConfigDict
    from vdm_jax.training import launch
    workdir, until, pause, address, count, rank = sys.argv[1:7]
    fault, timeout = (sys.argv[7:] or ("none", "600"))
    if address:
        launch.start(address, int(count), int(rank))
    from vdm_jax import sharding
    from vdm_jax.training.train_loop import Update, train_loop
    from vdm_jax.training.run import open_run
    from vdm_jax.training.step import init_state, make_step
    from vdm_jax.training.stop import PreemptionSignal
    from vdm_jax.training.watchdog import Watchdog

    class Data:
        number = 0
        def __next__(self):
            time.sleep(float(pause))
            self.number += 1
            late = rank == "1" and self.number == 4
            if fault == "loading" and late:
                time.sleep(600)
            if fault == "stopped" and late:
                os.kill(os.getpid(), signal.SIGSTOP)
            if fault == "slow" and self.number > 2:
                time.sleep(2 * float(timeout))
            x = np.random.default_rng(self.number).normal(size=(16, 3))
            n, i = jax.process_count(), jax.process_index()
            return {"x": np.split(x.astype(np.float32), n)[i]}
        def get_state(self):
            return self.number
        def set_state(self, number):
            self.number = number

    def loss_fn(params, aux_params, batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        return jnp.mean((params["kernel"] * (batch["x"] + noise) - 1) ** 2), {}

    train = dict(steps=int(until), checkpoint_every=10**6, keep_checkpoints=2,
                 log_every=1, max_nonfinite_updates=2)
    config = ConfigDict({"init_from": "", "train": train})
    tx = optax.scale_by_adam()
    new = lambda: init_state({"kernel": jnp.ones((1, 3))}, tx, ema=True)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    placed = sharding.state_shardings(mesh, jax.eval_shape(new))
    step = jax.jit(make_step(loss_fn, tx, lambda step, aux: jnp.float32(0.01), 0.9),
                   donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    data = Data()
    stop = PreemptionSignal(watchdog=Watchdog(float(timeout)))
    with open_run(workdir, config, {}, stop) as run, jax.set_mesh(mesh):
        state = run.resume(
            sharding.with_shardings(jax.eval_shape(new), placed),
            jax.jit(new, out_shardings=placed), data)
        split = sharding.batch_sharding(mesh, (16, 3))
        def put(batch):
            if fault == "placing" and rank == "1" and data.number == 4:
                time.sleep(600)
            x = jax.make_array_from_process_local_data(split, batch["x"])
            return {"x": x}
        update = Update(step, put)
        ids = np.split(np.arange(16.0, dtype=np.float32), jax.process_count())
        ids = jax.make_array_from_process_local_data(split, ids[jax.process_index()])
        def observe(state):
            while not run.stop.requested() and fault == "evaluating":
                time.sleep(0.1)
            return {"mean": jnp.mean(ids)}
        train_loop(update, state, {}, data, run=run, key=jax.random.key(0),
                   observers=((1, "noting", observe),))
""")


def environment(devices: int, x64: bool) -> dict[str, str]:
    # Unoptimised code: compiling takes most of the time here.
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0"
    )
    choices = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(x64))}
    return {**os.environ, "XLA_FLAGS": flags, **choices}


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(command, count: int, x64: bool) -> list[subprocess.Popen]:
    """The processes of a run over eight devices; `command(address, count, rank)`."""
    where = address() if count > 1 else ""
    return [
        subprocess.Popen(
            [sys.executable, *command(where, count, rank)],
            cwd=ROOT, env=environment(8 // count, x64), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(processes, status: int = 0) -> list[str]:
    """What they printed, all having ended with this status."""
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output
    return outputs


def logged(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def reach(workdir: Path, step: int, processes) -> None:
    """Wait until the run has logged this step."""
    deadline = time.monotonic() + LIMIT
    while max((row["step"] for row in logged(workdir)), default=0) < step:
        running = all(process.poll() is None for process in processes)
        if not running or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            pytest.fail("\n".join(process.communicate()[0] for process in processes))
        time.sleep(0.05)


def last(workdir: Path, x64: bool) -> tuple[int, dict, dict]:
    """Step, arrays and data position of the newest checkpoint."""
    folder = workdir / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True)
    step = checkpoints.newest_intact()
    assert step is not None
    return step, run_command.arrays(folder, step, x64), checkpoints.extra(step)


def check_pair(tmp_path, command, at: int, extra: int, x64: bool = False):
    """Train, stop one by SIGTERM, resume; equal to one process that never stopped."""
    pair = start(lambda *where: command(tmp_path / "pair", 10**6, *where), 2, x64)
    reach(tmp_path / "pair", at, pair)
    pair[1].send_signal(signal.SIGTERM)
    outputs = finish(pair, status=42)
    stopped, *_ = last(tmp_path / "pair", x64)
    assert stopped >= at and f"saved step {stopped}" in outputs[0]
    assert "SIGTERM: saving" in outputs[1]

    until = stopped + extra
    outputs = finish(start(lambda *w: command(tmp_path / "pair", until, *w), 2, x64))
    assert f"resuming from step {stopped}" in outputs[0]
    finish(start(lambda *w: command(tmp_path / "one", until, *w), 1, x64))
    step_a, a, extra_a = last(tmp_path / "pair", x64)
    step_b, b, extra_b = last(tmp_path / "one", x64)
    assert (step_a, extra_a) == (step_b, extra_b) and a.keys() == b.keys()
    tolerances = {"rtol": 0, "atol": 1e-10} if x64 else {"rtol": 1e-4, "atol": 1e-5}
    for name in a:
        np.testing.assert_allclose(a[name], b[name], **tolerances, err_msg=name)
    losses = [
        [row["train/loss"] for row in logged(tmp_path / name) if "train/loss" in row]
        for name in ("pair", "one")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-5)


def test_the_loop_on_two_processes(tmp_path):
    def command(workdir, until, *where):
        pause = 0.05 if until == 10**6 else 0
        return ["-W", "error", "-c", TOY, *map(str, (workdir, until, pause, *where))]

    check_pair(tmp_path, command, at=3, extra=3)
    # A mean over arrays that no process holds whole.
    means = [row["mean"] for row in logged(tmp_path / "pair") if "mean" in row]
    assert means and set(means) == {7.5}


def start_toys(workdir, fault: str, timeout: float, until: int = 10**6):
    def command(*where):
        arguments = workdir, until, 0.0, *where, fault, timeout
        return ["-W", "error", "-c", TOY, *map(str, arguments)]

    return start(command, 2, False)


@pytest.mark.parametrize(
    ("fault", "doing"),
    [
        ("loading", "reading a batch"),
        pytest.param("placing", "placing a batch", marks=pytest.mark.slow),
        # What it does is not known: it was stopped before it could publish that.
        pytest.param("stopped", "", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_stuck_is_named(tmp_path, fault, doing):
    pair = start_toys(tmp_path, fault, timeout=3)
    if fault == "stopped":  # by SIGSTOP: only a supervisor can end it
        outputs = finish(pair[:1], status=42)
        pair[1].kill()
        pair[1].communicate()
    else:
        outputs = finish(pair, status=42)
        assert "in __next__" in outputs[1] or "in put" in outputs[1]  # where it sleeps
    for output in outputs:
        assert "process 1 on " in output and "is stuck, last seen at step" in output
        assert not doing or f"at step 4, {doing}" in output


def test_a_slow_step_is_not_stuck(tmp_path):
    finish(start_toys(tmp_path, "slow", timeout=2, until=4))


def test_a_signal_to_one_process_in_an_evaluation_stops_all(tmp_path):
    """The evaluation would last for ever; both save the same step."""
    pair = start_toys(tmp_path, "evaluating", timeout=600)
    reach(tmp_path, 1, pair)  # its step is logged before it is evaluated
    pair[1].send_signal(signal.SIGTERM)
    outputs = finish(pair, status=42)
    step = last(tmp_path, False)[0]
    assert step <= 3 and f"saved step {step}" in outputs[0]
    assert "SIGTERM: saving" in outputs[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("x64", [False, True])
def test_train_py_on_two_processes(tmp_path, x64):
    def command(workdir, until, where, count, rank):
        several = [
            f"--coordinator={where}", f"--num_processes={count}", f"--process_id={rank}"
        ]  # fmt: skip
        program = ("-c", run_command.FLOAT64, "train") if x64 else ("train.py",)
        return [
            *program, "--config=configs/shapes.py:smoke", f"--workdir={workdir}",
            f"--config.train.steps={until}", "--config.data.batch_size=8",
            # The learning rate must not depend on `until`.
            "--config.train.end_lr_fraction=1.0",
            "--config.train.sample_every=0", "--config.train.eval_every=0",
            "--config.train.log_every=1", *(several if count > 1 else ()),
        ]  # fmt: skip

    check_pair(tmp_path, command, at=3, extra=3, x64=x64)


@pytest.mark.slow
def test_each_process_says_its_hits_of_the_compilation_cache(tmp_path, monkeypatch):
    """Process 0 alone writes it. On CPUs, JAX's keys differ between processes."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))

    def counts(run: str) -> list[tuple[int, int]]:
        def command(where, count, rank):
            return [
                "train.py", "--config=configs/shapes.py:smoke",
                f"--workdir={tmp_path / run}", "--config.train.steps=1",
                "--config.train.sample_every=0", "--config.train.eval_every=0",
                "--config.data.batch_size=8", f"--coordinator={where}",
                f"--num_processes={count}", f"--process_id={rank}",
            ]  # fmt: skip

        found = []
        for rank, output in enumerate(finish(start(command, 2, False))):
            line = rf"process {rank}: compilation cache .*: (\d+) hits, (\d+) misses"
            hits, misses = re.findall(line, output)[0]
            found.append((int(hits), int(misses)))
        return found

    first, second = counts("first"), counts("second")
    assert first[0][1] > 0
    # A program that compiles for about half a second may be a miss at one of the two.
    assert second[0][0] > 0 and second[0][1] < first[0][1]


@pytest.mark.slow
def test_a_preview_is_left_when_asked_to_stop(tmp_path):
    """One process; a preview of 1024 steps, after which the signal would come late."""
    command = [
        "train.py", "--config=configs/shapes.py:smoke", f"--workdir={tmp_path}/run",
        "--config.train.log_every=1", "--config.train.sample_every=1",
        "--config.train.eval_every=0", "--config.sample.steps=1024",
        "--config.train.steps=100", "--config.train.checkpoint_every=100",
        "--config.data.batch_size=8",
    ]  # fmt: skip
    processes = start(lambda *where: command, 1, False)
    reach(tmp_path / "run", 1, processes)
    processes[0].send_signal(signal.SIGTERM)
    (output,) = finish(processes, status=42)
    assert not list((tmp_path / "run").glob("samples/*")), output
    assert last(tmp_path / "run", False)[0] <= 3
