"""Compile every TPU kernel by Mosaic, for chips that are not here.

    pip install libtpu && python -m perf.tpu_kernels [--chips=v5e,v5p,v6e]

Forward and backward in bfloat16, at shapes of VDM's text_small and ucf101, of Imagen
Video's base and of Stable Diffusion 1.5. Prints the cycles of a v5e by the final
schedules, and that the other chips' compilers take the kernels. Results are kept in
perf/tpu_kernels.json; without libtpu it says so and stops.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from perf import rows
from vdm_jax.planning import cycles

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.tpu_kernels"
CHIPS = ("v5e", "v5p", "v6e")

# Name -> frames, queries, keys, channels, heads, frames that each frame reads.
SPATIAL = {
    "text_small 32x32": (24, 1024, 1024, 256, 4, 1),
    "text_small 16x16": (24, 256, 256, 512, 8, 1),
    "text_small 8x8": (24, 64, 64, 1024, 16, 1),
    "text_small tokens 32x32": (24, 1024, 257, 256, 4, 1),
    "ucf101 32x32": (24, 1024, 1024, 512, 8, 1),
    "ucf101 8x8": (24, 64, 64, 2048, 32, 1),
    "ucf101 16x16": (24, 256, 256, 1024, 16, 1),
    "imagen video base 24x40": (24, 960, 960, 768, 12, 1),
    "imagen video base 12x20": (24, 240, 240, 1536, 24, 1),
    "imagen video base tokens 24x40": (24, 960, 128, 768, 12, 1),
    "stable diffusion 64x64": (2, 4096, 4096, 320, 8, 1),
    "stable diffusion 32x32": (2, 1024, 1024, 640, 8, 1),
    "stable diffusion 16x16": (2, 256, 256, 1280, 8, 1),
    "stable diffusion tokens 64x64": (2, 4096, 77, 320, 8, 1),
    "tune-a-video 32x32": (8, 1024, 1024, 640, 8, 2),
}
# Name -> frames, pixels, channels, heads, relative positions.
TEMPORAL = {
    "text_small 32x32": (24, 1024, 256, 4, "shaw"),
    "text_small 8x8": (24, 64, 1024, 16, "shaw"),
    "ucf101 32x32": (24, 1024, 512, 8, "shaw"),
    "ucf101 8x8": (24, 64, 2048, 32, "shaw"),
    "text_small 16x16": (24, 256, 512, 8, "shaw"),
    "ucf101 16x16": (24, 256, 1024, 16, "shaw"),
    "imagen video base 24x40": (24, 960, 768, 12, "bias"),
    "imagen video base 12x20": (24, 240, 1536, 24, "bias"),
    "imagen video base 6x10": (24, 60, 2304, 36, "bias"),
    "imagen video base 3x5": (24, 15, 3072, 48, "bias"),
    "t5's bias 32x32": (24, 1024, 256, 4, "bias"),
    "heads of 128": (24, 1024, 256, 2, "shaw"),
    "tune-a-video 64x64": (8, 4096, 320, 8, ""),
}


def spatial(frames, queries, keys, channels, heads, reads):
    """Return forward and backward of `over_pixels`, and the shapes of arguments."""
    from vdm_jax.networks import attention, backends

    def both(q, k, v, cotangent):
        table = attention.FRAME_READS["previous"](frames) if reads > 1 else None

        def attend(*qkv):
            qkv = (x.reshape(*x.shape[:3], heads, -1) for x in qkv)
            out = backends.over_pixels(*qkv, reads=table, backend="pallas")
            return out.reshape(q.shape)

        out, vjp = jax.vjp(attend, q, k, v)
        return out, vjp(cotangent)

    q = jax.ShapeDtypeStruct((1, frames, queries, channels), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, frames, keys, channels), jnp.bfloat16)
    return both, (q, k, k, q)


def temporal(frames, pixels, channels, heads, position):
    """Return forward and backward of `over_frames`, and the shapes of arguments."""
    from vdm_jax.networks import attention, backends

    d = channels // heads
    index = attention.relative_offsets(frames) + frames - 1

    def attend(q, k, v, mask, table):
        more: dict[str, Any] = {}
        if position == "shaw":
            more = {"shaw": (table[index], table[index])}
        if position == "bias":
            more = {"bias": table.astype(jnp.float32)}
        qkv = (x.reshape(*x.shape[:3], heads, d) for x in (q, k, v))
        out = backends.over_frames(*qkv, mask=mask, backend="pallas", **more)
        return out.reshape(q.shape)

    def both(q, k, v, mask, table, cotangent):
        out, vjp = jax.vjp(lambda q, k, v, t: attend(q, k, v, mask, t), q, k, v, table)
        return out, vjp(cotangent)

    q = jax.ShapeDtypeStruct((1, frames, pixels, channels), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((1, frames, frames), bool)
    shape = (heads, frames, frames) if position == "bias" else (2 * frames - 1, d)
    return both, (q, q, q, mask, jax.ShapeDtypeStruct(shape, jnp.bfloat16), q)


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--only", default="", help="cases whose names hold this")
    args = parser.parse_args()
    if not importlib.util.find_spec("libtpu"):
        print("skipped: no TPU's compiler here, which `pip install libtpu` brings")
        return
    cases = [("spatial", n, spatial(*a)) for n, a in SPATIAL.items()]
    cases += [("temporal", n, temporal(*a)) for n, a in TEMPORAL.items()]
    known = {f"{kind} attention, {n}, {c}" for kind, n, _ in cases for c in CHIPS}
    before = json.loads(FILE.read_text())["kernels"] if FILE.exists() else {}
    compiled = {what: row for what, row in before.items() if what in known}
    for chip in args.chips.split(","):
        for kind, name, (fn, shapes) in cases:
            what = f"{kind} attention, {name}, {chip}"
            if args.only not in what:
                continue
            start = time.monotonic()
            cost = cycles.piece_cycles(fn, *shapes, topology=chip)
            print(
                f"{what}: kernels {cost.pallas / 1e6:.3f} Mcycles, around them "
                f"{cost.xla / 1e6:.3f}, in {time.monotonic() - start:.0f} s",
                flush=True,
            )
            compiled[what] = {"kernels": cost.pallas / 1e6, "around": cost.xla / 1e6}
            made = [
                rows.make_row(
                    f"{name}, Mcycles of the kernels",
                    row["kernels"],
                    better="lower",
                    machine=f"{name.rpartition(' ')[2]}, compiled only",
                    command=COMMAND,
                )
                for name, row in compiled.items()
            ]
            rows.write(FILE, made, kernels=compiled)


if __name__ == "__main__":
    main()
