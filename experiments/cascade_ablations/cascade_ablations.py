"""Ablations of a cascade of moving shapes, one choice at a time.

    ABLATIONS=experiments.cascade_ablations.cascade_ablations
    python -m $ABLATIONS outputs          the network predicts v, eps or x
    python -m $ABLATIONS images           0, 4 or 8 independent images per video
    python -m $ABLATIONS augmentation --cascade=runs/cascade
    python -m $ABLATIONS guidance --cascade=runs/cascade

Variants are trained from configs/cascade_small.py with --updates each. `augmentation`
trains the first SSR stage and samples it from downsampled real clips and from the
output of the previous stage; `guidance` trains nothing. Prompts are those of the
held-out labels. Every score is of --num videos. Variants are runs in --workdir, and the
same command resumes. --variant=NAME stops after one of them. Writes a JSON next to this
file, named after the ablation and, if --cascade is a file, after that.
"""

import argparse
import dataclasses
import json
import math
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs import cascade_small
from experiments.cascade_accuracy import cascade_accuracy
from vdm_jax import cascade as cascades
from vdm_jax import runs, sampling
from vdm_jax.metrics import frechet, pixel_statistics
from vdm_jax.metrics.shape_scores import SHAPES
from vdm_jax.metrics.tables import format_table
from vdm_jax.runtime import path_type
from vdm_jax.training.captions import CaptionEmbeddings
from vdm_jax.training.cascade import finished_steps
from vdm_jax.training.train import train

Row = dict[str, Any]
FEW_STEPS = (4, 8, 16, 32, 64)  # of `outputs`
SNRS = (math.inf, 10.0, 5.0, 3.0, 1.0)
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 9.0)
SSR = "ssr1"
# The loss weighting of each prediction type: PD, section 4, table 1; DDPM for eps.
OUTPUTS = {
    "v": {"diffusion.loss_weighting": "snr_plus_one"},
    "eps": {"diffusion.loss_weighting": "snr"},
    "x": {"diffusion.loss_weighting": "truncated_snr"},
}
VARIANTS: dict[str, dict[str, tuple[str, Row]]] = {
    "outputs": {
        name: (
            "base",
            weighting
            | {"diffusion.prediction_type": name, "diffusion.precondition": 0},
        )
        for name, weighting in OUTPUTS.items()
    },
    "images": {str(n): ("base", {"data.joint_image_frames": n}) for n in (0, 4, 8)},
    "augmentation": {
        "with": (SSR, {}),
        "without": (
            SSR,
            {
                "stage.augmentation_time": (0.0, 0.0),
                "sample.augmentation_snr": math.inf,
            },
        ),
    },
    "guidance": {},
}


def trained(args, stage: str, changes: Row, name: str, seed: int) -> Path:
    """Return the run of a variant, and train it if it is not finished."""
    run = args.workdir / args.what / f"{name}-{seed}-{args.updates}"
    config: Any = cascade_small.get_config(stage).unlock()
    for field, value in changes.items():
        section, key = field.split(".")
        config[section][key] = bool(value) if key == "precondition" else value
    config.seed = seed
    config.data.text_embeddings_dir = str(args.workdir / "text")
    never = args.updates + 1
    config.train.update(steps=args.updates, sample_every=never, eval_every=never)
    if finished_steps(run) < args.updates:
        train(config.lock(), run)
    return run


def sample(path: Path, prompts, seed: int, low=None, **changes) -> np.ndarray:
    """Return samples of a stage, uint8 [n, f, h, w, c]."""
    loaded = runs.load(path)
    settings = sampling.Settings.from_config(loaded.config.sample)
    settings = dataclasses.replace(settings, **changes)
    embeddings = CaptionEmbeddings(loaded.config.data.text_embeddings_dir)(prompts)
    cond = {name: embeddings[name] for name in ("text", "text_mask")}
    if low is not None:
        cond["low_resolution"] = low
    videos = sampling.sample(
        loaded.model, loaded.params, len(prompts), settings,
        sampling.SamplingInputs(cond), sampling.Run(seed),
    )  # fmt: skip
    return sampling.to_uint8(videos)


def scores(videos: np.ndarray, labels: np.ndarray, config, clips: np.ndarray) -> Row:
    """Return attribute scores, and frame_fd to real clips of the same labels."""
    row = SHAPES.attribute_scores(videos, labels, config.data.stride)
    features = (pixel_statistics.pixel_features(v) for v in (videos, clips))
    return row | {"frame_fd": frechet.frechet_of_features(*features)}


def outputs(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """Sample by DDIM in few steps, unguided, with x clipped, which eps needs."""
    config = runs.read_config(path)
    labels, prompts = cascade_accuracy.held_out_prompts(config, args.num, seed)
    clips = cascade_accuracy.real_clips(config, labels, seed)
    for steps in FEW_STEPS:
        videos = sample(
            path, prompts, seed, steps=steps, clip_x=1.0, guidance_scale=1.0
        )
        yield {"steps": steps} | scores(videos, labels, config, clips)


def images(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """Sample with the settings of the stage."""
    config = runs.read_config(path)
    labels, prompts = cascade_accuracy.held_out_prompts(config, args.num, seed)
    clips = cascade_accuracy.real_clips(config, labels, seed)
    videos = sample(path, prompts, seed)
    yield scores(videos, labels, config, clips)


def augmentation(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """Sample from real and from generated videos, with increasing noise on them.

    consistency is the mean squared difference between the input and the downsampled
    output.
    """
    loaded = runs.load(path)
    config, low_resolution = loaded.config, loaded.model.low_resolution
    assert low_resolution is not None
    labels, prompts = cascade_accuracy.held_out_prompts(config, args.num, seed)
    clips = cascade_accuracy.real_clips(config, labels, seed)
    whole = cascades.read(args.cascade)
    names = [stage.name for stage in whole.stages]
    earlier = whole.truncate(names[names.index(SSR) - 1])
    text, _ = cascades.encode_prompts(earlier, prompts)
    generated = list(cascades.sample(earlier, args.num, text, seed=seed).values())[-1]
    lows = {
        "real": np.asarray(low_resolution.observation(loaded.model.normalize(clips))),
        "generated": generated,
    }
    for source, low in lows.items():
        for snr in SNRS if name == "with" else (math.inf,):
            videos = sample(path, prompts, seed, low, augmentation_snr=snr)
            output = low_resolution.observation(loaded.model.normalize(videos))
            row = scores(videos, labels, config, clips)
            row["consistency"] = float(np.mean((np.asarray(output) - low) ** 2))
            yield {"input": source, "snr": snr} | row


def guidance(args, seed: int) -> Iterator[Row]:
    """Sample the base by constant and oscillating guidance, and with other clipping."""
    base = cascades.read(args.cascade).stages[0]
    labels, prompts = cascade_accuracy.held_out_prompts(base.config, args.num, seed)
    clips = cascade_accuracy.real_clips(base.config, labels, seed)
    changes = [{"guidance_scale": scale} for scale in GUIDANCE_SCALES]
    changes += [
        {"guidance_scale": 9.0, "guidance_schedule": "oscillating:2:0.1"},
        {"guidance_scale": 9.0, "dynamic_threshold": 99.5},
        {"guidance_scale": 9.0, "clip_x": 0.0},
    ]
    for change in changes:
        videos = sample(base.workdir, prompts, seed, **change)
        yield change | scores(videos, labels, base.config, clips)


MEASURES: dict[str, Callable[..., Iterator[Row]]] = {
    "outputs": outputs,
    "images": images,
    "augmentation": augmentation,
}
KEYS = ("all_attributes", "template_mse", "position_std", "frame_fd", "consistency")


def input_checksums(args) -> list[str]:
    """Return checksums of what the input videos of a variant depend on."""
    if not args.cascade:
        return []
    stages = cascades.read(args.cascade).stages
    names = [stage.name for stage in stages]
    earlier = stages[: names.index(SSR)]
    settings = repr([stage.settings for stage in earlier]).encode()
    checksums = [runs.load(stage.workdir).checksum for stage in earlier]
    return [*checksums, f"{zlib.crc32(settings):08x}"]


def measure_variant(args, name: str, seed: int) -> list[Row]:
    """Return the rows of a variant, which are stored in its run."""
    stage, changes = VARIANTS[args.what][name]
    path = trained(args, stage, changes, name, seed)
    file = path / "-".join(["rows", str(args.num), *input_checksums(args)])
    if not file.is_file():
        rows = [
            {"variant": name, "seed": seed} | row
            for row in MEASURES[args.what](args, name, path, seed)
        ]
        file.write_text(json.dumps(rows, indent=1) + "\n")
    return json.loads(file.read_text())


def table(rows: list[Row]) -> str:
    """Return the rows as a table, scores last."""
    heads = [
        k for k in rows[0] if k not in (*KEYS, *SHAPES.names, "position_std_error")
    ]
    heads = list(
        dict.fromkeys([*heads, *(k for row in rows for k in row if k in KEYS)])
    )
    cells = [
        [
            f"{v:.3f}" if isinstance(v := row.get(k, ""), float) else str(v)
            for k in heads
        ]
        for row in rows
    ]
    return format_table(heads, cells)


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=VARIANTS)
    parser.add_argument("--cascade")
    parser.add_argument("--workdir", type=path_type, default=Path("runs/ablations"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--num", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variant", default="")
    args = parser.parse_args()
    args.workdir = args.workdir.absolute()
    names = [*VARIANTS[args.what]]
    if args.variant and args.variant not in names:
        parser.error(f"--variant={args.variant}: one of {', '.join(names) or 'none'}")
    if args.what in ("augmentation", "guidance") and not args.cascade:
        parser.error(f"{args.what} needs --cascade")
    rows: list[Row] = []
    for seed in range(args.seeds):
        if args.what == "guidance":
            rows += [{"seed": seed} | row for row in guidance(args, seed)]
        for name in [args.variant] if args.variant else names:
            rows += measure_variant(args, name, seed)
    print(table(rows))
    if args.variant:
        return
    rows = [{k: "inf" if v == math.inf else v for k, v in r.items()} for r in rows]
    command = shlex.join(
        [
            "python",
            "-m",
            "experiments.cascade_ablations.cascade_ablations",
            *sys.argv[1:],
        ]
    )
    result = {"command": command, "updates": args.updates, "num": args.num}
    cascade = Path(args.cascade or "")
    name = args.what + f"_{cascade.stem}" * (cascade.suffix == ".toml")
    path = Path(__file__).with_name(f"{name}.json")
    path.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
