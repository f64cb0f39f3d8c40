"""Memory that rematerialisation saves on a TPU, by its compiler; no TPU is needed.

    pip install libtpu && python -m perf.remat

The training step of one level of VDM's smaller text model (128 channels, two residual
blocks with attention over the frame and over time on each side, 16 frames of 32x32,
batch 4, bfloat16), compiled for one v5e chip. *Working memory* is what the program
allocates besides its arguments; FLOPs are the compiler's count. Prints the table and
writes perf/remat.json.
"""

import os
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before JAX is imported
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from configs.vdm import levels  # noqa: E402
from perf import rows, steps  # noqa: E402

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python -m perf.remat"
CHIP = "v5e:1x1"
SETTING = {"frames": 16, "height": 32, "width": 32}


def program(remat: str):
    """Return the compiled training step."""
    network = {
        "levels": levels(128, (1,), 2, 32),
        "head_dim": 64,
        "mid_layers": (),
        "dtype": "bfloat16",
        "remat": remat,
    }
    changes = {"video": SETTING, "network": network}
    _, model = steps.setting("vdm", changes)
    params = model.init(jax.random.key(0))
    chip = topologies.get_topology_desc(platform="tpu", topology_name=CHIP)
    mesh = Mesh(np.array(chip.devices[:1]), ("chip",))
    sharding = NamedSharding(mesh, PartitionSpec())
    train, _, train_args, _ = steps.programs("vdm", changes, params)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        jax.eval_shape(lambda: train_args),
    )
    return train.lower(*shapes).compile()


def make_rows(settings: list[dict]) -> list[dict]:
    """Return rows of perf/: figures with rematerialisation over those without."""
    about: dict[str, Any] = {"better": "lower", "command": COMMAND}
    about["machine"] = f"{CHIP}, compiled only"
    return [
        rows.make_row(
            f"{what}, remat={row['remat']} over remat=none", row[f"{key}_over"], **about
        )
        for row in settings[1:]
        for key, what in (("working", "working memory"), ("gflops", "FLOPs"))
    ]


def main() -> None:
    """Compile, print, write."""
    settings: list[dict] = []
    print("| remat | working memory | | FLOPs | |\n|---|---|---|---|---|")
    for remat in ("none", "dots", "full"):
        compiled = program(remat)
        row = {
            "remat": remat,
            "working": compiled.memory_analysis().temp_size_in_bytes / 2**30,
            "gflops": compiled.cost_analysis()["flops"] / 1e9,
        }
        settings.append(row)
        cells = [f"`{remat}`"]
        for key, unit in (("working", "GiB"), ("gflops", "GFLOP")):
            row[f"{key}_over"] = row[key] / settings[0][key]
            cells += [f"{row[key]:.4g} {unit}", f"{row[f'{key}_over']:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    rows.write(
        FILE,
        make_rows(settings),
        settings=settings,
        setting={"batch": steps.SIZE["batch"]} | SETTING,
    )


if __name__ == "__main__":
    main()
