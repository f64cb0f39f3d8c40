"""A student that ships beside its teacher in as many and in more steps.

    python -m benchmarks.students
    python -m benchmarks.students --fewer=runs/fewer  # and students of that student

Labels of held-out clips, all rows from the same noise, w = 1; the measure is that of
`evaluate.py --workdir=DISTILLATION`, which needs all of a distillation's students: here
the one that ships is enough. Each row is written as it is finished.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from vdm_jax import data, sampling
from vdm_jax import model as models
from vdm_jax.data import pipeline
from vdm_jax.evaluation import students
from vdm_jax.evaluation.evaluate import stack

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m benchmarks.students"


def main() -> None:
    """Sample, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="models/shapes")
    parser.add_argument("--student", default="models/shapes_8step")
    parser.add_argument("--fewer", help="a distillation of the student")
    parser.add_argument("--num", type=int, default=200)
    args = parser.parse_args()
    teacher, student = models.load(args.teacher), models.load(args.student)
    own = student.config.sample.steps
    arms = [
        (f"teacher, ddim, {students.LARGEST} steps", teacher, "ddim", students.LARGEST),
        (f"student, {own} steps", student, "ddim", own),
    ]
    if args.fewer:
        for row in models.students(Path(args.fewer)):
            loaded, n = models.load(f"{args.fewer}/{row['path']}"), row["steps"]
            arms.append((f"student, {n} steps", loaded, "ddim", n))
    while own:
        arms += [
            (f"teacher, {sampler}, {own} steps", teacher, sampler, own)
            for sampler in students.SAMPLERS
        ]
        own //= 2

    config = student.config
    source = data.open_source(config)
    kept = pipeline.held_out_batch(config, source, args.num)
    measure = students.Measure(kept["video"], kept["label"], config.data.source)
    clips = stack(pipeline.fixed_clips(config, source.split(False), args.num))
    rows = [measure.real(clips)]
    for name, loaded, sampler, steps in arms:
        settings = dataclasses.replace(
            sampling.Settings.of(loaded.config.sample),
            sampler=sampler,
            steps=steps,
            guidance=1.0,
        )
        started = time.perf_counter()
        videos = sampling.to_uint8(
            sampling.sample(
                loaded.model, loaded.params, args.num, settings, labels=kept["label"]
            )
        )
        calls = sampling.calls(loaded.model, settings)
        row = {"row": name, "calls": calls} | measure(videos)
        if measure.reference is None:
            measure.reference = videos
        rows.append(row)
        print(f"{time.perf_counter() - started:.0f} s: {row}", flush=True)
        told = f" --fewer={args.fewer}" if args.fewer else ""
        found = {"command": COMMAND + told, "num": args.num, "rows": rows}
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
