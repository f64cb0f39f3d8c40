"""Cycles of VDM's training steps on a TPU v5e, by their pieces; no TPU is needed.

    pip install -r requirements-plan.txt && python -m perf.tpu_pieces [--only=ucf101]

A piece is a module of the network as it is trained: forward and backward with dropout,
one example of 16 frames and 8 images in bfloat16. The last one is the optimiser with
the average, on the state of a chip of fsdp=16. Attention is compiled as it is chosen on
a TPU, by XLA, and with heads of 128. Compiling a model takes ten minutes on two cores;
a piece that was compiled before is read from the user's cache folder. Writes
perf/tpu_pieces.json, of which the models that did not run stay.
"""

import argparse
import dataclasses
import json
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


def measure(variant: str, network: dict[str, Any]) -> list[PieceCycles]:
    """Return the pieces of a training step of a model on 16 chips, an example each."""
    chips = topology.Topology.parse("v5e:4x4")
    axes = dict.fromkeys(sharding.MESH_AXES, 1) | {"fsdp": chips.num_chips}
    config = vdm.get_config(variant)
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
    kinds = ("ResBlock", "SpatialAttention", "TemporalAttention")
    return [
        piece
        for piece in pieces
        if piece["name"].startswith(kinds) and f"[{size},{size}," in piece["name"]
    ]


def make_rows(models: dict[str, list[dict[str, Any]]]) -> list[dict]:
    """Return rows of perf/: cycles and utilisation of each model and of its 32x32."""
    about: dict[str, Any] = {"machine": "v5e, compiled only", "command": COMMAND}
    made = []
    for name, pieces in models.items():
        target = MODELS[name][2] if name in MODELS else None
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
        made = make_rows(models)
        rows.write(FILE, made, models=models)
        for row in made:
            if row["name"].startswith(name):
                print(rows.format_row(row), flush=True)


if __name__ == "__main__":
    main()
