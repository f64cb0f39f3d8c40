"""Cycles of pieces of VDM's networks on a TPU v5e, by its compiler; no TPU is needed.

    pip install libtpu && python -m perf.tpu_pieces [--pieces=spatial_256_32]

A piece is a residual block or an attention layer with its norm and projections, at one
width and size, forward and backward, one example of 16 frames and 8 images in
bfloat16. Attention is compiled as it is chosen on a TPU, and by XLA.
Compiling takes up to minutes a piece on two cores: results are kept in
perf/tpu_pieces.json, and only pieces that it lacks are compiled.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from perf import rows
from vdm_jax.networks.blocks import ResBlock, SpatialAttention, TemporalAttention
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.spec import UNetSpec
from vdm_jax.planning import cycles

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.tpu_pieces"
FRAMES = 24
LAYERS = {"spatial": SpatialAttention, "temporal": TemporalAttention}
# Kind, width, size, changes of the network's settings.
PIECES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "spatial_256_32": ("spatial", 256, 32, {}),
    "spatial_256_32_xla": ("spatial", 256, 32, {"attention_backend": "xla"}),
    "spatial_256_32_heads_of_128": ("spatial", 256, 32, {"head_dim": 128}),
    "temporal_256_32": ("temporal", 256, 32, {}),
    "temporal_256_32_xla": ("temporal", 256, 32, {"attention_backend": "xla"}),
    "temporal_256_32_heads_of_128": ("temporal", 256, 32, {"head_dim": 128}),
    "spatial_512_32": ("spatial", 512, 32, {}),
    "temporal_512_32": ("temporal", 512, 32, {}),
    "residual_256_32": ("residual", 256, 32, {}),
    "residual_256_32_dropout": ("residual", 256, 32, {"dropout": 0.1}),
    "residual_128_64": ("residual", 128, 64, {}),
}


def piece(kind: str, width: int, size: int, changes: dict[str, Any]):
    """Return forward and backward of a piece, and the shapes of its arguments."""
    spec = UNetSpec(levels=(), dtype="bfloat16", **changes)
    layer: Any = ResBlock(spec, width) if kind == "residual" else LAYERS[kind](spec)
    train = {"train": True} if kind == "residual" else {}

    def apply(params, x, vector, mask, seed) -> Any:
        rngs = {"dropout": jax.random.fold_in(jax.random.key(0), seed)}
        inputs = Inputs(vector=vector, frame_mask=mask)
        return layer.apply(params, x, inputs, rngs=rngs, **train)

    def both(params, x, vector, mask, seed, cotangent):
        def of(params, x, vector):
            return apply(params, x, vector, mask, seed)

        y, vjp = jax.vjp(of, params, x, vector)
        return y, vjp(cotangent)

    x = jax.ShapeDtypeStruct((1, FRAMES, size, size, width), jnp.bfloat16)
    vector = jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, FRAMES), bool)

    def init(x, vector, mask):
        inputs = Inputs(vector=vector, frame_mask=mask)
        return layer.init(jax.random.key(0), x, inputs)

    params = jax.eval_shape(init, x, vector, mask)
    return both, (params, x, vector, mask, jax.ShapeDtypeStruct((), jnp.int32), x)


def make_rows(pieces: dict[str, dict[str, float]]) -> list[dict]:
    """Return rows of perf/: utilisation and millions of cycles of each piece."""
    about: dict[str, Any] = {"machine": "v5e, compiled only", "command": COMMAND}
    made = []
    for name, row in pieces.items():
        made += [
            rows.make_row(f"{name}, Mcycles", row["mcycles"], better="lower", **about),
            rows.make_row(
                f"{name}, utilisation", row["utilisation"], better="higher", **about
            ),
        ]
    return made


def main() -> None:
    """Compile what is missing, print, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--pieces", default=",".join(PIECES))
    args = parser.parse_args()
    pieces = json.loads(FILE.read_text())["pieces"] if FILE.exists() else {}
    for name in args.pieces.split(","):
        if name not in pieces:
            fn, shapes = piece(*PIECES[name])
            cost = cycles.piece_cycles(fn, *shapes)
            pieces[name] = {
                "mcycles": cost.total / 1e6,
                "kernels": cost.pallas / 1e6,
                "gflops": cost.flops / 1e9,
                "utilisation": cost.utilisation,
                "memory_mib": cost.memory / 2**20,
            }
            rows.write(FILE, make_rows(pieces), pieces=pieces)
        print(name, {k: round(v, 3) for k, v in pieces[name].items()}, flush=True)


if __name__ == "__main__":
    main()
