"""What every fault uses: running commands, expecting answers, small file systems."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FAULTS: dict[str, Callable[[Path], str]] = {}
SHIPPED = ["sample.py", "--workdir=models/shapes", "--steps=1", "--num=1"]


class Wrong(Exception):
    """Raised where a command answers a fault otherwise than documented."""


class Skipped(Exception):
    """Raised where this machine does not allow a fault to be injected."""


class Done(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of standard error, or of standard output."""
        lines = self.err.splitlines() or self.out.splitlines() or [""]
        return lines[-1]


def fault(function: Callable[[Path], str]) -> Callable[[Path], str]:
    """Register a function of a folder as a fault, by its name."""
    FAULTS[function.__name__] = function
    return function


def start(*command, cwd: Path = ROOT, env: dict | None = None, **options):
    """Start a command of the repository with this Python; return the process."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**os.environ, **(env or {})}, text=True, errors="replace",
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def run(*command, timeout: float = 300, **options) -> Done:
    """Run a command; raise Wrong if it does not end in time."""
    with start(*command, **options) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise Wrong(f"still running after {timeout:.0f} s") from error
    return Done(child.returncode, (out or "").strip(), (err or "").strip())


def expect(done: Done, status: int, *words: str) -> str:
    """Return status and last line of a command's output.

    Raises:
      Wrong: the status differs, a word is missing, or there is a traceback.
    """
    output = f"{done.out}\n{done.err}"
    if done.status != status:
        raise Wrong(f"status {done.status} instead of {status}:\n{output[-3000:]}")
    if "Traceback" in output:
        raise Wrong(f"a traceback:\n{output[-3000:]}")
    for word in words:
        if word not in output:
            raise Wrong(f"nothing about {word!r}:\n{output[-3000:]}")
    return f"status {status}: {done.last}"


@contextlib.contextmanager
def small_disk(folder: Path, size: str, options: str = "") -> Iterator[Path]:
    """Mount a file system in memory of a size such as `200k`; yield its folder."""
    disk = folder / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", disk],
        capture_output=True,
    )
    if mounted.returncode:
        raise Skipped("mounting a small file system is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def smoke(workdir: Path, *fields: str) -> list[str]:
    """Return the command of the smallest training run, without previews."""
    return [
        "train.py", "--config=configs/shapes.py:smoke", f"--workdir={workdir}",
        "--config.train.sample_every=0", "--config.train.eval_every=0", *fields,
    ]  # fmt: skip
