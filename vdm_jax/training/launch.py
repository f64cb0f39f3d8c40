"""Several processes of one run: how they start together and exit together."""

import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed

from vdm_jax import agreement
from vdm_jax.errors import UserError
from vdm_jax.runtime import write_stderr
from vdm_jax.training.stop import EXIT_STATUS, RESTART, SIGNAL_REQUESTS

# Where JAX finds the other processes by itself. It does so only where one of these
# holds: on a single machine it would search for clusters, and wait in vain.
Env = Mapping[str, str]
CLUSTERS: dict[str, Callable[[Env], bool]] = {
    "Slurm": lambda env: (
        env.get("SLURM_NTASKS", "1") != "1"
        and {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
        <= set(env)
    ),
    "Open MPI": lambda env: "OMPI_MCA_orte_hnp_uri" in env,
    # JAX sets TPU_SKIP_MDS_QUERY when it is imported and finds no chip.
    "TPU": lambda env: (
        bool({"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & set(env))
        or ("TPU_SKIP_MDS_QUERY" not in env and find_spec("libtpu") is not None)
    ),
    "Kubernetes": lambda env: (
        "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    ),
}

START_TIMEOUT = 300.0  # seconds to wait for all processes to start
REPORT_INTERVAL = 30.0  # seconds between two lines about processes that are waited for
# Seconds to wait for a sign of life of each process, without which it counts as dead
# and all others abort (status 134); for the others at the end.
TIMEOUTS: dict[str, Any] = {
    "heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60,
}  # fmt: skip
COORDINATOR_EXIT_DELAY = 2.0  # seconds
MAX_PROCESSES = 2**16
PEER_DIED = 134  # exit status: that of SIGABRT, by which JAX itself ends the others
# Message of an operation across processes when one of them is gone. It starts with a
# status of XLA or gRPC, with which no error of Python starts.
PEER_LOST_PATTERN = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED): "
    "|(UNKNOWN|INTERNAL|ABORTED|CANCELLED|FAILED_PRECONDITION): .*"
    "(gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe|heartbeat"
    "|coordination ?service|barrier|shutting down)",
    re.IGNORECASE,
)


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = START_TIMEOUT,
) -> None:
    """Join the other processes of the run, if there are any; before any JAX call.

    An argument that is None is read from VDM_COORDINATOR, VDM_NUM_PROCESSES or
    VDM_PROCESS_ID. If these are not set either, JAX finds the processes by itself under
    Slurm, Open MPI, Kubernetes and on TPUs; elsewhere the run is a single process.

    Args:
      coordinator: host:port of process 0, the same for all.
      num_processes: of the whole run.
      process_id: of this one, 0 .. num_processes - 1.
      timeout: seconds after which this process exits with status 2 if others are
        missing. What it waits for is written to standard error until then.

    Raises:
      UserError (2): the three do not fit together, or the processes do not meet.
    """
    by, where = _find_processes(
        coordinator or os.environ.get("VDM_COORDINATOR"),
        _int_from_environment(num_processes, "VDM_NUM_PROCESSES"),
        _int_from_environment(process_id, "VDM_PROCESS_ID"),
    )
    if not by:
        return
    # `train_loop` handles signals; outside of it JAX's own handler would ignore them.
    jax.config.update("jax_enable_preemption_service", False)
    print(f"waiting {timeout:.0f} s at most for all ({by})", flush=True)
    # JAX would abort without a word of who is missing: this process exits before.
    later = {"initialization_timeout": round(timeout + 2 * REPORT_INTERVAL)}
    met = threading.Event()
    threading.Thread(target=_report_missing, args=(met, timeout), daemon=True).start()
    try:
        jax.distributed.initialize(**where, **later, **TIMEOUTS)
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run do not come together ({by}): "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}: give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 "
            "for a single process"
        ) from error
    finally:
        met.set()
    sys.excepthook = _exit_with_traceback
    print(f"process {jax.process_index()} of {jax.process_count()} ({by})", flush=True)


def _report_missing(met: threading.Event, timeout: float) -> None:
    """Write which processes are waited for until all have met; exit after the timeout.

    JAX's main thread waits in C++ meanwhile.
    """
    deadline = time.monotonic() + timeout
    while not met.wait(min(REPORT_INTERVAL, max(deadline - time.monotonic(), 0))):
        state = distributed.global_state
        address, count = state.coordinator_address, state.num_processes
        line = "the cluster does not say yet which processes there are"
        if address:
            line = waiting_line(address, count, state.process_id)
        if late := time.monotonic() >= deadline:
            line = f"error: {timeout:.0f} s have passed: {line}"
        write_stderr(line)
        if late:
            os._exit(2)


def waiting_line(address: str, count: int, process: int) -> str:
    """Return which processes of a run are missing, as far as this process knows.

    address: host:port of process 0. count: of the processes. process: this one.
    """
    host, _, port = address.rpartition(":")
    advice = f"start the same command on all {count}"
    if process == 0:
        here = _connections(int(port))
        return f"{here} of {count} processes, waiting at {address} for others: {advice}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return (
            f"process {process} of {count}, waiting for process 0 at {address}, which "
            f"does not answer ({error}): {advice}, and open the port in the firewall"
        )
    return f"process {process} of {count}, waiting at {address} for others: {advice}"


def _connections(port: int) -> int:
    """Return the number of connections to a port of this machine, on Linux."""
    remotes = set()
    for table in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")):
        for row in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, remote, state, *_ = row.split()
            if state == "01" and int(local.rpartition(":")[2], 16) == port:
                remotes.add(remote)  # 01: established
    return len(remotes)


def _find_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, dict[str, Any]]:
    """Return how the processes find each other, "" for a single process.

    That is its name, and arguments of jax.distributed.initialize.

    Raises:
      UserError: the three are not consistent.
    """
    given = coordinator, num_processes, process_id
    if given == (None, None, None):
        names = (name for name, here in CLUSTERS.items() if here(os.environ))
        return next(names, ""), {}
    if given == (None, 1, None):
        return "", {}
    coordinator = coordinator or ""
    count = num_processes or 0
    number = process_id
    host, _, port = coordinator.rpartition(":")
    is_address = host and port.isdecimal() and 0 < int(port) < 2**16
    if number is None or not (is_address and 0 <= number < count <= MAX_PROCESSES):
        raise UserError(
            f"coordinator={coordinator}, num_processes={num_processes}, process_id="
            f"{process_id}: give all three or none (as flags or VDM_COORDINATOR, "
            "VDM_NUM_PROCESSES, VDM_PROCESS_ID): host:port of process 0, at most "
            f"{MAX_PROCESSES} processes, and the number of this one, from 0"
        )
    if num_processes == 1:
        return "", {}
    if process_id == 0:
        _check_port_is_free(int(port), coordinator)
    return f"coordinator {coordinator}", {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


def exit_on_signals() -> None:
    """Make signals end this process immediately, with status 42 or that of a kill.

    This holds outside of `train_loop`: while data are read, while the step is compiled
    and between rounds. Nothing that was saved is lost. A thread reads the signals,
    since the main thread may wait for a compiler or for other processes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number, request in SIGNAL_REQUESTS.items():
        if request == RESTART and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit_at_once)
    threading.Thread(target=_watch_signals, args=(reader,), daemon=True).start()


def _exit_at_once(number: int, frame: object) -> None:
    """Exit on a signal; it also marks one on which `_watch_signals` exits."""
    write_stderr(
        f"{signal.Signals(number).name}: exiting; the same command resumes from what "
        "is saved"
    )
    os._exit(EXIT_STATUS[RESTART])


def _watch_signals(reader: int) -> None:
    """Exit on the first signal that is marked."""
    while number := os.read(reader, 1):
        if signal.getsignal(number[0]) is _exit_at_once:
            _exit_at_once(number[0], None)


def wait_for_all() -> None:
    """Wait for all processes at the end of the work, longer than JAX does.

    JAX's own shutdown aborts processes that are a minute late, and those that wait for
    them.
    """
    agreement.check({})


def exit_process(status: int) -> None:
    """End this process with a status, after an error that the others may not have.

    A normal exit and the other processes would wait for each other. The coordinator
    exits last: its end aborts the others, with a status of their own. A scheduler may
    send it a signal before that: the status stays that of the error.
    """
    if jax.distributed.is_initialized():
        for number in SIGNAL_REQUESTS:
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(COORDINATOR_EXIT_DELAY)
        os._exit(status)
    sys.exit(status)


def _exit_with_traceback(kind, error, trace) -> None:
    traceback.print_exception(kind, error, trace)  # the cause may still be a bug
    if lost := lost_peer_message(error):
        print(f"error: another process is gone: {lost}", file=sys.stderr)
    exit_process(PEER_DIED if lost else 1)


def lost_peer_message(error: BaseException | None) -> str:
    """Return the message of a library that another process is gone, or "".

    Either the service between the processes notices first, and aborts this one by
    SIGABRT, or an operation across processes, whose error is among the causes of the
    one that arrives here.
    """
    errors = [error]
    for one in errors:
        text = " ".join(str(one).split())
        if isinstance(one, RuntimeError | ValueError) and PEER_LOST_PATTERN.match(text):
            return text[:200]
        if one is not None:
            causes = one.__cause__, one.__context__, *getattr(one, "exceptions", ())
            errors += [cause for cause in causes if cause not in errors]
    return ""


def _int_from_environment(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{variable}={text!r}: must be a whole number") from error


def _check_port_is_free(port: int, coordinator: str) -> None:
    """Raise UserError if another process listens at the port of process 0."""
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return
    raise UserError(
        f"coordinator={coordinator}: another process listens there: is it process 0 "
        "too? Else give another port"
    )
