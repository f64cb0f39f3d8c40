"""Cycles of VDM's training steps on a TPU v5e, by their pieces; no TPU is needed.

    pip install -r requirements-plan.txt && python -m perf.tpu_pieces [--only=ucf101]

A piece is a module of the network as it is trained: forward and backward with dropout,
one example of 16 frames and 8 images in bfloat16. The last one is the optimiser with
the average, on the state of a chip of fsdp=16. Attention is compiled as it is chosen on
a TPU, by XLA, and with heads of 128. Compiling a model takes ten minutes on two cores;
a piece that was compiled before is read from the user's cache folder. Writes
perf/tpu_pieces.json, of which the models that did not run stay, and prints the table of
docs/performance.md. Those called "before" there are of `plan.py --cycles --json` at
commit 333ddb3, and have no rows.
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax

from configs import vdm
from perf import rows
from vdm_jax import sharding
from vdm_jax.planning import plan, programs, topology
from vdm_jax.planning.cycles import V5E_FLOPS_PER_CYCLE
from vdm_jax.planning.pieces import PieceCycles

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.tpu_pieces"
# Name -> the config's variant, changes of its network, target.
MODELS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "text_small": ("text_small", {}, 0.45),
    "text_small, attention by XLA": ("text_small", {"attention_backend": "xla"}, None),
    "text_small, heads of 128": ("text_small", {"head_dim": 128}, None),
    "ucf101": ("ucf101", {}, 0.55),
}
LEVEL_TARGET = 0.4
KINDS = {
    "ResBlock": "residual blocks",
    "SpatialAttention": "attention over the frame",
    "TemporalAttention": "attention over time",
}


def measure(variant: str, network: dict[str, Any]) -> list[PieceCycles]:
    """Return the pieces of a training step of a model on 16 chips, an example each."""
    chips = topology.Topology.parse("v5e:4x4")
    axes = dict.fromkeys(sharding.MESH_AXES, 1) | {"fsdp": chips.num_chips}
    config: Any = vdm.get_config(variant)
    with config.unlocked():
        config.network.update(network)
    config = programs.complete(config, chips.num_chips, "train", axes)
    pieces = []
    for piece in plan.step_pieces(programs.Work("train", config), chips, axes):
        print(f"{piece.calls} x {piece.name}: {piece.cycles / 1e6:.2f} Mcycles")
        pieces.append(piece)
    return pieces


def summarise(pieces: list[dict[str, Any]]) -> dict[str, float]:
    """Return cycles and utilisation of pieces, and of XLA's part of them alone."""
    cycles, pallas, flops = (
        sum(piece[key] for piece in pieces) for key in ("cycles", "pallas", "flops")
    )
    return {
        "mcycles": cycles / 1e6,
        "utilisation": flops / (cycles * V5E_FLOPS_PER_CYCLE),
        "utilisation without kernels' cycles": flops
        / ((cycles - pallas) * V5E_FLOPS_PER_CYCLE),
    }


def level(pieces: list[dict[str, Any]], size: int = 32) -> list[dict[str, Any]]:
    """Return the residual blocks and attention layers of a size."""
    return [piece for piece in pieces if group(piece).endswith(f" {size}x{size}")]


def group(piece: dict[str, Any]) -> str:
    """Return the row of the table that a piece is in."""
    kind, size = piece["name"].split()[0], re.search(r"\[(\d+),", piece["name"])
    if kind in KINDS and size:
        return f"{KINDS[kind]}, {size[1]}x{size[1]}"
    return piece["name"] if kind == "optimiser" else "ends, and changes of size"


def make_groups(pieces: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return `summarise` of each row of the table, and of all."""
    names = sorted({group(piece) for piece in pieces})
    groups = {
        name: summarise([piece for piece in pieces if group(piece) == name])
        for name in names
    }
    return groups | {"all": summarise(pieces)}


def table(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table of docs/performance.md: Mcycles, and utilisation."""
    lines = [["Mcycles (utilisation)", *groups], ["---"] * (len(groups) + 1)]
    for name in next(iter(groups.values())):
        cells = (each[name] for each in groups.values())
        lines.append(
            [name, *(f"{c['mcycles']:.1f} ({c['utilisation']:.3f})" for c in cells)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_rows(models: dict[str, list[dict[str, Any]]]) -> list[dict]:
    """Return rows of perf/: cycles and utilisation of each model and of its 32x32."""
    about: dict[str, Any] = {"machine": "v5e, compiled only", "command": COMMAND}
    made = []
    for name in filter(models.__contains__, MODELS):
        pieces, target = models[name], MODELS[name][2]
        parts = ("", pieces, target), (", 32x32", level(pieces), LEVEL_TARGET)
        for part, own, goal in parts:
            for what, result in summarise(own).items():
                made.append(
                    rows.make_row(
                        f"{name}{part}, {what}",
                        result,
                        better="lower" if what == "mcycles" else "higher",
                        target=goal if what == "utilisation" and target else None,
                        **about,
                    )
                )
    return made


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--only", default=";".join(MODELS), help="names, by semicolons")
    args = parser.parse_args()
    topology.set_environment()
    jax.config.update("jax_platforms", "cpu")
    models = json.loads(FILE.read_text())["models"] if FILE.exists() else {}
    for name in args.only.split(";"):
        variant, network, _ = MODELS[name]
        models[name] = [dataclasses.asdict(p) for p in measure(variant, network)]
        groups = {name: make_groups(pieces) for name, pieces in models.items()}
        rows.write(FILE, make_rows(models), groups=groups, models=models)
        print(table(groups), flush=True)


if __name__ == "__main__":
    main()
