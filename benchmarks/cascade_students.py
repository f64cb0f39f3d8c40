"""A distilled cascade beside the one that it came from: calls, seconds, accuracy.

    python -m benchmarks.cascade_students --cascade=runs/cascade

Speed: --videos at once, the teachers with two branches of guidance in 256 steps of the
base and 128 of every other stage, in turn with the students as their file says; both
are compiled before. Accuracy: --num prompts that training left out, both as their files
say, of the same noise. Writes a JSON beside this.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks import cascade as benchmark
from vdm_jax import cascade as cascades
from vdm_jax import sampling
from vdm_jax.cascade import Cascade
from vdm_jax.evaluation import shapes as measure

BASE, OTHERS, WEIGHT = 256, 128, 1.0  # steps and guidance of the teachers' speed


def slow(cascade: Cascade) -> Cascade:
    """The teachers as one would sample them without distillation."""
    links = []
    for number, link in enumerate(cascade.links):
        steps = OTHERS if number else BASE
        changed = dataclasses.replace(link.settings, steps=steps, guidance=WEIGHT)
        links.append(link._replace(settings=changed))
    return dataclasses.replace(cascade, links=tuple(links))


def speed(cascades_: dict[str, Cascade], videos: int, turns: int) -> dict[str, dict]:
    """Calls of the networks for a video, and seconds for all videos, by name."""
    _, prompts = benchmark.asked(cascades_["students"].links[0].config, videos, 0)
    taken: dict[str, list[float]] = {name: [] for name in cascades_}
    for turn in range(turns + 1):  # the first compiles
        for name, each in cascades_.items():
            told, _ = cascades.tell(each, prompts)
            run = each if turn else each.changed({"steps": 2})
            started = time.perf_counter()
            cascades.sample(run, videos, told)
            if turn:
                taken[name].append(time.perf_counter() - started)
    return {
        name: {"calls": cascades.calls(each), "seconds": statistics.median(taken[name])}
        for name, each in cascades_.items()
    }


def accuracy(cascade: Cascade, num: int) -> dict[str, dict]:
    """What the measure says of every stage, the last one decides."""
    labels, prompts = benchmark.asked(cascade.links[0].config, num, 0)
    told, _ = cascades.tell(cascade, prompts)
    videos = cascades.sample(cascade, num, told)
    strides = {link.name: link.config.data.stride for link in cascade.links}
    return {
        name: measure.row(sampling.to_uint8(made), labels, strides[name])
        for name, made in videos.items()
    }


def main() -> None:
    """Both, printed and written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cascade", required=True)
    parser.add_argument("--students", default="cascades/shapes")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--num", type=int, default=200)
    args = parser.parse_args()
    both = {
        "teachers": cascades.read(args.cascade),
        "students": cascades.read(args.students),
    }
    fast = speed(both | {"teachers": slow(both["teachers"])}, args.videos, args.turns)
    ratio = {
        key: fast["teachers"][key] / fast["students"][key] for key in fast["teachers"]
    }
    for name, row in fast.items():
        print(f"{name}: {row['calls']} calls a video, {row['seconds']:.1f} s")
    print(
        f"{ratio['calls']:.1f}x fewer calls, {ratio['seconds']:.1f}x faster", flush=True
    )
    shown = {}
    for name, each in both.items():
        shown[name] = accuracy(each, args.num)
        joint = ", ".join(f"{k} {v['joint']:.3f}" for k, v in shown[name].items())
        print(
            f"{name}: {cascades.calls(each)} calls, joint accuracy {joint}", flush=True
        )
    last = [list(shown[name].values())[-1]["joint"] for name in both]
    error = np.sqrt(sum(p * (1 - p) / args.num for p in last))
    print(f"students less teachers: {last[1] - last[0]:+.3f} +- {error:.3f}")
    found = {
        "command": "python -m benchmarks.cascade_students --cascade=runs/cascade",
        "videos": args.videos, "speed": fast, "ratio": ratio,
        "num": args.num, "accuracy": shown,
    }  # fmt: skip
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
