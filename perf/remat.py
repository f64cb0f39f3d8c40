"""What recomputing saves on a TPU chip, by its compiler: no chip is needed.

    pip install libtpu && python -m perf.remat

The training step of one level of VDM's smaller text model (128 channels, two residual
blocks with attention over the frame and over time on each side, 16 frames of 32x32,
batch 4, bfloat16), compiled for one v5e chip. *Working memory* is what the program asks
for beside its arguments; FLOPs are the compiler's count. Prints the table and writes
perf/remat.json.
"""

import json
import os
from pathlib import Path

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from configs.vdm import levels  # noqa: E402
from perf import race  # noqa: E402

CHIP = "v5e:1x1"
SETTING = {"frames": 16, "height": 32, "width": 32}


def program(remat: str):
    """The compiled step."""
    network = {
        "levels": levels(128, (1,), 2, 32),
        "head_dim": 64,
        "mid_layers": (),
        "dtype": "bfloat16",
        "remat": remat,
    }
    changes = {"video": SETTING, "network": network}
    _, model = race.setting("vdm", changes)
    params = model.init(jax.random.key(0))
    chip = topologies.get_topology_desc(platform="tpu", topology_name=CHIP)
    mesh = Mesh(np.array(chip.devices[:1]), ("chip",))
    here = NamedSharding(mesh, PartitionSpec())
    train, _, given, _ = race.programs("vdm", changes, params)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        jax.eval_shape(lambda: given),
    )
    return train.lower(*shapes).compile()


def main() -> None:
    """Compile, print, write."""
    rows = []
    print("| remat | working memory | | FLOPs | |\n|---|---|---|---|---|")
    for remat in ("none", "dots", "full"):
        compiled = program(remat)
        row = {
            "remat": remat,
            "working": compiled.memory_analysis().temp_size_in_bytes / 2**30,
            "gflops": compiled.cost_analysis()["flops"] / 1e9,
        }
        rows.append(row)
        cells = [f"`{remat}`"]
        for key, unit in (("working", "GiB"), ("gflops", "GFLOP")):
            row[f"{key}_over"] = row[key] / rows[0][key]
            cells += [f"{row[key]:.4g} {unit}", f"{row[f'{key}_over']:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    result = {
        "rows": rows,
        "chip": CHIP,
        "setting": {"batch": race.SIZE["batch"]} | SETTING,
        "command": "python -m perf.remat",
    }
    path = Path(__file__).with_name("remat.json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
