"""Training FLOPs of the transformer and of the U-Net that it is compared with.

    python -m experiments.dit.flops

Of the updates of configs/dit.py, optimiser included: products and convolutions in their
jaxprs, see `planning.flops`. Texts have as many tokens as in perf/packing.py. An update
of the U-Net is the mean of its batches, which take turns, and it has as many updates as
equal the transformer's FLOPs of the same stage. Writes experiments/dit/flops.json.
"""

import functools
from pathlib import Path
from typing import Any

import jax

from configs import dit
from perf.packing import random_batch, update_of
from vdm_jax import build
from vdm_jax.data import mixed_sizes
from vdm_jax.files import write_json
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.planning.flops import product_flops
from vdm_jax.training import trainer

FILE = Path(__file__).with_suffix(".json")
# Variants of the transformer and of the U-Net, of each stage of training.
STAGES = (("pictures", "unet_pictures"), ("packed", "unet"))
COLUMNS = {
    "parameters": ("parameters", ",d"), "clip": ("GFLOP a clip", ".3g"),
    "update": ("GFLOP an update", ".3g"), "updates": ("updates", ",d"),
}  # fmt: skip


def measure(variant: str) -> dict[str, Any]:
    """Return the parameters of a variant, and its GFLOP: of each batch, on average."""
    config: Any = dit.get_config(variant)
    model, key = build.build_model(config), jax.random.key(0)
    update, params = update_of(config, model), jax.eval_shape(model.init_params, key)
    state = jax.eval_shape(functools.partial(trainer.new_state, config), params)
    batches = map(random_batch, mixed_sizes.in_turn(config))
    each = [product_flops(update, state, {}, batch, key) / 1e9 for batch in batches]
    mean = sum(each) / len(each)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "clip": mean / mixed_sizes.clips_per_batch(config.mixed_sizes),
        "update": mean,
        "updates": config.train.steps,
        "batches": each,
    }


def main() -> None:
    """Count, print, write."""
    found = {variant: measure(variant) for stage in STAGES for variant in stage}
    for transformer, unet in STAGES:
        total = found[transformer]["update"] * found[transformer]["updates"]
        found[unet]["updates"] = round(total / found[unet]["update"])
    table = [{"row": variant, **row} for variant, row in found.items()]
    print(format_table(*format_cells(table, COLUMNS)))
    write_json(FILE, found)


if __name__ == "__main__":
    main()
