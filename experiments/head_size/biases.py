"""How much trained models read the biases of convolutions before norms.

    python -m experiments.head_size.biases

Of the biases of conv_0 in all residual blocks of models/shapes and models/bouncing:
their root mean square, less the mean of each group, which the norm takes away, over the
mean norm of the kernel's columns (the deviation of the output where the inputs are
independent and of deviation 1). Then the loss on held-out clips with these biases, and
with all of them set to 0 after training. Writes biases.json.
"""

import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from vdm_jax import data, runs
from vdm_jax.data import pipeline
from vdm_jax.networks.layers import num_groups
from vdm_jax.training.observers import make_validation

FILE = Path(__file__).with_suffix(".json")
MODELS = ("shapes", "bouncing")
NUM = 128  # held-out clips


def relative_size(bias: jax.Array, kernel: jax.Array) -> float:
    """Return the size of a bias [c] next to that of kernel [h, w, c_in, c]."""
    groups = bias.reshape(num_groups(len(bias)), -1)
    centred = groups - groups.mean(1, keepdims=True)
    columns = jnp.sqrt(jnp.square(kernel).sum((0, 1, 2))).mean()
    return float(jnp.sqrt(jnp.square(centred).mean()) / columns)


def measure(name: str) -> dict[str, Any]:
    """Return the sizes of the biases, by block, and the losses with and without."""
    loaded = runs.load(Path("models") / name)
    config, model = loaded.config, loaded.model
    batch = pipeline.held_out_batch(config, data.open_videos(config), NUM)
    batch = {name: batch[name] for name in model.batch_arrays | {"video"}}
    flat: Any = flax.traverse_util.flatten_dict(loaded.params, sep="/")
    biases = [path for path in flat if path.endswith("conv_0/bias")]
    zeros = {path: jnp.zeros_like(flat[path]) for path in biases}
    without = flax.traverse_util.unflatten_dict(flat | zeros, sep="/")
    validate = make_validation(model)
    losses = {
        key: {band: float(loss) for band, loss in validate(params, batch).items()}
        for key, params in (("with", loaded.params), ("without", without))
    }
    sizes = {
        path: relative_size(flat[path], flat[path.replace("bias", "kernel")])
        for path in biases
    }
    return {"model": name, "num": NUM, "losses": losses, "sizes": sizes}


def main() -> None:
    """Measure, print, write."""
    rows = []
    for name in MODELS:
        rows.append(measure(name))
        print(rows[-1], flush=True)
        result = {"command": "python -m experiments.head_size.biases", "rows": rows}
        FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
