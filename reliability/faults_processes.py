"""Faults of processes, signals, streams, settings and memory."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from reliability.harness import (
    ROOT,
    SHIPPED,
    Done,
    Wrong,
    expect,
    fault,
    run,
    smoke,
    start,
)


def children_of(parent: subprocess.Popen, word: bytes) -> list[int]:
    """Return the children of a process whose command has a word."""
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    commands = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in map(int, listed)}
    return [p for p, words in commands.items() if word in words]


def with_loaders(folder: Path):
    """Start a run with two loader processes; return both after its first steps."""
    endless = [
        "--config.train.steps=1000000",
        "--config.train.checkpoint_every=1000000",
    ]
    child = start(*smoke(folder / "run", "--config.data.workers=2", *endless))
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step "):
            break
    loaders = children_of(child, b"spawn_main")
    if len(loaders) != 2:
        child.kill()
        raise Wrong(f"{len(loaders)} loaders instead of 2, line {line!r}")
    return child, loaders


@fault
def loader_killed(folder: Path) -> str:
    """kill -9 of a loader process of data.workers=2."""
    child, loaders = with_loaders(folder)
    with child:
        os.kill(loaders[1], signal.SIGKILL)
        out, err = child.communicate(timeout=120)
    done = Done(child.returncode, out.strip(), err.strip())
    return expect(done, 137, "config.data.workers=2 (process", "killed by SIGKILL")


@fault
def run_killed_with_loaders(folder: Path) -> str:
    """kill -9 of a run with data.workers=2: loaders and shared memory are gone."""
    before = set(os.listdir("/dev/shm"))
    child, loaders = with_loaders(folder)
    with child:
        child.kill()
    time.sleep(5)
    states = [Path(f"/proc/{p}/stat") for p in loaders]
    alive = [p for p in states if p.exists() and " Z " not in p.read_text()]
    left = set(os.listdir("/dev/shm")) - before
    if alive or left:
        raise Wrong(f"{len(alive)} loaders and {len(left)} shared objects are left")
    return f"status {child.returncode}: no loader and no shared memory is left"


def reach(child: subprocess.Popen, words: str) -> None:
    """Read the output of a command up to these words; Wrong if they do not come."""
    assert child.stdout is not None
    for line in child.stdout:
        if words in line:
            return
    raise Wrong(f"it ended before {words!r}")


def stopped(child: subprocess.Popen, workdir: Path, status: int, words: str) -> str:
    """Return the answer of a run that was signalled to stop, with a checkpoint."""
    done = Done(child.wait(300), "", (child.stderr.read() if child.stderr else ""))
    if not list((workdir / "checkpoints").glob("[0-9]*/manifest.json")):
        raise Wrong(f"no checkpoint: {done.err}")
    return expect(done, status, words)


def long_run(workdir: Path, **options) -> subprocess.Popen:
    """Start a long run; return it after its tenth step."""
    fields = ["steps=100000", "log_every=10", "checkpoint_every=1000000"]
    child = start(*smoke(workdir, *(f"--config.train.{f}" for f in fields)), **options)
    reach(child, "step 10/")
    return child


@fault
def hangup(folder: Path) -> str:
    """SIGHUP to a run, as from a closed terminal; under nohup it is ignored."""
    with long_run(folder / "a") as child:
        child.send_signal(signal.SIGHUP)
        answer = stopped(child, folder / "a", 42, "SIGHUP")
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with long_run(folder / "b", **ignoring) as child:
        child.send_signal(signal.SIGHUP)
        reach(child, "step 50/")
        child.send_signal(signal.SIGTERM)
        return answer + "; " + stopped(child, folder / "b", 42, "SIGTERM")


@fault
def no_reader(folder: Path) -> str:
    """The reader of a run's standard output exits."""
    with long_run(folder / "run") as child:
        assert child.stdout is not None
        child.stdout.close()
        return stopped(child, folder / "run", 42, "the reader of its output left")


@fault
def no_streams(folder: Path) -> str:
    """Standard input, output and error are closed."""
    command = [*SHIPPED, f"--out={folder / 'out'}"]
    line = ["-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *command]
    status = subprocess.run(["sh", *line], cwd=ROOT).returncode
    if status or not (folder / "out" / "samples.npz").is_file():
        raise Wrong(f"status {status}")
    return "status 0, the videos are written"


@fault
def interrupted(folder: Path) -> str:
    """Ctrl-C while sample.py samples."""
    command = ["--workdir=models/clips", "--num=16", "--steps=1024"]
    with start("sample.py", *command, f"--out={folder / 'out'}") as child:
        time.sleep(10)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    return expect(Done(child.returncode, out, err), 130, "interrupted")


@fault
def no_device(folder: Path) -> str:
    """JAX_PLATFORMS names a device that this machine does not have."""
    done = run(*SHIPPED, f"--out={folder}", env={"JAX_PLATFORMS": "tpu"})
    return expect(done, 2, "no device starts: ", "JAX_PLATFORMS=tpu")


@fault
def settings_of_jax(folder: Path) -> str:
    """JAX_ENABLE_X64 and JAX_DEFAULT_PRNG_IMPL are set: the same videos."""
    settings = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    for name, env in (("a", {}), ("b", settings)):
        done = run(*SHIPPED, f"--out={folder / name}", env=env)
        answer = expect(done, 0, *(f"{name}=" for name in env))
    a, b = (np.load(folder / n / "samples.npz")["videos"] for n in "ab")
    if not np.array_equal(a, b):
        raise Wrong("the videos differ")
    return f"{answer}; the same videos"


@fault
def too_many(folder: Path) -> str:
    """More videos are requested than fit into memory."""
    command = ["sample.py", "--workdir=models/shapes", "--num=1000000000"]
    return expect(run(*command, f"--out={folder / 'out'}"), 2, "GiB of memory needed")


def pair(*differing: str, workdir: Path) -> list[Done]:
    """Run two processes of one run, each with a flag of its own; return both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    children = [
        start(
            *smoke(workdir, flag), f"--coordinator={address}",
            "--num_processes=2", f"--process_id={rank}", env={"JAX_PLATFORMS": "cpu"},
        )
        for rank, flag in enumerate(differing)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=300) for child in children]
    return [Done(c.returncode, *o) for c, o in zip(children, outputs, strict=True)]


def long_pair(workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Start two processes of one long run; return both after some steps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    endless = ["steps=1000000", "log_every=1", "checkpoint_every=1000000"]
    fields = [f"--config.train.{field}" for field in endless]
    children = [
        start(
            *smoke(workdir, *fields, *flags), f"--coordinator={address}",
            "--num_processes=2", f"--process_id={rank}", env={"JAX_PLATFORMS": "cpu"},
        )
        for rank in range(2)
    ]  # fmt: skip
    reach(children[0], "step 2/")
    return children


def noticed(pair: list[subprocess.Popen], status: int, word: str) -> str:
    """Return how process 0 ends by itself, and when; end process 1, which may not."""
    began = time.monotonic()
    try:
        out, err = pair[0].communicate(timeout=200)
        seconds = time.monotonic() - began
    except subprocess.TimeoutExpired as error:
        raise Wrong("process 0 still runs after 200 s") from error
    finally:
        for child in pair:
            child.kill()
            child.wait()
    code = pair[0].returncode
    done = Done(128 - code if code < 0 else code, out, err)
    lines = [line for line in err.splitlines() if word in line]
    expect(done._replace(err="\n".join(lines)), status, word)
    return f"status {status} after {seconds:.0f} s: {lines[0]}"


@fault
def process_asleep(folder: Path) -> str:
    """The loader of one of two processes is stopped: that process waits in its data."""
    flags = "--config.data.workers=1", "--stall_timeout=10"
    pair = long_pair(folder / "run", *flags)
    loaders = children_of(pair[1], b"spawn_main")
    for loader in loaders:
        os.kill(loader, signal.SIGSTOP)
    try:
        return noticed(pair, 42, "process 1 on ")
    finally:
        for loader in loaders:
            os.kill(loader, signal.SIGKILL)


@fault
def process_stopped(folder: Path) -> str:
    """SIGSTOP to one of two processes."""
    pair = long_pair(folder / "run")
    pair[1].send_signal(signal.SIGSTOP)
    return noticed(pair, 134, "unhealthy (stopped sending heartbeats)")


@fault
def unlike_processes(folder: Path) -> str:
    """Two processes of a run are started with different configs."""
    flags = (f"--config.train.learning_rate={rate}" for rate in (0.1, 0.2))
    words = "learning_rate is 0.1 in process 0 and 0.2 in process 1"
    return [expect(d, 2, words) for d in pair(*flags, workdir=folder / "run")][-1]


@fault
def missing_on_one(folder: Path) -> str:
    """config.init_from does not exist on one of two processes."""
    shutil.copytree(ROOT / "models" / "shapes", folder / "0")
    flags = (f"--config.init_from={folder / rank}" for rank in "01")
    done = pair(*flags, workdir=folder / "run")
    expect(done[0], 2, "process 1 of this run cannot begin")
    return expect(done[1], 2, "is not a run")
