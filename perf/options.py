"""Time and memory of a training step with each of its options.

    python -m perf.options                  size and network of perf/race.py
    python -m perf.options --setting=vdm    for an accelerator: VDM's text_small

The setting "race" has size and network of perf/race.py in the vdp layout. "vdm" has the
widths and the attention of Video Diffusion Models' smaller text model (without text) at
its 16 frames of 64x64. The options take turns; the first turn, which compiles, is not
counted, and the figures are medians. *Kept* is what the forward pass stores for the
backward pass, before compilation. *Working memory* is what the compiled program
allocates besides its arguments. Prints the table, writes perf/options.json or --out.
"""

import argparse
import functools
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.vdm import levels
from perf import rows, steps
from vdm_jax.runtime import path_type
from vdm_jax.training import step

HERE = Path(__file__).parent
STEPS = 5  # timed steps per turn
FIGURES = {
    "seconds": "seconds per step",
    "kept": "kept activations",
    "working": "working memory",
}
SETTINGS: dict[str, tuple[str, dict]] = {  # layout, changes to the config
    "race": ("vdp", {}),
    "vdm": (
        "vdm",
        {
            "video": {"frames": 16, "height": 64, "width": 64},
            "network": {"levels": levels(128, (1, 2, 4), 1, 64), "head_dim": 64},
        },
    ),
}
OPTIONS = {
    "race": (
        "plain",
        "dtype=bfloat16",
        "remat=dots",
        "remat=full",
        "grad_accum_steps=2",
        "grad_accum_steps=4",
        "optimizer=muon",
        "ema_decay=0",
    ),
    "vdm": (
        "dtype=bfloat16",
        "dtype=bfloat16 remat=dots",
        "dtype=bfloat16 remat=full",
        "dtype=float32",
    ),
}


def changes(setting: str, option: str) -> dict[str, dict]:
    """Return the changes of an option to the config, by section."""
    found = {name: dict(values) for name, values in SETTINGS[setting][1].items()}
    for pair in option.split() if option != "plain" else ():
        field, value = pair.split("=")
        section = (
            "train"
            if field in ("grad_accum_steps", "optimizer", "ema_decay")
            else "network"
        )
        typed = {"grad_accum_steps": int, "ema_decay": float}.get(field, str)(value)
        found.setdefault(section, {})[field] = typed
    return found


def kept(layout: str, options: dict) -> float:
    """Return GiB that the backward pass reads, without the parameters."""
    config, model = steps.setting(layout, options)
    b = steps.SIZE["batch"] // config.train.grad_accum_steps
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    loss = step.make_loss(model, "snr_plus_one")

    def backward(params):
        return jax.vjp(lambda p: loss(p, {}, batch, jax.random.key(0))[0], params)[1]

    params = jax.eval_shape(model.init_params, jax.random.key(0))
    read, parameters = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(backward, params), params)
    )
    return (read - parameters) / 2**30


def timed(compiled, args: tuple) -> list[float]:
    """Return seconds of STEPS steps, after one that is not counted."""
    state, *others = args
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, *others)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def make_rows(options: list[dict], machine: str, command: str) -> list[dict]:
    """Return rows of perf/: each option's figures over those of the first."""
    first, *others = options
    about: dict[str, Any] = {"better": "lower", "machine": machine, "command": command}
    return [
        rows.make_row(
            f"{what}, {row['option']} over {first['option']}",
            row[f"{key}_over"],
            **about,
        )
        for row in others
        for key, what in FIGURES.items()
    ]


def measure(
    names: tuple[str, ...], layout: str, setting: str, turns: int
) -> list[dict]:
    """Return the figures of each option."""
    config, model = steps.setting(layout, changes(setting, names[0]))
    params = model.init(jax.random.key(config.seed))

    def start(option: str, params) -> tuple:
        return steps.programs(layout, changes(setting, option), params)[2]

    times: dict[str, list[float]] = {option: [] for option in names}
    compiled = {}
    for option in names:  # one by one: a GPU times its kernels while it compiles
        train = steps.programs(layout, changes(setting, option), params)[0]
        shapes = jax.eval_shape(functools.partial(start, option), params)
        started = time.perf_counter()
        compiled[option] = train.lower(*shapes).compile()
        seconds = time.perf_counter() - started
        print(f"{option}: compiled in {seconds:.0f} s", flush=True)
    for _ in range(turns):
        for option, seconds in times.items():
            seconds += timed(compiled[option], start(option, copied(params)))
            print(option, [round(s, 4) for s in seconds[-STEPS:]], flush=True)
    options: list[dict] = []
    for option, seconds in times.items():
        working = compiled[option].memory_analysis().temp_size_in_bytes
        row = {
            "option": option,
            "seconds": statistics.median(seconds),
            "kept": kept(layout, changes(setting, option)),
            "working": working / 2**30,
        }
        options.append(row)
        row |= {f"{key}_over": row[key] / options[0][key] for key in FIGURES}
    return options


def main() -> None:
    """Run turns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=list(SETTINGS), default="race")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=path_type, default=HERE / "options.json")
    args = parser.parse_args()
    layout, names = SETTINGS[args.setting][0], OPTIONS[args.setting]
    options = measure(names, layout, args.setting, args.turns)
    print("| | step | | kept | | working memory | |\n|---|---|---|---|---|---|---|")
    for row in options:
        cells = [f"`{row['option']}`"]
        for key, unit in (("seconds", "s"), ("kept", "GiB"), ("working", "GiB")):
            cells += [f"{row[key]:.4g} {unit}", f"{row[f'{key}_over']:.2f}"]
        print(f"| {' | '.join(cells)} |")
    _, model = steps.setting(layout, changes(args.setting, names[0]))
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    machine = f"{platform.machine()}, {steps.device()}"
    command = shlex.join(["python", "-m", "perf.options", *sys.argv[1:]])
    rows.write(
        args.out,
        make_rows(options, machine, command),
        options=options,
        turns=args.turns,
        setting={"batch": steps.SIZE["batch"], "shape": model.shape},
        parameters=sum(p.size for p in jax.tree.leaves(shapes)),
    )


def copied(params):
    """Return a copy of parameters, because a step donates its state."""
    return jax.tree.map(jax.numpy.copy, params)


if __name__ == "__main__":
    main()
