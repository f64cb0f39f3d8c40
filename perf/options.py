"""Time and memory of a training step under each option of it, beside the plain step.

    python -m perf.options                  the race's setting
    python -m perf.options --setting=vdm    for an accelerator: VDM's text_small

The race's setting and network are those of perf/race.py (the peer's layout); vdm
is the widths and attention of Video Diffusion Models' smaller text model (without the
text) at its 16 frames of 64x64. The options take turns, of which the first, which
compiles, does not count; the figures are medians. *Kept* is what the forward pass keeps
for the backward one, before a compiler changes anything; *working memory* what the
compiled program asks for beside its arguments. Prints the table and writes
perf/options.json, or --out.
"""

import argparse
import functools
import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from configs.vdm import levels
from perf import race
from vdm_jax.runtime import path_type
from vdm_jax.training import step

HERE = Path(__file__).parent
STEPS = 5
SETTINGS: dict[str, tuple[str, dict]] = {  # layout, changes to the config
    "race": ("peer", {}),
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
    """To the sections of a config."""
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
    """GiB that the backward pass reads, beside the parameters."""
    config, model = race.setting(layout, options)
    b = race.SIZE["batch"] // config.train.grad_accum_steps
    batch = {"video": np.zeros((b, *model.shape), np.uint8)}
    loss = step.make_loss(model, "snr_plus_one")

    def backward(params):
        return jax.vjp(lambda p: loss(p, {}, batch, jax.random.key(0))[0], params)[1]

    params = jax.eval_shape(model.init_params, jax.random.key(0))
    read, given = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (jax.eval_shape(backward, params), params)
    )
    return (read - given) / 2**30


def timed(compiled, given: tuple) -> list[float]:
    """Seconds of STEPS steps, after one that does not count."""
    state, *others = given
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, *others)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main() -> None:
    """Take turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=list(SETTINGS), default="race")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=path_type, default=HERE / "options.json")
    args = parser.parse_args()
    layout = SETTINGS[args.setting][0]
    names = OPTIONS[args.setting]

    config, model = race.setting(layout, changes(args.setting, names[0]))
    params = model.init(jax.random.key(config.seed))

    def start(option: str, params) -> tuple:
        return race.programs(layout, changes(args.setting, option), params)[2]

    seen: dict[str, list[float]] = {option: [] for option in names}
    compiled = {}
    for option in names:  # one by one: a GPU times its kernels while it compiles
        train = race.programs(layout, changes(args.setting, option), params)[0]
        given = jax.eval_shape(functools.partial(start, option), params)
        started = time.perf_counter()
        compiled[option] = train.lower(*given).compile()
        took = time.perf_counter() - started
        print(f"{option}: compiled in {took:.0f} s", flush=True)
    for _ in range(args.turns):
        for option, found in seen.items():
            found += timed(compiled[option], start(option, copied(params)))
            print(option, [round(s, 4) for s in found[-STEPS:]], flush=True)

    rows = []
    print("| | a step | | kept | | working memory | |\n|---|---|---|---|---|---|---|")
    for option, found in seen.items():
        working = compiled[option].memory_analysis().temp_size_in_bytes
        row = {
            "option": option,
            "seconds": statistics.median(found),
            "kept": kept(layout, changes(args.setting, option)),
            "working": working / 2**30,
        }
        rows.append(row)
        cells = [f"`{option}`"]
        for key, unit in (("seconds", "s"), ("kept", "GiB"), ("working", "GiB")):
            row[f"{key}_over"] = row[key] / rows[0][key]
            cells += [f"{row[key]:.4g} {unit}", f"{row[f'{key}_over']:.2f}"]
        print(f"| {' | '.join(cells)} |")
    size = sum(p.size for p in jax.tree.leaves(params))
    result = {
        "rows": rows,
        "turns": args.turns,
        "setting": {"batch": race.SIZE["batch"], "shape": model.shape},
        "parameters": size,
        "machine": f"{platform.machine()}, {race.device()}",
        "command": shlex.join(["python", "-m", "perf.options", *sys.argv[1:]]),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def copied(params):
    """A step takes its state for good."""
    return jax.tree.map(jax.numpy.copy, params)


if __name__ == "__main__":
    main()
