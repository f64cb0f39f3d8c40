"""Seconds from the start of a command to its first step or video.

    python -m perf.startup

- train: train.py --config=configs/shapes.py, to the end of the first step.
- sample: sample.py --cascade=cascades/shapes, to the end of a process that makes one
  video. (perf/race.py has the first step of the race's network.)

Every turn is a process of its own. The first has an empty folder of compiled programs
and exported steps, the later ones that of the first. Writes perf/startup.json.
"""

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perf import rows
from perf.steps import device

ROOT = Path(__file__).parents[1]
TRAIN = ["train.py", "--config=configs/shapes.py", "--config.train.log_every=1"]
SAMPLE = ["sample.py", "--cascade=cascades/shapes", "--num=1"]
TARGETS = {"sample_warm": 15.0}
NAMES = {
    "train_cold": "first step of configs/shapes.py, cold caches, s",
    "train_warm": "first step of configs/shapes.py, warm caches, s",
    "sample_cold": "first video of cascades/shapes, cold caches, s",
    "sample_warm": "first video of cascades/shapes, warm caches, s",
}


def seconds(command: list[str], until: str, cache: str) -> float:
    """Return the seconds to the first line that starts with `until`, or to the end.

    The process ends there.
    """
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until and line.startswith(until):
                elapsed = time.perf_counter() - started
                process.kill()
                return elapsed
    if process.returncode or until:
        sys.exit(f"{shlex.join(command)} failed with status {process.returncode}")
    return time.perf_counter() - started


def run_turn(cache: str) -> dict[str, float]:
    """Return the seconds of each command."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "train": seconds([*TRAIN, f"--workdir={folder}/run"], "step 1/", cache),
            "sample": seconds([*SAMPLE, f"--out={folder}/videos"], "", cache),
        }


def make_rows(turns: list[dict[str, float]], machine: str, command: str) -> list[dict]:
    """Return rows of perf/: the first turn is cold, the median of the others warm."""
    table = []
    for name in turns[0]:
        warm = statistics.median(turn[name] for turn in turns[1:])
        for key, result in ((f"{name}_cold", turns[0][name]), (f"{name}_warm", warm)):
            about = {"better": "lower", "machine": machine, "command": command}
            target = TARGETS.get(key)
            table.append(rows.make_row(NAMES[key], result, target=target, **about))
    return table


def main() -> None:
    """Run turns, print the rows, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    args = parser.parse_args()
    if args.turns < 2:
        parser.error("--turns: 2 or more, the first of which is cold")
    with tempfile.TemporaryDirectory() as cache:
        turns = []
        for _ in range(args.turns):
            turns.append(run_turn(cache))
            print(turns[-1], flush=True)
    machine = f"{platform.machine()}, {device()}"
    command = shlex.join(["python", "-m", "perf.startup", *sys.argv[1:]])
    table = make_rows(turns, machine, command)
    rows.write(Path(args.out), table, turns=turns)
    for row in table:
        print(rows.format_row(row))


if __name__ == "__main__":
    main()
