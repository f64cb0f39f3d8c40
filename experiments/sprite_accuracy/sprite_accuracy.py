"""How often samples show the requested object, against updates.

    python -m experiments.sprite_accuracy.sprite_accuracy WORKDIR [--every=N] [--num=N]

WORKDIR is a run of configs/sprites.py that keeps its checkpoints
(`--config.train.keep_checkpoints=100`). Samples of every 500th step, and of the last,
have the captions of held-out stills and the run's own guidance; the measure needs no
network. Writes sprite_accuracy.json, row by row; rows that are there are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from vdm_jax import build, data, runs, sampling
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.data import pipeline
from vdm_jax.evaluators import clips
from vdm_jax.metrics import sprite_scores
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.runtime import path_type

FILE = Path(__file__).with_suffix(".json")
COLUMNS = {
    "pictures": ("pictures", ",d"),
    "object": ("object", ".3f"), "object_interval": ("95%", ".3f"),
    "background": ("background", ".3f"), "background_interval": ("95%", ".3f"),
    "seen": ("object, seen", ".3f"), "unseen": ("object, unseen", ".3f"),
}  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser("python -m experiments.sprite_accuracy")
    parser.add_argument("workdir", type=path_type)
    parser.add_argument("--every", type=int, default=500, help="updates")
    parser.add_argument("--num", type=int, default=200, help="samples of a row")
    flags = parser.parse_args()
    config = runs.read_config(flags.workdir)
    model = build.build_model(config)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    source: Any = data.open_videos(config)
    batch = pipeline.held_out_batch(config, source, flags.num)
    cascade = clips.model_cascade(model, config, flags.workdir)
    inputs = sampling.SamplingInputs(clips.conditions(cascade, batch))
    settings = sampling.Settings.from_config(config.sample)
    codec = {"codec": model.codec.load_params()}
    checkpoints = Checkpoints(flags.workdir / "checkpoints", read_only=True)
    stored = json.loads(FILE.read_text())["rows"] if FILE.is_file() else []
    rows = {row["row"]: row for row in stored if row["n"] == flags.num}
    steps = checkpoints.steps()
    for step in steps:
        if (step % flags.every and step != steps[-1]) or str(step) in rows:
            continue
        params, _ = checkpoints.restore(step, {"ema": shapes})
        videos = sampling.sample(
            model, params["ema"] | codec, flags.num, settings, inputs
        )
        parts = sprite_scores.split_scores(videos, batch["label"], source)
        row = {k: v for k, v in parts[""].items() if k in COLUMNS}
        row |= {part: parts[part]["object"] for part in ("seen", "unseen")}
        pictures = step * config.data.batch_size
        rows[str(step)] = {
            "row": str(step),
            "n": flags.num,
            "pictures": pictures,
            **row,
        }
        ordered = [rows[name] for name in sorted(rows, key=int)]
        FILE.write_text(
            json.dumps({"path": config.data.path, "rows": ordered}, indent=1)
        )
        print(format_table(*format_cells(ordered, COLUMNS)), flush=True)


if __name__ == "__main__":
    main()
