"""Time and memory of a training step under each option of it, beside the plain step.

    python -m benchmarks.options

The setting and the network of benchmarks/race.py (the peer's layout). Every measurement
is a process of its own, and the options take turns, of which the first, which compiles,
does not count; the figures are medians. *Kept* is what the forward pass keeps for the
backward one, before a compiler changes anything; *working memory* what the compiled
program asks for beside its arguments. Prints the table and writes
benchmarks/options.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import race
from vdm_jax.training import step

HERE = Path(__file__).parent
STEPS = 5
OPTIONS: dict[str, dict] = {
    "plain": {},
    "dtype=bfloat16": {"network": {"dtype": "bfloat16"}},
    "remat=dots": {"network": {"remat": "dots"}},
    "remat=full": {"network": {"remat": "full"}},
    "attention=dot_product": {"network": {"attention": "dot_product"}},
    "accumulate=2": {"train": {"accumulate": 2}},
    "accumulate=4": {"train": {"accumulate": 4}},
    "optimizer=muon": {"train": {"optimizer": "muon"}},
    "ema=0": {"train": {"ema": 0.0}},
}


def kept(option: str) -> float:
    """GiB that the backward pass reads, beside the parameters."""
    config, model = race.setting("peer", OPTIONS[option])
    b = race.SIZE["batch"] // config.train.accumulate
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    loss = step.make_loss(model, "snr_plus_one")

    def backward(params):
        return jax.vjp(lambda p: loss(p, {}, batch, jax.random.key(0))[0], params)[1]

    params = jax.eval_shape(model.fresh, jax.random.key(0))
    read, given = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(backward, params), params)
    )
    return (read - given) / 2**30


def measure(option: str) -> dict:
    """Seconds of STEPS steps, and GiB."""
    update, _, (state, *others), _ = race.programs("peer", OPTIONS[option])
    compiled = update.lower(state, *others).compile()
    working = compiled.memory_analysis().temp_size_in_bytes
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, *others)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": seconds[1:],
        "kept": kept(option),
        "working": working / 2**30,
    }


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--option", choices=list(OPTIONS))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.option:
        print(json.dumps(measure(args.option)))
        return
    seen: dict[str, list[dict]] = {option: [] for option in OPTIONS}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        for turn in range(args.turns + 1):
            for option, found in seen.items():
                command = [sys.executable, "-m", "benchmarks.options"]
                done = subprocess.run(
                    [*command, f"--option={option}"], cwd=HERE.parent, env=environment,
                    stdout=subprocess.PIPE, text=True, check=True,
                )  # fmt: skip
                if turn:
                    found.append(json.loads(done.stdout.splitlines()[-1]))
                    print(option, found[-1], flush=True)
    rows = []
    print("| | a step | | kept | | working memory | |\n|---|---|---|---|---|---|---|")
    for option, found in seen.items():
        row = {
            "option": option,
            "seconds": statistics.median(s for one in found for s in one["seconds"]),
            "kept": found[0]["kept"],
            "working": found[0]["working"],
        }
        rows.append(row)
        cells = [f"`{option}`"]
        for key, unit in (("seconds", "s"), ("kept", "GiB"), ("working", "GiB")):
            cells += [f"{row[key]:.2f} {unit}", f"{row[key] / rows[0][key]:.2f}"]
        print(f"| {' | '.join(cells)} |")
    result = {
        "rows": rows,
        "turns": args.turns,
        "setting": race.SIZE,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU",
        "command": "python -m benchmarks.options",
    }
    (HERE / "options.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
