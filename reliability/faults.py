"""Inject the faults of docs/reliability.md into real commands and check the answers.

    python -m reliability.faults                  all of them
    python -m reliability.faults full_samples     those named
    python -m reliability.faults --out=FILE ...   with their answers as JSON

A fault is a function of an empty folder. It injects the fault, runs a command as a user
would, and returns the line that the user sees. It raises Wrong where the answer is not
the one that docs/reliability.md documents; the exit status is then 1. Faults that this
machine does not allow, such as mounting, are skipped by name.
"""

import signal
import sys
import tempfile
from pathlib import Path

from reliability import faults_files, faults_processes, faults_stores  # noqa: F401
from reliability.harness import FAULTS, Skipped, Wrong
from vdm_jax.files import write_json


def main(names: list[str]) -> int:
    """Inject the faults in order; return 1 if any answer was wrong."""
    out = [name for name in names if name.startswith("--out=")]
    names = [name for name in names if name not in out]
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        print(f"no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
        return 2
    # A shell or nohup starts what runs in its background with these ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    wrong, answers = 0, {}
    for name in names or FAULTS:
        print(f"{name}: {(FAULTS[name].__doc__ or '').splitlines()[0]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                answers[name] = FAULTS[name](Path(folder))
                print("  " + answers[name], flush=True)
            except Skipped as reason:
                print(f"  skipped: {reason}", flush=True)
            except Wrong as error:
                wrong += 1
                print(f"  WRONG: {error}", flush=True)
    for path in out:
        write_json(path.partition("=")[2], answers)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
