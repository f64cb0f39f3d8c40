"""Heads of another size, and convolutions without a bias, at equal width.

    python -m experiments.head_size.head_size

The data and the recipe are those of configs/shapes.py:demo. The network is smaller: one
level of 96 channels on 4x4 patches of 4x4 pixels, so that 96 channels are two heads or
four. Temporal and spatial attention stand in each of three places. In one variant the
convolution conv_0 of the residual blocks, which a norm follows, has no bias. A seed
decides initial parameters, clips and noise. Prints, for each variant and seed, the loss
on held-out clips by band of logsnr and its geometric mean, then, once all are trained,
the attributes of samples with the labels of held-out clips. Runs are in --workdir, and
the same command resumes. Writes head_size.json, row by row; rows that are there are
kept.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax

from configs import shapes
from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.metrics.shape_scores import SHAPES
from vdm_jax.metrics.sprite_scores import wilson_interval
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.networks import NETWORKS, unet3d
from vdm_jax.networks.blocks import ResBlock
from vdm_jax.networks.layers import GroupNorm, conv, dense, zeros_init
from vdm_jax.networks.parts import VDM_PARTS
from vdm_jax.runtime import path_type
from vdm_jax.training.cascade import finished_steps
from vdm_jax.training.train import train

FILE = Path(__file__).with_suffix(".json")
# Variant -> head_dim, and the convolutions of residual blocks that have no bias.
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "head_dim 48": (48, ()),
    "head_dim 24": (24, ()),
    "no bias in conv_0": (48, ("conv_0",)),
}
LAYERS = ("temporal_conv", "temporal_attention", "spatial_attention")
COLUMNS = {
    "parameters": ("parameters", ",d"), "step_time": ("seconds an update", ".2f"),
    "val/loss_-20_-5": ("-20 to -5", ".4f"), "val/loss_-5_0": ("-5 to 0", ".4f"),
    "val/loss_0_5": ("0 to 5", ".4f"), "val/loss_5_20": ("5 to 20", ".3f"),
    "loss": ("loss", ".4f"),
    **{name: (name, ".3f") for name in (*SHAPES.names, "all_attributes")},
    "template_mse": ("template mse", ".2f"),
}  # fmt: skip


class PartlyBiased(ResBlock):
    """A residual block without dropout, of which some convolutions have no bias."""

    unbiased: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x, inputs, train: bool = False):
        """[b, f, h, w, c] -> [b, f, h, w, channels]."""

        def convolve(h, name, **kwargs):
            use_bias = name not in self.unbiased
            return conv(h, self.channels, name, use_bias=use_bias, **kwargs)

        h = convolve(nn.swish(GroupNorm(name="norm_0")(x)), "conv_0")
        h = nn.swish(GroupNorm(name="norm_1")(h, inputs.vector))
        h = convolve(h, "conv_1", kernel_init=zeros_init)
        if x.shape[-1] != self.channels:
            x = dense(x, self.channels, "skip")
        return x + h


def partly_biased(unbiased: tuple[str, ...], *args: Any) -> nn.Module:
    """Return the U-Net of a config with blocks that are `PartlyBiased`."""
    block = functools.partial(PartlyBiased, unbiased=unbiased)
    parts = dataclasses.replace(VDM_PARTS, resnet=block)
    return unet3d.UNet3D(unet3d.from_config(*args).spec, parts)


def make_config(head_dim: int, seed: int, args) -> Any:
    """Return the config of a variant."""
    config: Any = shapes.get_config("demo").unlock()
    level = dict(channels=96, blocks=1, layers=LAYERS)
    config.network.update(levels=(level,), patch_size=4, head_dim=head_dim)
    config.train.update(
        steps=args.updates,
        checkpoint_every=100,
        sample_every=0,
        eval_every=args.updates,
    )
    config.data.batch_size = args.batch
    config.sample.update(steps=8, batch_size=100)
    config.seed = seed
    return config.lock()


def read_log(run: Path) -> dict[str, Any]:
    """Return the size, the speed and the last validation loss of a finished run."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    bands = {k: v for row in log for k, v in row.items() if k.startswith("val/loss")}
    times = [row["train/step_time"] for row in log if "train/step_time" in row]
    return {
        "parameters": sum(p.size for p in jax.tree.leaves(runs.load(run).params)),
        "step_time": min(times),
        **bands,
        "loss": math.exp(statistics.fmean(map(math.log, bands.values()))),
    }


def measure_samples(run: Path, num: int) -> dict[str, Any]:
    """Return the attributes of `num` samples with the labels of held-out clips."""
    model, params, config, *_ = runs.load(run)
    batch = pipeline.held_out_batch(config, data.open_videos(config), num)
    settings = sampling.Settings.from_config(config.sample)
    inputs = sampling.SamplingInputs({"label": batch["label"]})
    videos = sampling.sample(model, params, num, settings, inputs)
    scores = SHAPES.attribute_scores(videos, batch["label"], config.data.stride)
    intervals = {n: wilson_interval(scores[n], num) for n in SHAPES.names}
    return scores | {"intervals": intervals}


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser("python -m experiments.head_size.head_size")
    parser.add_argument("--workdir", type=path_type, default=Path("runs/head_size"))
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="clips an update")
    parser.add_argument("--num", type=int, default=200, help="held-out clips, samples")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    recipe = {"updates": args.updates, "batch": args.batch, "num": args.num}
    stored = json.loads(FILE.read_text()) if FILE.is_file() else {}
    rows = stored["rows"] if stored.items() >= recipe.items() else {}
    sample = functools.partial(measure_samples, num=args.num)
    for key, measure in (("loss", read_log), ("template_mse", sample)):
        for seed, name in itertools.product(range(args.seeds), VARIANTS):
            row = rows.setdefault(f"{name}, seed {seed}", {})
            if key in row:
                continue
            head_dim, unbiased = VARIANTS[name]
            run = args.workdir.absolute() / f"{name}-{seed}".replace(" ", "_")
            network = functools.partial(partly_biased, unbiased)
            with mock.patch.dict(NETWORKS, unet=network):
                if finished_steps(run) < args.updates:
                    train(make_config(head_dim, seed, args), run)
                row |= measure(run)
            command = "python -m experiments.head_size.head_size"
            result = {"command": command, **recipe, "rows": rows}
            FILE.write_text(json.dumps(result, indent=1) + "\n")
            named = [{"row": name} | row for name, row in rows.items() if row]
            print(format_table(*format_cells(named, COLUMNS)), flush=True)


if __name__ == "__main__":
    main()
