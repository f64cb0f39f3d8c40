"""Inject the faults of docs/reliability.md into real commands, and look at the answers.

    python -m reliability.faults                  all of them
    python -m reliability.faults full_samples     those named

A fault is a function of an empty folder. It brings the fault about, runs a command as a
user would, and returns the line that the user sees; it raises Wrong where the answer is
another one than docs/reliability.md promises. The status is 1 if any did. Faults that
this machine does not allow (mounting, say) are skipped by name.
"""

import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vdm_jax import video_io

ROOT = Path(__file__).parents[1]
FAULTS: dict[str, Callable[[Path], str]] = {}


class Wrong(Exception):
    """A command answered a fault in another way than is promised."""


class Skipped(Exception):
    """This machine does not allow the fault to be brought about."""


class Done(NamedTuple):
    """What a command said when it had ended."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line that it wrote to standard error, else to standard output."""
        lines = self.err.splitlines() or self.out.splitlines() or [""]
        return lines[-1]


def fault(function: Callable[[Path], str]) -> Callable[[Path], str]:
    """Enter a function of a folder into the table of faults, under its name."""
    FAULTS[function.__name__] = function
    return function


def start(*command, cwd: Path = ROOT, env: dict | None = None, **options):
    """Start a command of the repository by this Python; returns the process."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**os.environ, **(env or {})}, text=True, errors="replace",
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def run(*command, timeout: float = 300, **options) -> Done:
    """Run a command to its end; Wrong if it has none."""
    with start(*command, **options) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise Wrong(f"still running after {timeout:.0f} s") from error
    return Done(child.returncode, (out or "").strip(), (err or "").strip())


def expect(done: Done, status: int, *words: str) -> str:
    """The last line of what a command said, which holds the words; Wrong if not so.

    There must be no traceback, whatever the status.
    """
    said = f"{done.out}\n{done.err}"
    if done.status != status:
        raise Wrong(f"status {done.status} instead of {status}:\n{said[-3000:]}")
    if "Traceback" in said:
        raise Wrong(f"a traceback:\n{said[-3000:]}")
    for word in words:
        if word not in said:
            raise Wrong(f"nothing about {word!r}:\n{said[-3000:]}")
    return f"status {status}: {done.last}"


@contextlib.contextmanager
def small_disk(folder: Path, size: str, options: str = "") -> Iterator[Path]:
    """A file system of its own in memory, of so many bytes, as `200k`."""
    place = folder / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", place],
        capture_output=True,
    )
    if mounted.returncode:
        raise Skipped("mounting a small file system is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def smoke(workdir: Path, *fields: str) -> list[str]:
    """The command of the smallest training run, without looks at its samples."""
    return [
        "train.py", "--config=configs/shapes.py:smoke", f"--workdir={workdir}",
        "--config.train.sample_every=0", "--config.train.eval_every=0", *fields,
    ]  # fmt: skip


@fault
def full_samples(folder: Path) -> str:
    """sample.py --out on a full disk: the arrays come first."""
    with small_disk(folder, "700k") as disk:
        command = ["--workdir=models/clips", "--steps=1", "--num=16"]
        done = run("sample.py", *command, f"--out={disk / 'out'}")
        said = expect(done, 2, "no space left on device", "samples.npz holds all")
        left = {path.name for path in (disk / "out").iterdir()}
        if "samples.npz" not in left or "samples.json" in left:
            raise Wrong(f"left: {sorted(left)}")
        return said


def footage(folder: Path, number: int) -> Path:
    """A folder of short videos in which something moves."""
    rng = np.random.default_rng(0)
    for i in range(number):
        video = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
        video_io.write_video(folder / "videos" / f"v{i}.mp4", video, 8, scale=4)
    return folder / "videos"


def check(folder: Path, number: int, **options) -> Done:
    """Run `data check` of some footage from within an empty folder."""
    arguments = [footage(folder, number), f"--cache_dir={folder / 'cache'}"]
    command = ["-m", "vdm_jax.data", "check", *arguments, "--num_frames=8"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""}
    return run(*command, cwd=folder, env=environment, **options)


@fault
def damaged_clip(folder: Path) -> str:
    """evaluate.py --videos where a frame of one file is overwritten."""
    videos = footage(folder, 8)
    with av.open(videos / "v3.mp4") as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][4]
    with open(videos / "v3.mp4", "r+b") as file:
        file.seek((packet.pos or 0) + 4)
        file.write(bytes((i * 37 + 11) % 256 for i in range(packet.size - 4)))
    out = f"--out={folder / 'out'}"
    pair = [f"--videos={videos}", f"--reference={videos}", "--num_frames=8", "--num=8"]
    done = run("evaluate.py", *pair, out, env={"XDG_CACHE_HOME": str(folder)})
    expect(done, 0)
    if "v3.mp4: at frame" not in done.out:
        raise Wrong("the damaged file is not named")
    return f"status 0: {done.out.splitlines()[0].strip()}"


@fault
def little_memory(folder: Path) -> str:
    """`ulimit -v` of 3 GB, half of what the decoder may take otherwise."""
    limit = 3 * 10**9, 3 * 10**9
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_AS, limit)
    done = check(folder, 2, preexec_fn=limited)
    expect(done, 0, "kept      2")
    return f"status 0: {done.out.splitlines()[1]}"


@fault
def modules_among_data(folder: Path) -> str:
    """json.py, numpy.py and others in the current folder end whoever imports them."""
    for name in ("json", "numpy", "av", "random", "tqdm", "jax"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported')")
    done = check(folder, 2)
    expect(done, 0, "kept      2")
    return f"status 0: {done.out.splitlines()[1]}"


def with_loaders(folder: Path):
    """A run with two loader processes that is in its steps, and the two."""
    endless = [
        "--config.train.steps=1000000",
        "--config.train.checkpoint_every=1000000",
    ]
    child = start(*smoke(folder / "run", "--config.data.workers=2", *endless))
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("step "):
            break
    listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    commands = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in map(int, listed)}
    loaders = [p for p, words in commands.items() if b"spawn_main" in words]
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
    """kill -9 of a run of data.workers=2: what stays of its loaders after 5 s."""
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


def steps(workdir: Path) -> list[int]:
    """Return the steps whose checkpoints stand in a workdir; no other directories."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    if odd := [name for name in names if not name.isdecimal()]:
        raise Wrong(f"beside the checkpoints: {odd}")
    return sorted(map(int, names))


@fault
def full_logs(folder: Path) -> str:
    """The disk of logs/ fills in training: the state is saved, then one line."""
    workdir = folder / "run"
    command = smoke(workdir, "--config.train.steps=60", "--config.train.log_every=1")
    workdir.mkdir()
    with small_disk(folder, "4k") as disk:
        (workdir / "logs").symlink_to(disk)
        said = expect(run(*command), 2, "logs/events", "no space left on device")
        if len(saved := steps(workdir)) < 1 or saved[-1] == 60:
            raise Wrong(f"saved: {saved}")
    (workdir / "logs").unlink()
    expect(run(*command), 0, f"resuming from step {saved[-1]}")
    return said


@fault
def full_workdir(folder: Path) -> str:
    """A run goes on, on a disk that is full already: one line, the checkpoints stay."""
    with small_disk(folder, "60m") as disk:
        workdir = disk / "run"
        expect(run(*smoke(workdir)), 0)
        before = steps(workdir)
        with contextlib.suppress(OSError), open(disk / "fill", "wb", 0) as fill:
            while True:
                fill.write(bytes(4096))
        more = smoke(workdir, "--config.train.steps=8")
        said = expect(run(*more), 2, "no space left on device")
        if steps(workdir) != before:
            raise Wrong(f"{steps(workdir)} instead of {before}")
        (disk / "fill").unlink()
        expect(run(*more), 0, f"resuming from step {before[-1]}")
        return said


@fault
def no_inodes(folder: Path) -> str:
    """A disk without room for one more file, though with room for bytes."""
    with small_disk(folder, "60m", ",nr_inodes=9") as disk:
        return expect(run(*smoke(disk / "run")), 2, "no space left", "no inode free")


@fault
def full_report(folder: Path) -> str:
    """evaluate.py --out on a full disk."""
    with small_disk(folder, "8k") as disk:
        command = ["--workdir=models/shapes", "--steps=1", "--num=2"]
        done = run("evaluate.py", *command, f"--out={disk / 'out'}")
        return expect(done, 2, "no space left on device")


@fault
def path_of_patterns(folder: Path) -> str:
    """A workdir from whose path no checkpoint could be restored."""
    for name in "a[b]", "a\\b", os.fsdecode(b"caf\xe9"):
        said = expect(run(*smoke(folder / name)), 2, "checkpoints cannot be kept in")
        if os.listdir(folder):
            raise Wrong(f"made: {os.listdir(folder)}")
    return said


@fault
def damaged_files(folder: Path) -> str:
    """metrics.jsonl, the manifest of the newest checkpoint and config.json, in turn."""
    command = smoke(folder)
    expect(run(*command, "--config.train.checkpoint_every=1"), 0)
    (folder / "metrics.jsonl").write_bytes(b"\xff\n{}\n" + bytes(100))
    newest = folder / "checkpoints" / str(steps(folder)[-1])
    (newest / "manifest.json").write_text("[" * 100_000)
    done = run(*command, "--config.train.checkpoint_every=1")
    expect(done, 0, "set aside as bad-metrics.jsonl", f"set aside as bad-{newest.name}")
    (folder / "config.json").write_bytes(b"")
    return expect(run(*command), 2, "config.json is not JSON")


@fault
def average_begins(folder: Path) -> str:
    """train.ema_decay switched on when a run goes on: nothing is written."""
    expect(run(*smoke(folder, "--config.train.ema_decay=0.0")), 0)
    before = (folder / "config.json").read_text()
    said = expect(
        run(*smoke(folder, "--config.train.ema_decay=0.9")), 2, "config.train.ema_decay"
    )
    if (folder / "config.json").read_text() != before:
        raise Wrong("config.json was rewritten")
    return said


# --- processes, signals, streams and settings ---------------------------------------

SHIPPED = ["sample.py", "--workdir=models/shapes", "--steps=1", "--num=1"]


def reach(child: subprocess.Popen, words: str) -> None:
    """Read what a command says until these words come; Wrong if they do not."""
    assert child.stdout is not None
    for line in child.stdout:
        if words in line:
            return
    raise Wrong(f"it ended before it said {words!r}")


def stopped(child: subprocess.Popen, workdir: Path, status: int, words: str) -> str:
    """How a training run that was asked to stop ended: with a checkpoint."""
    done = Done(child.wait(300), "", (child.stderr.read() if child.stderr else ""))
    if not list((workdir / "checkpoints").glob("[0-9]*/manifest.json")):
        raise Wrong(f"no checkpoint: {done.err}")
    return expect(done, status, words)


def long_run(workdir: Path, **options) -> subprocess.Popen:
    """A run that has far to go, after its tenth step."""
    fields = ["steps=100000", "log_every=10", "checkpoint_every=1000000"]
    child = start(*smoke(workdir, *(f"--config.train.{f}" for f in fields)), **options)
    reach(child, "step 10/")
    return child


@fault
def hangup(folder: Path) -> str:
    """SIGHUP to a run, as of a terminal that is closed; under nohup it is ignored."""
    with long_run(folder / "a") as child:
        child.send_signal(signal.SIGHUP)
        said = stopped(child, folder / "a", 42, "SIGHUP")
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with long_run(folder / "b", **ignoring) as child:
        child.send_signal(signal.SIGHUP)
        reach(child, "step 50/")
        child.send_signal(signal.SIGTERM)
        return said + "; " + stopped(child, folder / "b", 42, "SIGTERM")


@fault
def no_reader(folder: Path) -> str:
    """The reader of a run's standard output goes away."""
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
    return "status 0, the videos are there"


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
    """JAX_PLATFORMS names a device that is not here."""
    found = run(*SHIPPED, f"--out={folder}", env={"JAX_PLATFORMS": "tpu"})
    return expect(found, 2, "JAX_PLATFORMS=tpu", "here is")


@fault
def settings_of_jax(folder: Path) -> str:
    """JAX_ENABLE_X64 and JAX_DEFAULT_PRNG_IMPL are set: the same videos."""
    settings = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    for name, env in (("a", {}), ("b", settings)):
        done = run(*SHIPPED, f"--out={folder / name}", env=env)
        said = expect(done, 0, *(f"{name}=" for name in env))
    a, b = (np.load(folder / n / "samples.npz")["videos"] for n in "ab")
    if not np.array_equal(a, b):
        raise Wrong("the videos differ")
    return f"{said}; the same videos"


@fault
def no_home(folder: Path) -> str:
    """HOME is a folder that is not there and cannot be made."""
    (folder / "file").write_text("")
    env = {"HOME": f"{folder}/file/home", "TMPDIR": str(folder), "XDG_CACHE_HOME": ""}
    env["JAX_COMPILATION_CACHE_DIR"] = ""
    done = run("-m", "vdm_jax.doctor", env=env)
    if f" {folder}/vdm_jax-" not in done.out:
        raise Wrong(done.out)
    return expect(done, 0)


@fault
def object_store(folder: Path) -> str:
    """A path is the address of an object store."""
    expect(run(*smoke(Path("gs://b/run"))), 2, "--workdir=")
    expect(run(*SHIPPED, "--out=s3://b"), 2, "--out=s3://b")
    field = "--config.data.cache_dir=hdfs://h/c"
    return expect(run(*smoke(folder / "run", field)), 2, "config.data.cache_dir=hdfs:")


@fault
def too_many(folder: Path) -> str:
    """More videos are asked for than fit into memory."""
    command = ["sample.py", "--workdir=models/shapes", "--num=1000000000"]
    return expect(run(*command, f"--out={folder / 'out'}"), 2, "GiB of memory needed")


def pair(*differing: str, workdir: Path) -> list[Done]:
    """What two processes of a run said, each of which had a flag of its own."""
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
    said = [child.communicate(timeout=300) for child in children]
    return [Done(c.returncode, *texts) for c, texts in zip(children, said, strict=True)]


@fault
def unlike_processes(folder: Path) -> str:
    """Two processes of a run are started with different configs."""
    flags = (f"--config.train.learning_rate={rate}" for rate in (0.1, 0.2))
    words = "learning_rate is 0.1 in process 0 and 0.2 in process 1"
    return [expect(d, 2, words) for d in pair(*flags, workdir=folder / "run")][-1]


@fault
def missing_on_one(folder: Path) -> str:
    """One of two processes finds no model where config.init_from says."""
    shutil.copytree(ROOT / "models" / "shapes", folder / "0")
    flags = (f"--config.init_from={folder / rank}" for rank in "01")
    done = pair(*flags, workdir=folder / "run")
    expect(done[0], 2, "process 1 of this run cannot begin")
    return expect(done[1], 2, "is not a run")


def main(names: list[str]) -> int:
    """Bring the faults about, one after the other; 1 if any was answered wrongly."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        print(f"no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
        return 2
    wrong = 0
    for name in names or FAULTS:
        print(f"{name}: {(FAULTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                print("  " + FAULTS[name](Path(folder)), flush=True)
            except Skipped as reason:
                print(f"  skipped: {reason}", flush=True)
            except Wrong as error:
                wrong += 1
                print(f"  WRONG: {error}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
