"""Compile every TPU kernel by Mosaic, for chips that are not here.

    pip install libtpu && python -m perf.tpu_kernels [--chips=v5e,v5p,v6e]

Forward and backward in bfloat16, at the shapes of VDM's text_small and ucf101, of
Imagen Video's base, and of Stable Diffusion 1.5. Prints cycles by the final schedule
(of a v5e; bundles of the other chips' schedules are theirs) and writes
perf/tpu_kernels.json. Without libtpu it says so and stops.
"""

import argparse
import importlib.util
import time
from pathlib import Path

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
    "imagen video base 12x24": (16, 288, 288, 1536, 24, 1),
    "stable diffusion 64x64": (2, 4096, 4096, 320, 8, 1),
    "stable diffusion 32x32": (2, 1024, 1024, 640, 8, 1),
    "stable diffusion 16x16": (2, 256, 256, 1280, 8, 1),
    "stable diffusion tokens 64x64": (2, 4096, 77, 320, 8, 1),
    "tune-a-video 64x64": (8, 4096, 4096, 320, 8, 2),
}
# Name -> frames, pixels, channels, heads, relative positions.
TEMPORAL = {
    "text_small 32x32": (24, 1024, 256, 4, "shaw"),
    "text_small 8x8": (24, 64, 1024, 16, "shaw"),
    "ucf101 32x32": (24, 1024, 512, 8, "shaw"),
    "ucf101 8x8": (24, 64, 2048, 32, "shaw"),
    "imagen video base 24x48": (16, 1152, 768, 12, "shaw"),
    "t5's bias 32x32": (24, 1024, 256, 4, "bias"),
    "heads of 128": (24, 1024, 256, 2, "shaw"),
    "tune-a-video 64x64": (8, 4096, 320, 8, ""),
}


def spatial(frames, queries, keys, channels, heads, reads):
    """Return forward and backward of `over_pixels`, and the shapes of arguments."""
    from vdm_jax.networks import attention, backends

    def both(q, k, v, cotangent):
        table = attention.FRAME_READS["previous"](frames) if reads > 1 else None
        out, vjp = jax.vjp(
            lambda *a: backends.over_pixels(*a, reads=table, backend="pallas"), q, k, v
        )
        return out, vjp(cotangent)

    d = channels // heads
    q = jax.ShapeDtypeStruct((1, frames, queries, heads, d), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, frames, keys, heads, d), jnp.bfloat16)
    return both, (q, k, k, q)


def temporal(frames, pixels, channels, heads, position):
    """Return forward and backward of `over_frames`, and the shapes of arguments."""
    from vdm_jax.networks import attention, backends

    d = channels // heads
    index = attention.relative_offsets(frames) + frames - 1

    def attend(q, k, v, mask, table):
        more = {}
        if position == "shaw":
            more = {"shaw": (table[index], table[index])}
        if position == "bias":
            more = {"bias": table.astype(jnp.float32)}
        return backends.over_frames(q, k, v, mask=mask, backend="pallas", **more)

    def both(q, k, v, mask, table, cotangent):
        out, vjp = jax.vjp(lambda q, k, v, t: attend(q, k, v, mask, t), q, k, v, table)
        return out, vjp(cotangent)

    q = jax.ShapeDtypeStruct((1, frames, pixels, heads, d), jnp.bfloat16)
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
    cycles.set_compiler_environment()
    cases = [("spatial", n, spatial(*a)) for n, a in SPATIAL.items()]
    cases += [("temporal", n, temporal(*a)) for n, a in TEMPORAL.items()]
    made, compiled = [], []
    for chip in args.chips.split(","):
        for kind, name, (fn, shapes) in cases:
            if args.only not in f"{kind} {name}":
                continue
            start = time.monotonic()
            cost = cycles.piece_cycles(fn, *shapes, topology=chip)
            seconds = time.monotonic() - start
            what = f"{kind} attention, {name}, {chip}"
            print(
                f"{what}: kernels {cost.pallas / 1e6:.3f} Mcycles, "
                f"around them {cost.xla / 1e6:.3f}, compiled in {seconds:.0f} s",
                flush=True,
            )
            compiled.append({"name": what, "pallas": cost.pallas, "xla": cost.xla})
            made.append(
                rows.make_row(
                    f"{what}, forward and backward, cycles",
                    cost.total,
                    better="lower",
                    machine=f"{chip}, compiled only",
                    command=COMMAND,
                )
            )
    if not args.only:
        rows.write(FILE, made, kernels=compiled)


if __name__ == "__main__":
    main()
