"""Where the time of a training step and of a sampling step goes.

    python -m perf.parts

The programs of perf/race.py, run under JAX's profiler. Every instruction of a
compiled program says which line of the network it came from; the time of the
instructions is summed by that, backward with forward. Instructions run side by side, so
the sum is more than the step's time, which is told too. Prints milliseconds and shares.
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from pathlib import Path

import jax

from perf import race

CALLS = 3
# The first that an instruction's origin holds is what it counts as.
PARTS = {
    "convolutions": "conv_general_dilated",
    "projections of attention": r"attention/(qkv|out|q|kv)/",
    "norms and swish": r"silu|norm",
    "attention": "attention",
    "skips, downsampling, upsampling": "skip|concatenate|downsample|upsample",
    "the optimizer's update": r"\(step\)/(?!.*(jvp|ConditioningEncoder))",
}


def by_part(program: str, call) -> dict[str, float]:
    """Milliseconds a call by part; program: the compiled text, for the names in it."""
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
    found: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in origins:
            origin = origins[event["name"]]
            part = (name for name, holds in PARTS.items() if re.search(holds, origin))
            found[next(part, "the rest")] += event["dur"] / 1000 / CALLS
    return dict(found.most_common())


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", default="peer", choices=["peer", "vdm"])
    update, sample, given, of_sample = race.programs(parser.parse_args().layout)
    sampling = sample.lower(*of_sample).compile()
    training = update.lower(*given).compile()
    state, *others = given

    def train() -> None:
        nonlocal state
        state, metrics = training(state, *others)
        jax.block_until_ready((state, metrics))

    def one_sample() -> None:
        jax.block_until_ready(sampling(*of_sample))

    steps = {"sampling": (sampling, one_sample), "training": (training, train)}
    for name, (program, call) in steps.items():
        found = by_part(program.as_text(), call)
        total = sum(found.values())
        print(f"\na {name} step: {total:.0f} ms in instructions")
        for part, milliseconds in found.items():
            print(f"{part:32s} {milliseconds:7.1f}  {milliseconds / total:.2f}")


if __name__ == "__main__":
    main()
