"""Training FLOPs of the transformer and of the U-Net that it is compared with.

    python -m experiments.dit.flops

Of the updates of configs/dit.py:packed and :unet, optimiser included: products and
convolutions in their jaxprs, see `planning.flops`. Texts have as many tokens as in
perf/packing.py. The U-Net's is the mean of its batches, which take turns. Writes
experiments/dit/flops.json.
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
from vdm_jax.metrics.tables import format_table
from vdm_jax.planning.flops import product_flops
from vdm_jax.training import trainer

FILE = Path(__file__).with_suffix(".json")
VARIANTS = {"DiT": "packed", "U-Net": "unet"}


def measure(variant: str) -> dict[str, Any]:
    """Return the parameters of a variant, and its FLOPs."""
    config = dit.get_config(variant)
    model, key = build.build_model(config), jax.random.key(0)
    update, params = update_of(config, model), jax.eval_shape(model.init_params, key)
    state = jax.eval_shape(functools.partial(trainer.new_state, config), params)
    batches = map(random_batch, mixed_sizes.in_turn(config))
    each = [product_flops(update, state, {}, batch, key) for batch in batches]
    mean = sum(each) / len(each)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "update": mean,
        "clip": mean / mixed_sizes.clips_per_batch(config.mixed_sizes),
        "batches": each,
    }


def main() -> None:
    """Count, print, write."""
    found = {name: measure(variant) for name, variant in VARIANTS.items()}
    updates = dit.get_config("packed").train.steps
    total = updates * found["DiT"]["update"]
    for network in found.values():
        network["updates"] = round(total / network["update"])
    columns = ("parameters", "clip", "update", "updates")
    table = [
        [name, *(f"{network[column]:,.0f}" for column in columns)]
        for name, network in found.items()
    ]
    heads = ["", "parameters", "FLOPs a clip", "FLOPs an update", "updates"]
    print(format_table(heads, table))
    write_json(FILE, {"networks": found, "total": total})


if __name__ == "__main__":
    main()
