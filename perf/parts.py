"""Time of a training step and of a sampling step, by part of the network.

    python -m perf.parts

Runs the programs of perf/steps.py under JAX's profiler. Every instruction of a compiled
program names the line of the network that it came from; the times of instructions are
summed by that, backward with forward. Instructions run in parallel, so the sum is
larger than the step's time. Prints milliseconds and fractions.
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path

import jax

from perf import steps

CALLS = 3
# An instruction belongs to the first pattern that its origin matches.
PARTS = {
    "convolutions": "conv_general_dilated",
    "projections of attention": r"attention/(qkv|out|q|kv)/",
    "norms and swish": r"silu|norm",
    "attention": "attention",
    "skips, downsampling, upsampling": "skip|concatenate|downsample|upsample",
    "the optimizer's update": r"\(step\)/(?!.*(jvp|ConditioningEncoder))",
}


def by_part(program: str, call) -> dict[str, float]:
    """Return milliseconds per call by part.

    program: the compiled text, which has the origins of instructions.
    """
    call()
    named = r"%?([\w.\-]+) = .*? ([\w\-]+)\(.*metadata=\{[^}]*op_name=\"([^\"]*)\""
    origins = {
        name: origin
        for name, opcode, origin in re.findall(named, program)
        if opcode not in ("while", "conditional", "call")  # they hold the others
    }
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call()
        (path,) = Path(folder).glob("**/*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    times: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in origins:
            origin = origins[event["name"]]
            part = (name for name, regex in PARTS.items() if re.search(regex, origin))
            times[next(part, "other")] += event["dur"] / 1000 / CALLS
    return dict(times.most_common())


def main() -> None:
    """Print the times of both steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", default="vdp", choices=["vdp", "vdm"])
    layout = parser.parse_args().layout
    update, sample, train_args, sample_args = steps.programs(layout)
    sampling = sample.lower(*sample_args).compile()
    training = update.lower(*train_args).compile()
    state, *others = train_args

    def train() -> None:
        nonlocal state
        state, metrics = training(state, *others)
        jax.block_until_ready((state, metrics))

    def one_sample() -> None:
        jax.block_until_ready(sampling(*sample_args))

    calls = {"sampling": (sampling, one_sample), "training": (training, train)}
    for name, (program, call) in calls.items():
        times = by_part(program.as_text(), call)
        total = sum(times.values())
        print(f"\na {name} step: {total:.0f} ms in instructions")
        for part, milliseconds in times.items():
            print(f"{part:32s} {milliseconds:7.1f}  {milliseconds / total:.2f}")


if __name__ == "__main__":
    main()
