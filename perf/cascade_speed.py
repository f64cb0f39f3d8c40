"""NFE and seconds of a distilled cascade and of the cascade it was distilled from.

    python -m perf.cascade_speed --cascade=runs/cascade --students=cascades/shapes

Samples --videos at once. The teachers have two branches of guidance, 256 steps of the
base and 128 of every other stage; the students have the settings of their file. Both
are compiled first and then take turns. (experiments/cascade_accuracy measures how well
they follow their prompts.) Writes perf/cascade_speed.json.
"""

import argparse
import dataclasses
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from experiments.cascade_accuracy import cascade_accuracy
from perf import rows
from vdm_jax import cascade as cascades
from vdm_jax.cascade import Cascade

BASE, OTHERS, GUIDANCE_SCALE = 256, 128, 2.0  # steps and scale of the teachers


def slow(cascade: Cascade) -> Cascade:
    """Return the teachers with the steps and the guidance of an undistilled cascade."""
    stages = []
    for number, stage in enumerate(cascade.stages):
        settings = dataclasses.replace(
            stage.settings,
            steps=OTHERS if number else BASE,
            guidance_scale=GUIDANCE_SCALE,
        )
        stages.append(stage._replace(settings=settings))
    return dataclasses.replace(cascade, stages=tuple(stages))


def make_rows(measured: list[dict], machine: str, command: str) -> list[dict]:
    """Return rows of perf/: NFE and seconds of the teachers over the students'."""
    teachers, students = measured
    about: dict[str, Any] = {"better": "higher", "machine": machine, "command": command}
    return [
        rows.make_row(
            f"{key} of teachers over students", teachers[key] / students[key], **about
        )
        for key in ("nfe", "seconds")
    ]


def main() -> None:
    """Time both, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cascade", required=True)
    parser.add_argument("--students", default="cascades/shapes")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--turns", type=int, default=1)
    args = parser.parse_args()
    both = {
        "teachers": slow(cascades.read(args.cascade)),
        "students": cascades.read(args.students),
    }
    config = both["students"].stages[0].config
    _, prompts = cascade_accuracy.held_out_prompts(config, args.videos, 0)
    times: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(args.turns + 1):  # the first compiles
        for name, each in both.items():
            text, _ = cascades.encode_prompts(each, prompts)
            cascade = each if turn else each.with_sampling({"steps": 2})
            started = time.perf_counter()
            cascades.sample(cascade, args.videos, text)
            if turn:
                times[name].append(time.perf_counter() - started)
    measured = []
    for name, each in both.items():
        seconds = statistics.median(times[name])
        measured.append({"name": name, "nfe": cascades.nfe(each), "seconds": seconds})
        print(f"{name}: {measured[-1]['nfe']} NFE per video, {seconds:.1f} s")
    machine = platform.processor() or platform.machine()
    command = f"python -m perf.cascade_speed {shlex.join(sys.argv[1:])}"
    made = make_rows(measured, machine, command)
    for row in made:
        print(rows.format_row(row))
    path = Path(__file__).with_suffix(".json")
    rows.write(path, made, cascades=measured, videos=args.videos)


if __name__ == "__main__":
    main()
