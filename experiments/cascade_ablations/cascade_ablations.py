"""What in a cascade of moving shapes does what: one choice at a time, the rest equal.

    python -m experiments.cascade_ablations.cascade_ablations outputs                     v, eps or x; few steps
    python -m experiments.cascade_ablations.cascade_ablations images                      0, 4 or 8 beside a video
    python -m experiments.cascade_ablations.cascade_ablations augmentation --cascade=runs/cascade
    python -m experiments.cascade_ablations.cascade_ablations guidance --cascade=runs/cascade

Arms are trained from configs/cascade_small.py with --updates each (augmentation: the
first SSR stage, fed real clips brought down and what the cascade makes of prompts),
guidance trains none. Prompts are of the labels that training left out. Every figure is
of --num videos; arms are runs under --workdir, and the same command goes on. --arm=NAME
stops after one of them. Writes a JSON beside this, named after a cascade's file too.
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
from experiments.cascade_accuracy import cascade_accuracy as benchmark
from vdm_jax import cascade as cascades
from vdm_jax import runs, sampling
from vdm_jax.metrics import frechet, pixel_statistics
from vdm_jax.metrics import shape_detection as measure
from vdm_jax.metrics.tables import format_table
from vdm_jax.runtime import path_type
from vdm_jax.training.captions import CaptionEmbeddings
from vdm_jax.training.cascade import finished_steps
from vdm_jax.training.train import train

Row = dict[str, Any]
FEW = (4, 8, 16, 32, 64)  # steps of the outputs
SNRS = (math.inf, 10.0, 5.0, 3.0, 1.0)
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 9.0)
SSR = "ssr1"
# The loss of each output by its own paper: PD section 4, table 1; DDPM for eps.
OUTPUTS = {
    "v": {"diffusion.loss_weighting": "snr_plus_one"},
    "eps": {"diffusion.loss_weighting": "snr"},
    "x": {"diffusion.loss_weighting": "truncated_snr"},
}
ARMS: dict[str, dict[str, tuple[str, Row]]] = {
    "outputs": {
        name: (
            "base",
            more | {"diffusion.prediction_type": name, "diffusion.precondition": 0},
        )
        for name, more in OUTPUTS.items()
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
    """The run of an arm, trained if it is not."""
    place = args.workdir / args.what / f"{name}-{seed}-{args.updates}"
    config: Any = cascade_small.get_config(stage).unlock()
    for field, value in changes.items():
        section, key = field.split(".")
        config[section][key] = bool(value) if key == "precondition" else value
    config.seed = seed
    config.data.text_embeddings_dir = str(args.workdir / "text")
    never = args.updates + 1
    config.train.update(steps=args.updates, sample_every=never, eval_every=never)
    if finished_steps(place) < args.updates:
        train(config.lock(), place)
    return place


def sample(path: Path, prompts, seed: int, low=None, **changes) -> np.ndarray:
    """uint8 videos of a stage."""
    loaded = runs.load(path)
    settings = sampling.Settings.from_config(loaded.config.sample)
    settings = dataclasses.replace(settings, **changes)
    told = CaptionEmbeddings(loaded.config.data.text_embeddings_dir)(prompts)
    words = {name: told[name] for name in ("text", "text_mask")}
    videos = sampling.sample(
        loaded.model, loaded.params, len(prompts), settings, cond=words | {"low_resolution": low},
        seed=seed,
    )  # fmt: skip
    return sampling.to_uint8(videos)


def figures(videos: np.ndarray, labels: np.ndarray, config, clips: np.ndarray) -> Row:
    """What is asked of any of them; frame_fd is to real clips of the same labels."""
    row = measure.attribute_scores(videos, labels, config.data.stride)
    features = (pixel_statistics.pixel_features(v) for v in (videos, clips))
    return row | {"frame_fd": frechet.frechet_of_features(*features)}


def outputs(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """Few steps of DDIM, clipped, which eps needs, and without guidance."""
    config = runs.read_config(path)
    labels, prompts = benchmark.held_out_prompts(config, args.num, seed)
    clips = benchmark.real_clips(config, labels, seed)
    for steps in FEW:
        made = sample(path, prompts, seed, steps=steps, clip_x=1.0, guidance_scale=1.0)
        yield {"steps": steps} | figures(made, labels, config, clips)


def images(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """As the stage is sampled."""
    config = runs.read_config(path)
    labels, prompts = benchmark.held_out_prompts(config, args.num, seed)
    clips = benchmark.real_clips(config, labels, seed)
    made = sample(path, prompts, seed)
    yield figures(made, labels, config, clips)


def augmentation(args, name: str, path: Path, seed: int) -> Iterator[Row]:
    """Fed real and generated videos, with more and more noise on them.

    consistency: mean squared difference between what is made, brought down again, and
    what was given.
    """
    loaded = runs.load(path)
    config, stage = loaded.config, loaded.model.low_resolution
    assert stage is not None
    labels, prompts = benchmark.held_out_prompts(config, args.num, seed)
    clips = benchmark.real_clips(config, labels, seed)
    whole = cascades.read(args.cascade)
    names = [link.name for link in whole.stages]
    before = whole.truncate(names[names.index(SSR) - 1])
    told, _ = cascades.encode_prompts(before, prompts)
    generated = list(cascades.sample(before, args.num, told, seed=seed).values())[-1]
    lows = {
        "real": np.asarray(stage.observation(loaded.model.normalize(clips))),
        "generated": generated,
    }
    for source, low in lows.items():
        for snr in SNRS if name == "with" else (math.inf,):
            made = sample(path, prompts, seed, low, augmentation_snr=snr)
            again = np.asarray(stage.observation(loaded.model.normalize(made)))
            row = figures(made, labels, config, clips)
            row["consistency"] = float(np.mean((again - low) ** 2))
            yield {"given": source, "snr": snr} | row


def guidance(args, seed: int) -> Iterator[Row]:
    """Of the base: constant, oscillating after the paper, and two ways to clip."""
    base = cascades.read(args.cascade).stages[0]
    labels, prompts = benchmark.held_out_prompts(base.config, args.num, seed)
    clips = benchmark.real_clips(base.config, labels, seed)
    ways = [{"guidance_scale": scale} for scale in GUIDANCE_SCALES]
    ways += [
        {"guidance_scale": 9.0, "guidance_schedule": "oscillating:2:0.1"},
        {"guidance_scale": 9.0, "dynamic_threshold": 99.5},
        {"guidance_scale": 9.0, "clip_x": 0.0},
    ]
    for way in ways:
        made = sample(base.workdir, prompts, seed, **way)
        yield way | figures(made, labels, base.config, clips)


MEASURES: dict[str, Callable[..., Iterator[Row]]] = {
    "outputs": outputs,
    "images": images,
    "augmentation": augmentation,
}
KEYS = ("all_attributes", "template_mse", "position_std", "frame_fd", "consistency")


def fed(args) -> list[str]:
    """What the videos fed to an arm depend on, as parts of a name."""
    if not args.cascade:
        return []
    links = cascades.read(args.cascade).stages
    names = [link.name for link in links]
    before = links[: names.index(SSR)]
    told = repr([link.settings for link in before]).encode()
    checksums = [runs.load(link.workdir).checksum for link in before]
    return [*checksums, f"{zlib.crc32(told):08x}"]


def of_arm(args, name: str, seed: int) -> list[Row]:
    """The rows of an arm, kept in its run."""
    stage, changes = ARMS[args.what][name]
    path = trained(args, stage, changes, name, seed)
    kept = path / "-".join(["rows", str(args.num), *fed(args)])
    if not kept.is_file():
        found = [
            {"arm": name, "seed": seed} | row
            for row in MEASURES[args.what](args, name, path, seed)
        ]
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(kept.read_text())


def table(rows: list[Row]) -> str:
    """One line a row; figures last."""
    heads = [
        k for k in rows[0] if k not in (*KEYS, *measure.NAMES, "position_std_error")
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
    parser.add_argument("what", choices=ARMS)
    parser.add_argument("--cascade")
    parser.add_argument("--workdir", type=path_type, default=Path("runs/ablations"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--num", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arm", default="")
    args = parser.parse_args()
    args.workdir = args.workdir.absolute()
    if args.arm and args.arm not in ARMS[args.what]:
        parser.error(f"--arm={args.arm}: one of {', '.join(ARMS[args.what]) or 'none'}")
    if args.what in ("augmentation", "guidance") and not args.cascade:
        parser.error(f"{args.what} needs --cascade")
    rows: list[Row] = []
    for seed in range(args.seeds):
        if args.what == "guidance":
            rows += [{"seed": seed} | row for row in guidance(args, seed)]
        for name in [args.arm] if args.arm else ARMS[args.what]:
            rows += of_arm(args, name, seed)
    print(table(rows))
    if args.arm:
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
    found = {"command": command, "updates": args.updates, "num": args.num, "rows": rows}
    given = Path(args.cascade or "")
    name = args.what + f"_{given.stem}" * (given.suffix == ".toml")
    path = Path(__file__).with_name(f"{name}.json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
