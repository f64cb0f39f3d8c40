"""What a cascade of moving shapes shows of prompts it never saw, stage by stage.

    python -m experiments.cascade_accuracy.cascade_accuracy --cascade=runs/cascade --num=200

Prompts are sentences of the labels that training left out. A stage's videos are
compared with templates at its own size (vdm_jax/metrics/shape_detection.py); beside
them stand real clips of the same labels, brought to the same size, and chance. Prints the
table, writes it as a JSON beside this, named after the cascade, and sixteen videos of
every stage under --out, to look at.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vdm_jax import cascade as cascades
from vdm_jax import sampling, video_io
from vdm_jax.data import shapes
from vdm_jax.metrics import shape_detection as measure
from vdm_jax.runtime import path_type

COLUMNS = (*measure.NAMES, "all_attributes", "template_mse", "position_std")


def held_out_prompts(config, num: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Labels that training left out, in turn, and a sentence of each."""
    numbers = np.resize(
        shapes.choose_held_out_combinations(config.data.held_out_combinations), num
    )
    labels = np.stack(np.unravel_index(numbers, shapes.ATTRIBUTE_SIZES), 1).astype(
        np.int32
    )
    rng = np.random.default_rng(seed)
    return labels, [shapes.caption(label, rng) for label in labels]


def real_clips(config, labels: np.ndarray, seed: int) -> np.ndarray:
    """Clips of these labels as the stage's data set has them, uint8."""
    video = config.video
    size = video.frames, video.height, video.width
    geometry = shapes.Geometry(*size, config.data.stride)
    rng, clips = np.random.default_rng(seed), []
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
    started = time.perf_counter()
    with tqdm(unit="step", disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.set_description(f"{name} {done}/{total}")
            bar.update()

        videos = cascades.sample(
            cascade, args.num, text, seed=args.seed, progress=progress
        )
    seconds = time.perf_counter() - started
    rows = {}
    for link in cascade.stages:
        stride = link.config.data.stride
        made = sampling.to_uint8(videos[link.name])
        rows[link.name] = measure.attribute_scores(made, labels, stride)
        clips = real_clips(link.config, labels, args.seed)
        rows[f"{link.name}, real"] = measure.attribute_scores(clips, labels, stride)
        video_io.write_samples(
            args.out / link.name, "samples", made[:16], link.config.video.fps, {},
            labels=prompts[:16], overwrite=True,
        )  # fmt: skip
    rows["chance"] = measure.CHANCE
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name, row in rows.items():
        cells = [f"{row[key]:.3f}" if key in row else "" for key in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    calls = cascades.nfe(cascade)
    print(f"{args.num} videos in {seconds:.0f} s, {calls} network calls each")
    result = {
        "command": f"python -m experiments.cascade_accuracy.cascade_accuracy --cascade={args.cascade} "
        f"--num={args.num} --seed={args.seed}",
        "rows": rows, "num": args.num, "nfe": calls,
    }  # fmt: skip
    path = Path(__file__).with_name(f"{Path(args.cascade).name}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
