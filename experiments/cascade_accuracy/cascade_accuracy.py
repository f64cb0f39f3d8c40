"""Attribute accuracy of a cascade of moving shapes on held-out prompts, by stage.

    python -m experiments.cascade_accuracy.cascade_accuracy --cascade=runs/cascade

Prompts are sentences of the held-out labels.
Prints the table, writes it as a JSON next to this file, named after the cascade, and
writes sixteen videos of every stage into --out.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import sampling, video_io
from vdm_jax.data import shapes
from vdm_jax.evaluators.tables import attribute_table
from vdm_jax.metrics.shape_scores import SHAPES
from vdm_jax.metrics.tables import format_table
from vdm_jax.runtime import path_type


def held_out_prompts(config, num: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return held-out labels int [num, 4], in order, and a sentence of each."""
    numbers = np.resize(
        shapes.choose_held_out_combinations(config.data.held_out_combinations), num
    )
    labels = np.stack(np.unravel_index(numbers, shapes.ATTRIBUTE_SIZES), 1).astype(
        np.int32
    )
    rng = np.random.default_rng(seed)
    return labels, [shapes.caption(label, rng) for label in labels]


def real_clips(config, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return clips of these labels at a stage's size, uint8 [n, f, h, w, 3]."""
    video = config.video
    size = video.frames, video.height, video.width
    geometry = shapes.Geometry(*size, config.data.stride)
    rng = np.random.default_rng(seed)
    clips = []
    for label in labels:
        x, y = shapes.trajectory(label, rng, geometry)
        grey = shapes.coverage(int(label[0]), x, y, geometry)
        clips.append(np.rint(255 * grey[..., None] * shapes.COLOURS[label[1]]))
    return np.stack(clips).astype(np.uint8)


def main() -> None:
    """Sample, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cascade", required=True)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=path_type, default=Path("runs/cascade_measured"))
    args = parser.parse_args()
    cascade = cascades.read(args.cascade)
    labels, prompts = held_out_prompts(cascade.stages[0].config, args.num, args.seed)
    text, _ = cascades.encode_prompts(cascade, prompts)
    videos = cascades.sample(cascade, args.num, text, seed=args.seed)
    rows = {}
    for stage in cascade.stages:
        clips = real_clips(stage.config, labels, args.seed)
        samples = sampling.to_uint8(videos[stage.name])
        stride = stage.config.data.stride
        rows[stage.name] = SHAPES.attribute_scores(samples, labels, stride)
        real = SHAPES.attribute_scores(clips, labels, stride)
        rows[f"{stage.name}, real clips"] = real
        video_io.write_samples(
            args.out / stage.name, "samples", samples[:16], stage.config.video.fps, {},
            labels=prompts[:16], overwrite=True,
        )  # fmt: skip
    rows["chance"] = SHAPES.chance()
    table = attribute_table(rows)
    print(format_table(table.headings, table.rows))
    nfe = cascades.nfe(cascade)
    command = "python -m experiments.cascade_accuracy.cascade_accuracy"
    result = {
        "command": f"{command} --cascade={args.cascade} "
        f"--num={args.num} --seed={args.seed}",
        "rows": rows, "num": args.num, "nfe": nfe,
    }  # fmt: skip
    path = Path(__file__).with_name(f"{Path(args.cascade).name}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
