"""A distilled cascade beside the one that it came from: network calls and seconds.

    python -m perf.cascade_speed --cascade=runs/cascade --students=cascades/shapes

--videos at once: the teachers with two branches of guidance, in 256 steps of the base
and 128 of every other stage, in turn with the students as their file says; both are
compiled before. (What either shows of its prompts: experiments/cascade_accuracy/cascade_accuracy.py, once for
each, from the same noise.) Writes a JSON beside this.
"""

import argparse
import dataclasses
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

from experiments.cascade_accuracy import cascade_accuracy as benchmark
from vdm_jax import cascade as cascades
from vdm_jax.cascade import Cascade

BASE, OTHERS, GUIDANCE_SCALE = 256, 128, 2.0  # steps and scale of the teachers


def slow(cascade: Cascade) -> Cascade:
    """The teachers as one would sample them without distillation."""
    links = []
    for number, link in enumerate(cascade.stages):
        steps = OTHERS if number else BASE
        changed = dataclasses.replace(
            link.settings, steps=steps, guidance_scale=GUIDANCE_SCALE
        )
        links.append(link._replace(settings=changed))
    return dataclasses.replace(cascade, links=tuple(links))


def main() -> None:
    """Time them, print, write."""
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
    _, prompts = benchmark.asked(both["students"].stages[0].config, args.videos, 0)
    taken: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(args.turns + 1):  # the first compiles
        for name, each in both.items():
            told, _ = cascades.encode_prompts(each, prompts)
            run = each if turn else each.with_sampling({"steps": 2})
            started = time.perf_counter()
            cascades.sample(run, args.videos, told)
            if turn:
                taken[name].append(time.perf_counter() - started)
    rows = []
    for name, each in both.items():
        seconds = statistics.median(taken[name])
        rows.append({"name": name, "nfe": cascades.nfe(each), "seconds": seconds})
        print(f"{name}: {rows[-1]['calls']} calls a video, {seconds:.1f} s")
    fewer, faster = (rows[0][key] / rows[1][key] for key in ("nfe", "seconds"))
    print(f"{fewer:.1f} times fewer calls, {faster:.1f} times faster")
    found = {
        "command": f"python -m perf.cascade_speed {shlex.join(sys.argv[1:])}",
        "machine": platform.processor() or platform.machine(),
        "videos": args.videos, "fewer": fewer, "faster": faster, "rows": rows,
    }  # fmt: skip
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
