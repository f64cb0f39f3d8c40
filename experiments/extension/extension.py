"""Extension by replacement and by reconstruction guidance, measured from pixels.

    python -m experiments.extension.extension --workdir=models/bouncing

Ten methods (replacement, and reconstruction guidance with w_r = 1, 2, 4, 9, each with
and without the Langevin corrector) add one block to the same 64 first blocks. The best
method of reconstruction and of replacement then add four. Each result is stored, so the
same command resumes. Prints the table, writes OUT/results.json, and OUT/METHOD.gif and
.png of each method. One seed.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

from experiments.extension import continuation
from vdm_jax import runs, sampling, video_io
from vdm_jax.data import bouncing, shapes
from vdm_jax.files import atomic_write
from vdm_jax.metrics.shape_detection import detect_shapes
from vdm_jax.metrics.shape_scores import BOUNCING
from vdm_jax.metrics.tables import format_table
from vdm_jax.runtime import path_type

WEIGHTS = (0, 1, 2, 4, 9)  # w_r; 0 is replacement alone
CORRECTORS = (0.0, 0.1)
LONG = 4  # blocks added by the best methods
NUM_SHOWN = 8
HEADINGS = (
    "method", "added", "position", "inside", "ratio", "velocity", "inside", "ratio",
    "median position", "median inside", "late position",
    "shape", "colour", "axis", "speed", "all", "template mse", "seconds",
)  # fmt: skip


def name(weight: int, corrector: float, blocks: int) -> str:
    """Return the name of a method in the table and in file names."""
    kind = f"reconstruction {weight}" if weight else "replacement"
    return kind + ", corrected" * (corrector > 0) + f", {blocks} blocks" * (blocks > 1)


def run(loaded, first: np.ndarray, weight: int, corrector: float, blocks: int, args):
    """Return videos uint8 [n, f, h, w, c] that start with `first`, and seconds."""
    settings = sampling.Settings(
        steps=args.steps, sampler=args.sampler, ancestral_gamma=args.ancestral_gamma,
        langevin_delta=corrector, reconstruction_weight=weight,
        batch_size=args.batch_size,
    )  # fmt: skip
    num, block = first.shape[:2]
    frames = block + blocks * (block - block // 2)
    video = np.zeros((num, frames, *first.shape[2:]), first.dtype)
    mask = np.zeros((num, frames, *first.shape[2:4], 1), bool)
    video[:, :block], mask[:, :block] = first, True
    started = time.perf_counter()
    inputs = sampling.SamplingInputs(observation=sampling.Observation(video, mask))
    videos = sampling.extend_in_blocks(
        loaded.model, loaded.params, num, settings, inputs, sampling.Run(args.seed)
    )
    return sampling.to_uint8(videos), time.perf_counter() - started


def scores(videos: np.ndarray, geometry: shapes.Geometry) -> dict:
    """Return errors of continuation at the start of blocks and inside of the first.

    `continuation_errors` in pixels, averaged over videos: inside, of
    the first block, which is sampled as a whole; seam, of the first new frame of each
    block; late, of the other new frames.
    """
    block = geometry.frames
    first = continuation.continuation_errors(videos[:, :block], geometry)
    errors = continuation.continuation_errors(videos, geometry)
    seams = np.arange(block, videos.shape[1], block - block // 2)
    late = np.setdiff1d(np.arange(block, videos.shape[1]), seams)
    inside = {k: e[:, continuation.CONTEXT_FRAMES :] for k, e in first.items()}
    at_seam = {k: e[:, seams] for k, e in errors.items()}
    same = continuation.consistent_attributes(videos)
    result = {
        "inside": {k: float(e.mean()) for k, e in inside.items()},
        "median inside": {k: float(np.median(e)) for k, e in inside.items()},
        "consistent": dict(zip(BOUNCING.names, same.mean(0).tolist(), strict=True)),
        "all": float(same.all(1).mean()),
        "template_mse": float(detect_shapes(videos)["template_mse"].mean()),
    }
    if not len(seams):  # of the first blocks alone
        return result
    return result | {
        "seam": {k: float(e.mean()) for k, e in at_seam.items()},
        "median seam": {k: float(np.median(e)) for k, e in at_seam.items()},
        "ratio": {k: float(at_seam[k].mean() / inside[k].mean()) for k in inside},
        "late": float(errors["position"][:, late].mean()),
    }


def cells(label: str, row: dict) -> list[str]:
    """Return a formatted row of the table; absent values are dashes."""
    text = [label, str(row["blocks"])]
    for key in ("position", "velocity"):
        for part in ("seam", "inside", "ratio"):
            text.append(f"{row[part][key]:.3f}" if part in row else "–")
    for part in ("median seam", "median inside"):
        text.append(f"{row[part]['position']:.3f}" if part in row else "–")
    text.append(f"{row['late']:.3f}" if "late" in row else "–")
    text += [f"{row['consistent'][key]:.2f}" for key in BOUNCING.names]
    return (
        text
        + [f"{row[k]:.2f}" for k in ("all", "template_mse")]
        + [f"{row['seconds']:.0f}"]
    )


def real(geometry: shapes.Geometry, num: int, frames: int) -> np.ndarray:
    """Return held-out videos of any length at the speeds of this geometry."""
    longer = dataclasses.replace(geometry, frames=frames)
    clips = []
    for i in range(num):
        rng = np.random.default_rng((3, i))
        label = np.array(np.unravel_index(i % 72, shapes.ATTRIBUTE_SIZES))
        x, y = bouncing.trajectory(
            label, rng, longer, step=bouncing.fast_speed(geometry)
        )
        grey = shapes.coverage(int(label[0]), x, y, geometry)
        clips.append(np.rint(255 * grey[..., None] * shapes.COLOURS[label[1]]))
    return np.stack(clips).astype(np.uint8)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Extension, measured from pixels.")
    parser.add_argument("--workdir", default="models/bouncing")
    parser.add_argument("--out", type=path_type, default=Path("runs/extension"))
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--sampler", default="ancestral")
    parser.add_argument("--ancestral_gamma", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=32)
    return parser.parse_args()


def read_results(file: Path, setting: dict[str, str]) -> dict:
    """Return stored results of this setting, or new ones."""
    results: dict = {"setting": setting, "rows": {}}
    if file.is_file():
        results = json.loads(file.read_text())
    if results["setting"] != setting:
        raise SystemExit(f"{file} was made with {results['setting']}: another --out")
    return results


def main() -> None:
    """Run missing methods, print the table."""
    args = arguments()
    loaded = runs.load(args.workdir)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    setting = {k: str(v) for k, v in vars(args).items() if k != "out"}
    results = read_results(file, setting)
    rows = results["rows"]
    geometry = shapes.Geometry(*loaded.model.video_shape[:3])
    block = geometry.frames

    def store(label: str, videos: np.ndarray, blocks: int, seconds: float) -> None:
        rows[label] = scores(videos, geometry) | {"blocks": blocks, "seconds": seconds}
        stem = args.out / label.replace(", ", "-").replace(" ", "-")
        grid = video_io.video_grid(videos[: NUM_SHOWN // 2], columns=NUM_SHOWN // 2)
        gif, sheet = stem.with_suffix(".gif"), stem.with_suffix(".png")
        video_io.write_gif(gif, grid, loaded.config.video.fps, scale=4, overwrite=True)
        video_io.write_sheet(sheet, videos[:NUM_SHOWN], overwrite=True)
        with atomic_write(file, overwrite=True) as path:
            path.write_text(json.dumps(results, indent=1) + "\n")
        print(label, json.dumps(rows[label]), flush=True)

    for blocks in (1, LONG):
        frames = block + blocks * (block - block // 2)
        store(f"real, {blocks} blocks", real(geometry, args.num, frames), blocks, 0.0)

    # The first blocks of all methods: unconditional samples.
    settings = sampling.Settings(
        steps=128, sampler="ancestral", ancestral_gamma=0.3, batch_size=args.batch_size
    )
    seed = sampling.Run(args.seed + 1)
    first = sampling.sample(loaded.model, loaded.params, args.num, settings, run=seed)

    if "first blocks" not in rows:
        store("first blocks", sampling.to_uint8(first), 0, 0.0)

    def add(weight: int, corrector: float, blocks: int) -> None:
        label = name(weight, corrector, blocks)
        if label not in rows:
            videos, seconds = run(loaded, first, weight, corrector, blocks, args)
            store(label, videos, blocks, seconds)

    methods = [(weight, corrector) for corrector in CORRECTORS for weight in WEIGHTS]
    for weight, corrector in methods:
        add(weight, corrector, 1)

    def seam(method: tuple[int, float]) -> float:
        return rows[name(*method, 1)]["ratio"]["position"]

    for with_weight in (True, False):
        some = [m for m in methods if bool(m[0]) == with_weight]
        add(*min(some, key=seam), LONG)
    table = [cells(label, row) for label, row in rows.items()]
    print(format_table(list(HEADINGS), table))
    print(f"{args.num} videos, {args.steps} steps, {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
