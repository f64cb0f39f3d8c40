"""Runs a verb as a user does, in a process of its own that need not import again.

Processes are forked from a server that has imported JAX but not started it.
"""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PRELOAD = [
    "vdm_jax.cli",
    "vdm_jax.training.train",
    "vdm_jax.evaluators.models",
    "vdm_jax.data.clips",
    "vdm_jax.data.folder",
    "vdm_jax.data.shapes",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOAD)


# A verb as `python -c` runs it with float64, which a command does not take from its
# environment: verb, flags.
FLOAT64 = """
import sys
from vdm_jax import cli, runtime
runtime.PINNED["jax_enable_x64"] = True
verb, *sys.argv[1:] = sys.argv[1:]
getattr(cli, verb)()
"""


@dataclasses.dataclass
class Done:
    """What a process left: exit status, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def _child(verb: str, flags: list[str], out: str, err: str, cache: str) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(ROOT)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"{verb}.py", *flags]
    from vdm_jax import cli

    getattr(cli, verb)()


def call(verb: str, *flags: str, timeout: float = 500) -> Done:
    """`python VERB.py FLAGS`, from the repository's root, with the tests' cache."""
    cache = Path(os.environ.get("VDM_CACHE", ROOT / ".cache")) / "xla"
    with tempfile.TemporaryDirectory() as folder:
        out, err = f"{folder}/out", f"{folder}/err"
        process = CONTEXT.Process(
            target=_child, args=(verb, list(flags), out, err, str(cache))
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        texts = (Path(p).read_text() if Path(p).exists() else "" for p in (out, err))
        return Done(process.exitcode, *texts)


def refused(verb: str, *flags: str) -> str:
    """The one line of a refusal: status 2, no traceback."""
    done = call(verb, *flags)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("error: ")
    return lines[-1]


def arrays(checkpoints: Path, step: int, x64: bool) -> dict[str, np.ndarray]:
    """A checkpoint's arrays by name, read by a process that may have float64 on."""
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
