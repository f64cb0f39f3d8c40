"""Several processes: started together before any JAX call, and left together."""

import errno
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

import jax

from vdm_jax import agreement
from vdm_jax.errors import UserError
from vdm_jax.training.stop import EXIT_STATUS, RESTART, SIGNAL_REQUESTS, write_stderr

# Where JAX finds the processes by itself. It is asked to only where one of these says
# so: on a lone machine it would search for clusters, and wait for what is not there.
Env = Mapping[str, str]
CLUSTERS: dict[str, Callable[[Env], bool]] = {
    "Slurm": lambda env: (
        env.get("SLURM_NTASKS", "1") != "1"
        and {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
        <= set(env)
    ),
    "Open MPI": lambda env: "OMPI_MCA_orte_hnp_uri" in env,
    "TPU on GKE": lambda env: (
        "TPU_WORKER_HOSTNAMES" in env or "TPU_PROCESS_ADDRESSES" in env
    ),
    # JAX sets TPU_SKIP_MDS_QUERY when it is imported and finds no chip.
    "TPU VM": lambda env: (
        "TPU_SKIP_MDS_QUERY" not in env
        and importlib.util.find_spec("libtpu") is not None
    ),
    "Kubernetes": lambda env: (
        "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    ),
}

COORDINATOR_EXIT_DELAY = 2.0  # seconds
MAX_PROCESSES = 2**16
PEER_DIED = 134  # exit status: as of SIGABRT, by which JAX itself ends the others
# What an operation across processes says when one of them is gone: a status of
# XLA's or gRPC's first, which no error of Python's begins with.
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
    *,
    initialization_timeout: int = 1800,
    heartbeat_timeout: int = 60,
    shutdown_timeout: int = 60,
) -> None:
    """Join the other processes of the run, if there are any; before any JAX call.

    What is None is read from VDM_COORDINATOR, VDM_NUM_PROCESSES and VDM_PROCESS_ID;
    where these are not set either, JAX finds out by itself under Slurm, Open MPI,
    Kubernetes and on TPUs, and elsewhere nothing is done: a single process.

    Args:
      coordinator: host:port of process 0, the same for all.
      num_processes: of the whole run.
      process_id: of this one, 0 .. num_processes - 1.
      initialization_timeout: seconds to wait for all to come.
      heartbeat_timeout: seconds of silence after which a process is taken for dead and
        all others abort (status 134).
      shutdown_timeout: seconds to wait for the others at the end.

    Raises:
      UserError (2): some but not all three are given, or they do not fit together.
    """
    given = {
        "coordinator": coordinator or os.environ.get("VDM_COORDINATOR"),
        "num_processes": _int_from_environment(num_processes, "VDM_NUM_PROCESSES"),
        "process_id": _int_from_environment(process_id, "VDM_PROCESS_ID"),
    }
    cluster = next((name for name, here in CLUSTERS.items() if here(os.environ)), None)
    if given == {"coordinator": None, "num_processes": 1, "process_id": None}:
        return
    if any(value is not None for value in given.values()):
        by = f"coordinator {given['coordinator']}"
        address, processes, number = _check_flags(**given)
        if processes == 1:
            return
        where = {
            "coordinator_address": address,
            "num_processes": processes,
            "process_id": number,
            "cluster_detection_method": "deactivate",
        }
    elif cluster is not None:
        by, where = cluster, {}
    else:
        return
    # Of a signal `fit` decides; JAX's own handler would swallow it outside the loop.
    jax.config.update("jax_enable_preemption_service", False)
    print(f"waiting {initialization_timeout} s at most for all ({by})", flush=True)
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=shutdown_timeout,
        )
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run do not come together ({by}): "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}: give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 "
            "for one process alone"
        ) from error
    sys.excepthook = _exit_with_traceback
    print(
        f"process {jax.process_index()} of {jax.process_count()} "
        f"({by}): timeouts start {initialization_timeout} s, heartbeat "
        f"{heartbeat_timeout} s, end {shutdown_timeout} s",
        flush=True,
    )


def exit_on_signals() -> None:
    """End this process at once when it is asked to stop: with 42, or what says a kill.

    It holds where no loop listens: while data are read, the step is compiled, or
    between rounds. What was saved is whole then, and nothing else is lost. A thread
    looks, as this one may wait for a compiler or for other processes for long.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    for number, request in SIGNAL_REQUESTS.items():
        if request == RESTART and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit_at_once)
    looking = threading.Thread(target=_watch_signals, args=(heard, told), daemon=True)
    looking.start()


def _exit_at_once(number: int, frame: object) -> None:
    """Stand for what `_look` does, which the system's handler has told already."""


def _watch_signals(heard: socket.socket, told: socket.socket) -> None:
    """Read the numbers of signals; `told` is kept open with this."""
    while number := heard.recv(1):
        name = signal.Signals(number[0])
        if signal.getsignal(name) is _exit_at_once:
            write_stderr(
                f"{name.name}: leaving; the same command goes on from what is saved"
            )
            os._exit(EXIT_STATUS[RESTART])
    told.close()


def wait_for_all() -> None:
    """Wait for all processes at the end of the work, with more patience than JAX has.

    Its own farewell ends those that are a minute late, and those that wait for them.
    """
    agreement.check({})


def exit_process(status: int) -> None:
    """End this process with a status after an error that the others may not have.

    A normal exit would wait for them, and they for this one. The coordinator goes
    last: when it is gone the others are ended at once, with a status of their own.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(COORDINATOR_EXIT_DELAY)
        os._exit(status)
    sys.exit(status)


def _exit_with_traceback(kind, error, trace) -> None:
    traceback.print_exception(kind, error, trace)  # the words may be a bug's, too
    if lost := lost_peer_message(error):
        print(f"error: another process is gone: {lost}", file=sys.stderr)
    exit_process(PEER_DIED if lost else 1)


def lost_peer_message(error: BaseException | None) -> str:
    """Say in which words a library told that another process is gone; "" if none did.

    Whichever notices first ends the others: the service that keeps them together (by
    SIGABRT), or an operation across processes, whose error stands somewhere among the
    causes of the one that arrives here.
    """
    seen: list[BaseException] = []
    left = [error]
    while left:
        error = left.pop()
        if error is None or error in seen:
            continue
        seen.append(error)
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError | ValueError) and PEER_LOST_PATTERN.match(
            text
        ):
            return text[:200]
        left += [error.__cause__, error.__context__]
        left += getattr(error, "exceptions", ())
    return ""


def _int_from_environment(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{variable}={text!r}: must be a whole number") from error


def _check_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int]:
    """The three, consistent; raises UserError saying which is not."""
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            f"coordinator={coordinator}, num_processes={num_processes}, process_id="
            f"{process_id}: give all three (as flags or VDM_COORDINATOR, "
            "VDM_NUM_PROCESSES, VDM_PROCESS_ID), or none of them"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"coordinator={coordinator!r}: must be host:port of process 0")
    if not 0 <= process_id < num_processes <= MAX_PROCESSES:
        raise UserError(
            f"process_id={process_id} with num_processes={num_processes}: must be at "
            f"least 0 and less than num_processes, which is at most {MAX_PROCESSES}"
        )
    if process_id == 0 and num_processes > 1:
        _check_port_is_free(int(port), coordinator)
    return coordinator, num_processes, process_id


def _check_port_is_free(port: int, coordinator: str) -> None:
    """Raise UserError if another process listens at the port of process 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"coordinator={coordinator}: another process listens there: is it "
                    "process 0 too? Else give another port"
                ) from error
