"""A training and a sampling step of this library and of others, in one run.

    make bench

Setting: dim 32, multipliers 1, 2, 4, 8, 8 frames of 32x32, batch 4, float32, all cores.

- vdp: video-diffusion-pytorch 0.7.0. A level has two residual blocks, then linear
  attention over the frame and attention over time; the middle has attention over the
  frame.
- diffusers: UNet3DConditionModel of diffusers 0.42.1 at the same widths, its other
  settings their defaults.
- vdp_layout: vdm_jax with blocks and attention where video-diffusion-pytorch has them.
- vdm_layout: vdm_jax with both kinds of attention after every block, at all sizes, one
  more block per level on the way up, and Shaw's vectors, as VDM has.

Every measurement is a process of its own, and the sides take turns, so that a change in
the machine's speed affects all. The figures are medians. Our first turn has an empty
compilation cache, the others a filled one. FLOPs are those of matrix products and
convolutions by their sizes, padding included: from the traced program, and from torch's
calls. The other libraries have an environment of their own (.venv-baselines). Writes
perf/race.json.

The vdp layout differs from video-diffusion-pytorch, which has 8 heads of 32 at every
level, where ours has as many as the width allows, one more attention over time, a 7x7
stem and a last block. Compare the time per FLOP as well as the time.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES = {
    "vdp": "video-diffusion-pytorch 0.7.0",
    "diffusers": "diffusers 0.42.1 UNet3DConditionModel",
    "vdp_layout": "vdm_jax, layout of video-diffusion-pytorch",
    "vdm_layout": "vdm_jax, layout of VDM",
}
TORCH_SIDES = ("vdp", "diffusers")
# Flags of the size of the network and of a batch.
FLAGS = {"dim": "dim", "batch": "batch", "frames": "num_frames", "side": "side"}
# Of the vdp layout, relative to video-diffusion-pytorch: seconds, seconds, peak memory.
TARGETS = {"train": 0.35, "sample": 0.25, "memory": 0.8}
RATIOS = {
    "train": "training_step_ratio",
    "sample": "sampling_step_ratio",
    "memory": "memory_ratio",
}
COLD, WARM = 20, 8  # seconds to the end of the first training step
NAMES = {
    "first_cold": "first training step, cold compilation cache, s",
    "first_warm": "first training step, warm compilation cache, s",
}


def measure(side: str, size: dict[str, int]) -> dict:
    """Return one side's measurement, made in this process."""
    if side in TORCH_SIDES:
        from perf import baselines

        return getattr(baselines, side)(size)
    return measure_ours(side.removesuffix("_layout"), size)


def measure_ours(layout: str, size: dict[str, int]) -> dict:
    """Return the measurement of a layout of our network."""
    import jax

    from perf import steps
    from perf.measure import measure_steps
    from vdm_jax import runtime
    from vdm_jax.training.exported import compile_step

    runtime.configure_jax()  # as a command does
    steps.SIZE.update(size)
    update, one_step, train_args, sample_args = steps.programs(layout)
    state, identity = train_args[0], [layout, size]
    compiled = compile_step(update.__wrapped__, *train_args, identity=identity)

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, *train_args[1:])
        metrics["loss"].block_until_ready()

    def sample() -> None:
        one_step(state.params, *sample_args[1:]).block_until_ready()

    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    result = measure_steps(parameters, train, sample)
    stats = jax.devices()[0].memory_stats()  # None on a CPU
    if stats:
        result["memory"] = stats["peak_bytes_in_use"] / 2**30
    # Counted last: counting first would delay the first step.
    return result | {"flops": steps.count_step_flops(layout)}


def run_turn(side: str, python: str, size: dict[str, int], cache: str) -> dict:
    """Return one side's measurement, made in a process of its own."""
    command = [python, str(Path(__file__)), f"--measure={side}"]
    command += [f"--{FLAGS[name]}={value}" for name, value in size.items()]
    done = subprocess.run(
        command,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(side: str, turns: list[dict]) -> dict[str, Any]:
    """Return medians; memory and warm first steps are those of later turns."""
    later = turns[1:] or turns
    row: dict[str, Any] = {"name": SIDES[side], "parameters": turns[0]["parameters"]}
    for what in ("train", "sample"):
        row[what] = statistics.median(s for one in turns for s in one[what])
        row[f"{what}_gflops"] = turns[0]["flops"][what] / 1e9
        row[f"{what}_gflops_a_second"] = row[f"{what}_gflops"] / row[what]
    row["memory"] = statistics.median(one["memory"] for one in later)
    row["cold_memory"] = turns[0]["memory"]
    row["first_cold"] = turns[0]["first"]
    row["first_warm"] = statistics.median(one["first"] for one in later)
    return row


def make_rows(sides: dict[str, dict], machine: str, command: str) -> list[dict]:
    """Return the rows with targets: our vdp layout and video-diffusion-pytorch."""
    from perf.rows import make_row

    about = {"better": "lower", "machine": machine, "command": command}
    rows = []
    if "vdp" in sides and "vdp_layout" in sides:
        ours, theirs = sides["vdp_layout"], sides["vdp"]
        for key, target in TARGETS.items():
            ratio = ours[key] / theirs[key]
            rows.append(make_row(RATIOS[key], ratio, target=target, **about))
        for key, target in (("first_cold", COLD), ("first_warm", WARM)):
            rows.append(make_row(NAMES[key], ours[key], target=target, **about))
    return rows


def format_side(row: dict[str, Any]) -> str:
    """Return a summary as one line of text."""
    steps = "".join(
        f"  {what} {row[what]:.3g} s ({row[f'{what}_gflops']:.0f} GFLOP, "
        f"{row[f'{what}_gflops_a_second']:.0f} per second)"
        for what in ("train", "sample")
    )
    return (
        f"{row['name']:40s} {row['parameters'] / 1e6:5.1f} M{steps}"
        f"  {row['memory']:.2f} GiB ({row['cold_memory']:.2f} cold)"
        f"  first step {row['first_cold']:.1f} s cold, {row['first_warm']:.1f} warm"
    )


def main() -> None:
    """Run turns, print the table, write the JSON."""
    sys.path.insert(0, str(HERE.parent))  # where this file is run by its path
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=list(SIDES), help="one side, here")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--baseline_python", default=".venv-baselines/bin/python")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", default=str(HERE / "race.json"))
    size = {"dim": 32, "batch": 4, "frames": 8, "side": 32}
    for name, value in size.items():
        parser.add_argument(f"--{FLAGS[name]}", dest=name, type=int, default=value)
    args = parser.parse_args()
    size = {name: getattr(args, name) for name in size}
    if args.measure:
        print(json.dumps(measure(args.measure, size)))
        return
    from perf import rows as perf_rows
    from perf.steps import device
    from vdm_jax.files import user_path  # not in the environment of the baselines

    out = Path(user_path(args.out, "--out"))
    sides = args.sides.split(",")
    turns: dict[str, list[dict]] = {side: [] for side in sides}
    load = []  # of the last minute, before each turn: a later one has that of the race
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(args.turns):
            load.append(os.getloadavg()[0])
            for side in sides:
                python = args.baseline_python if side in TORCH_SIDES else sys.executable
                turns[side].append(run_turn(side, python, size, cache))
                print(f"{side}: {turns[side][-1]}", flush=True)
    summaries = {side: summary(side, found) for side, found in turns.items()}
    machine = f"{platform.machine()}, {device()}"
    command = shlex.join(["python", "-m", "perf.race", *sys.argv[1:]])
    rows = make_rows(summaries, machine, command)
    detail = {"sides": summaries, "turns": args.turns, "load": load, "setting": size}
    perf_rows.write(out, rows, **detail)
    for row in summaries.values():
        print(format_side(row))
    for row in rows:
        print(perf_rows.format_row(row))
    print(f"load before each turn: {', '.join(f'{one:.2f}' for one in load)}")


if __name__ == "__main__":
    main()
