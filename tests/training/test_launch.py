"""Which processes form one run, and how one of them exits."""

import os
import queue
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from vdm_jax.commands import main as commands
from vdm_jax.errors import UserError
from vdm_jax.training import launch
from vdm_jax.training.stop import SIGNAL_REQUESTS, PreemptionSignal

SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """Record the arguments of jax.distributed.initialize; nothing is started."""
    made = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: made.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    known = ("VDM_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JOB_")
    for name in [n for n in os.environ if n.startswith(known)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as JAX sets it without a chip
    return made


def test_a_single_machine_starts_nothing(calls):
    hook = sys.excepthook
    launch.start()
    launch.start("localhost:1234", 1, 0)
    assert not calls and sys.excepthook is hook


def test_flags_come_before_variables(calls, monkeypatch, capsys):
    for name, value in (
        ("COORDINATOR", "a:1"),
        ("NUM_PROCESSES", "4"),
        ("PROCESS_ID", "3"),
    ):
        monkeypatch.setenv(f"VDM_{name}", value)
    launch.start()
    launch.start("b:2", 8, 0)
    first, second = calls
    assert first["coordinator_address"] == "a:1"
    assert (first["num_processes"], first["process_id"]) == (4, 3)
    assert second["coordinator_address"] == "b:2"
    assert (second["num_processes"], second["process_id"]) == (8, 0)
    assert second["heartbeat_timeout_seconds"] == 60
    assert "waiting 300 s at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    "environment",
    [
        SLURM,
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    ],
    ids=["slurm", "mpi", "gke", "kubernetes"],
)
def test_clusters_are_left_to_jax(calls, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launch.start()
    [how] = calls
    assert not {"coordinator_address", "num_processes", "process_id"} & set(how)
    launch.start("b:2", 8, 0)  # flags come first here too
    assert calls[1]["cluster_detection_method"] == "deactivate"


def test_an_allocation_without_srun_is_one_process(calls, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, SLURM[name])
    launch.start()
    assert not calls


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", 2, None), "give all three"),
        ((None, None, 1), "give all three"),
        (("a", 2, 0), "host:port"),
        (("a:b", 2, 0), "host:port"),
        (("a:1", 2, 2), "num_processes=2, process_id=2: "),
        (("a:1", 2, -1), "process_id=-1"),
        (("a:1", 0, 0), "num_processes=0"),
        (("a:1", 10**20, 0), "at most 65536"),
        (("a:99999", 2, 0), "host:port"),
    ],
)
def test_flags_that_do_not_fit_together(calls, given, message):
    with pytest.raises(UserError, match=message) as caught:
        launch.start(*given)
    assert caught.value.status == 2 and not calls


def test_a_variable_that_is_no_number(calls, monkeypatch):
    monkeypatch.setenv("VDM_PROCESS_ID", "two")
    with pytest.raises(UserError, match="VDM_PROCESS_ID='two'"):
        launch.start("a:1", 2)


def test_a_single_process_exits_normally():
    with pytest.raises(SystemExit) as caught:
        launch.exit_process(3)
    assert caught.value.code == 3


PAIR = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from vdm_jax.training import launch
rank = int(sys.argv[2])
launch.start(sys.argv[1], 2, rank)
multihost_utils.process_allgather(jnp.ones(()))
if rank == 1:
    raise ValueError("only here")
multihost_utils.process_allgather(jnp.ones(()))
"""


def test_an_error_on_one_process_ends_all_soon():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    started = time.monotonic()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, address, str(rank)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate()[1] for process in pair]
    assert time.monotonic() - started < 30
    assert pair[1].returncode == 1 and "ValueError: only here" in errors[1]
    assert pair[0].returncode in (launch.PEER_DIED, -signal.SIGABRT), errors[0]


@pytest.mark.parametrize(
    "text",
    [
        "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1",
        "INTERNAL: [1] GlooAllReduce failed: Read error: Connection reset by peer",
        "UNAVAILABLE: NCCL operation ncclAllReduce failed: remote process exited",
        "DEADLINE_EXCEEDED: Barrier timed out. Id: save",
        "UNAVAILABLE: failed to connect to all addresses; Socket closed",
    ],
)
def test_messages_of_a_lost_process_are_recognised(text):
    """Also as the cause of the error that arrives."""
    inner = jax.errors.JaxRuntimeError(text)
    outer = ValueError("a save failed")
    outer.__cause__ = ExceptionGroup("of threads", [inner])
    assert launch.lost_peer_message(inner) == launch.lost_peer_message(outer) == text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("only here"),
        KeyError("barrier"),
        ValueError("no peer of this name: connection closed"),
        TimeoutError("timed out"),
        RuntimeError("the barrier of a batch is unavailable"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes do not fit"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_other_errors_are_not_a_lost_process(error):
    assert launch.lost_peer_message(error) == ""


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("INTERNAL: Gloo: heartbeat"), 134), (ValueError("a barrier"), 1)],
)
def test_the_traceback_is_printed_whatever_is_the_cause(
    monkeypatch, capsys, error, status
):
    left = []
    monkeypatch.setattr(launch, "exit_process", left.append)
    launch._exit_with_traceback(type(error), error, None)
    printed = capsys.readouterr().err
    assert left == [status] and f"ValueError: {error}" in printed
    assert ("another process is gone" in printed) == (status == launch.PEER_DIED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_outside_of_the_loop_exits_at_once(monkeypatch, capfd, number):
    """Though the main thread is busy; within the loop, the loop decides."""
    left = queue.Queue()
    monkeypatch.setattr(launch.os, "_exit", left.put)
    before = {n: signal.getsignal(n) for n in SIGNAL_REQUESTS}
    try:
        launch.exit_on_signals()
        signal.raise_signal(number)
        for _ in ("the handler", "the thread"):
            assert left.get(timeout=10) == 42
        assert f"{number.name}: exiting" in capfd.readouterr().err
        with PreemptionSignal().handling_signals():
            signal.raise_signal(number)
            time.sleep(0.1)
        assert left.empty()
    finally:
        signal.set_wakeup_fd(-1)
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_signal_does_not_change_the_status_of_an_error(monkeypatch):
    """Slurm ends process 0 by SIGTERM as soon as another one has failed."""
    left = []
    before = {n: signal.getsignal(n) for n in SIGNAL_REQUESTS}
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(launch.os, "_exit", left.append)
    monkeypatch.setattr(
        launch.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM)
    )
    try:
        launch.exit_on_signals()
        with pytest.raises(SystemExit):  # since os._exit returns here
            launch.exit_process(2)
        assert left == [2]
    finally:
        signal.set_wakeup_fd(-1)
        for n, handler in before.items():
            signal.signal(n, handler)


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({**SLURM, "SLURM_NTASKS": "two"}, "Slurm"),
    ],
)
def test_a_cluster_with_too_few_variables_is_reported(
    calls, monkeypatch, environment, cluster
):
    def initialize(**how):
        raise ValueError("coordinator_address should be defined.")

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match=rf"{cluster}\): coordinator.*num_processes=1"):
        launch.start()
    launch.start(num_processes=1)


def test_all_processes_wait_for_each_other_before_they_exit(monkeypatch):
    met = []
    monkeypatch.setattr(launch.agreement, "check", met.append)
    monkeypatch.setattr(commands.runtime, "run", lambda main, leave: main())
    monkeypatch.setattr(commands.app, "run", lambda work, flags_parser: work([]))
    commands.run(lambda: met.append("work"), "")
    assert met == ["work", {}]


def test_a_second_process_0_is_refused(calls):
    with socket.create_server(("", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"localhost:{port}: another process"):
            launch.start(f"localhost:{port}", 2, 0)
    launch.start(f"localhost:{port}", 2, 0)
    assert len(calls) == 1


ALONE = """
import sys
from vdm_jax.training import launch
launch.REPORT_INTERVAL = 2.0
launch.start(sys.argv[1], 4, int(sys.argv[2]), timeout=5.0)
"""


def start_alone(address: str, rank: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, address, str(rank)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_processes_that_are_missing_are_counted_before_the_exit():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    two = [start_alone(address, rank) for rank in (0, 2)]
    errors = [process.communicate(timeout=100)[1] for process in two]
    assert [process.returncode for process in two] == [2, 2]
    advice = f"waiting at {address} for others: start the same command on all 4"
    assert f"2 of 4 processes, {advice}" in errors[0]
    assert "error: 5 s have passed: " in errors[0]
    assert f"process 2 of 4, {advice}" in errors[1]


def test_a_coordinator_that_does_not_answer_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = launch.waiting_line(address, 4, 3)
    assert f"process 3 of 4, waiting for process 0 at {address}" in line
    assert "firewall" in line
