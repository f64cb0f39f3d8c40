"""Kill a training run repeatedly; its final state must be equal bit for bit.

    python -m reliability.kill9 --kills=20

Trains the smallest shapes model once without interruption, then again while it is
killed with SIGKILL: at random moments, while a checkpoint is being written, and while
an old one is being deleted. Each start must resume from the newest checkpoint. At the
end every array of the last checkpoint (parameters, average, optimiser, step) and the
position of the data are compared. Writes kill9.json.
"""

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from vdm_jax.checkpoint import Checkpoints
from vdm_jax.runtime import path_type

ROOT = Path(__file__).parents[1]
MOMENTS = ("anywhere", "anywhere", "saving", "deleting")


def command(workdir: Path, steps: int, every: int = 5) -> list[str]:
    """Return the training command, with frequent checkpoints and previews."""
    return [
        sys.executable, "train.py", "--config=configs/shapes.py:smoke",
        f"--workdir={workdir}", f"--config.train.steps={steps}",
        f"--config.train.checkpoint_every={every}", "--config.train.keep_checkpoints=2",
        "--config.train.log_every=5", "--config.train.sample_every=20",
        "--config.train.eval_every=0",
    ]  # fmt: skip


def train(workdir: Path, steps: int) -> None:
    """Run to the end without further checkpoints, or raise with what was printed."""
    done = subprocess.run(
        command(workdir, steps, every=steps), cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}:\n{done.stdout}{done.stderr}")


def names(workdir: Path) -> set[str]:
    """Return the present entries of the checkpoint directory."""
    try:
        return set(os.listdir(workdir / "checkpoints"))
    except FileNotFoundError:
        return set()


def newest(entries: set[str]) -> int:
    """Return the newest committed step, 0 if there is none."""
    return max((int(name) for name in entries if name.isdecimal()), default=0)


def kill_once(workdir: Path, steps: int, moment: str, rng: random.Random) -> dict:
    """Start the run and kill it at a moment after its next checkpoint."""
    before = newest(names(workdir))
    log = workdir.with_suffix(".log")
    with (
        log.open("w") as output,
        subprocess.Popen(
            command(workdir, steps), cwd=ROOT, stdout=output, stderr=output
        ) as child,
    ):
        while newest(names(workdir)) <= before:  # resumed, and one checkpoint further
            if child.poll() is not None:
                raise SystemExit(f"ended before it was killed:\n{log.read_text()}")
            time.sleep(0.01)
        delay = 0.0
        if moment == "anywhere":
            delay = rng.uniform(0, 2)
        else:
            while not any(name.startswith(moment) for name in names(workdir)):
                if child.poll() is not None:
                    raise SystemExit("ended before it was killed: give more --steps")
            if moment == "saving":
                delay = rng.uniform(0, 0.2)
        time.sleep(delay)
        child.kill()
    left = names(workdir)
    text = log.read_text()
    resumed = text.partition("resuming from step ")[2].partition(" ")[0]
    return {
        "moment": moment,
        "resumed": int(resumed or 0),
        "before": before,
        "newest": newest(left),
        "left": sorted(name for name in left if not name.isdecimal()),
    }


def arrays(workdir: Path, step: int) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays of a checkpoint by name, and its other data."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    saved = checkpoints.arrays(step)
    return {n: np.asarray(x) for n, x in saved.items()}, checkpoints.extra(step)


def compare(a: Path, b: Path, step: int) -> dict:
    """Return the arrays of two runs' last checkpoints that differ in any bit."""
    (first, extra_a), (second, extra_b) = arrays(a, step), arrays(b, step)
    differ = [
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or first[name].dtype != second[name].dtype
        or first[name].tobytes() != second[name].tobytes()
    ]
    return {
        "arrays": len(first),
        "numbers": sum(x.size for x in first.values()),
        "differing": sorted(differ),
        "data_position": [extra_a["data"], extra_b["data"]],
        "data_equal": extra_a == extra_b,
    }


def write(path: Path, target: str, result: dict, kills: list, seconds: float) -> None:
    """Write the JSON; exit with a message if the two runs differ."""
    report = {
        "target": target,
        "result": result,
        "kills": kills,
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "command": shlex.join(
            ["python", "-m", f"reliability.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    if result["differing"] or not result["data_equal"]:
        raise SystemExit("the runs differ")


def arguments(**defaults: int | None) -> argparse.Namespace:
    """Return --kills, --seed, --out and the flags in `defaults`; None is of text."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser()
    for flag, default in {"kills": 20, "seed": 0, **defaults}.items():
        kind = str if default is None else int
        parser.add_argument(f"--{flag}", type=kind, default=default)
    out = ROOT / "reliability" / f"{name}.json"
    parser.add_argument("--out", type=path_type, default=out)
    return parser.parse_args()


def main() -> None:
    """Kill, compare, print and write."""
    args = arguments(steps=600)
    rng = random.Random(args.seed)
    kills, started = [], time.monotonic()
    print("  #  moment    resumed  newest  left on disk", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        for number in range(args.kills):
            moment = MOMENTS[number % len(MOMENTS)]
            row = kill_once(killed, args.steps, moment, rng)
            print(
                f"{number + 1:3}  {row['moment']:8}  {row['resumed']:7}  "
                f"{row['newest']:6}  {' '.join(row['left']) or '-'}",
                flush=True,
            )
            if row["resumed"] != row["before"]:
                raise SystemExit(f"resumed from {row['resumed']}, not {row['before']}")
            kills.append(row)
        # The number of steps is part of the schedule: both runs train all of them.
        train(killed, args.steps)
        train(whole, args.steps)
        result = compare(whole, killed, args.steps)
    within = {w: sum(any(n.startswith(w) for n in k["left"]) for k in kills)
              for w in ("saving", "deleting", "bad")}  # fmt: skip
    result |= {"kills": len(kills), "within": within}
    print(json.dumps(result, indent=1))
    target = "no bit differs; each start resumes from the newest step"
    write(args.out, target, result, kills, time.monotonic() - started)


if __name__ == "__main__":
    main()
