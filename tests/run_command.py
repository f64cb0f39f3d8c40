"""Run a command as a user does, in a new process that does not import again.

Processes are forked from a server that has imported JAX but not started it.
"""

import dataclasses
import gc
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SMOKE = "--config=configs/shapes.py:smoke"
PRELOAD = [
    "vdm_jax.commands.evaluate",
    "vdm_jax.commands.edit",
    "vdm_jax.commands.sample",
    "vdm_jax.training.train",
    "vdm_jax.evaluators.models",
    "vdm_jax.data.clips",
    "vdm_jax.data.folder",
    "vdm_jax.data.shapes",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOAD)


# Program of `python -c` that runs a command in float64, which a command does not read
# from its environment. Arguments: the command's name, its flags.
FLOAT64 = """
import importlib, sys
from vdm_jax import runtime
runtime.PINNED_JAX_SETTINGS["jax_enable_x64"] = True
command, *sys.argv[1:] = sys.argv[1:]
importlib.import_module(f"vdm_jax.commands.{command}").main()
"""


@dataclasses.dataclass
class Done:
    """Exit status of a process, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def collect_seldom() -> None:
    """Collect cyclic garbage seldom, and nothing of what is there now.

    A trace makes very many objects that stay, and going through them again and again
    was a seventh of the time of tests.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _child(command: str, flags: list[str], out: str, err: str, cache: str) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    collect_seldom()
    os.chdir(ROOT)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"{command}.py", *flags]
    importlib.import_module(f"vdm_jax.commands.{command}").main()


def call(command: str, *flags: str, timeout: float = 500) -> Done:
    """Run `python COMMAND.py FLAGS` in the repository's root, with the tests' cache."""
    cache = Path(os.environ.get("VDM_CACHE", ROOT / ".cache")) / "xla"
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        process = CONTEXT.Process(
            target=_child, args=(command, list(flags), out, err, str(cache))
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        texts = (Path(p).read_text() if Path(p).exists() else "" for p in (out, err))
        return Done(process.exitcode, *texts)


def refused(command: str, *flags: str) -> str:
    """Return the one line of a refusal: status 2, no traceback."""
    done = call(command, *flags)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("error: ")
    return lines[-1]


def arrays(checkpoints: Path, step: int, x64: bool) -> dict[str, np.ndarray]:
    """Return a checkpoint's arrays by name, read by a process with or without x64."""
    code = (
        "import sys, numpy as np; from vdm_jax.checkpoint import Checkpoints;"
        "c = Checkpoints(sys.argv[1], read_only=True);"
        "np.savez(sys.argv[3], **c.arrays(int(sys.argv[2])))"
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        subprocess.run(
            [sys.executable, "-c", code, str(checkpoints), str(step), str(out)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "JAX_ENABLE_X64": str(int(x64))},
        )
        with np.load(out) as found:
            return dict(found)
