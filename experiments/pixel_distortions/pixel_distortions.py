"""What pixel statistics say of real clips and of spoilt ones, without a model.

    python -m experiments.pixel_distortions.pixel_distortions

`film`: the rows of models.py's pixel table for short films. `few`: how often few
clips of moving shapes are further from others of their kind than as many blurred ones
are, which few clips make look better than they are; frame FD of each draw.
"""

import json
from pathlib import Path

from configs import clips, shapes
from vdm_jax import data
from vdm_jax.evaluators.clips import real_clips
from vdm_jax.metrics import frechet, pixel_statistics, reference_sets
from vdm_jax.metrics.tables import format_cells, format_table

FILE = Path(__file__).with_suffix(".json")
FILMS = "bunny,city,bikes,carphone"
NUM = 40  # clips of a row
DRAWS = 40
SIZES = (8, 16, 32)  # clips of a draw


def film() -> list[dict]:
    """The table's rows, held-out clips being the samples too."""
    config = clips.get_config().unlock()
    config.update({"data": {"path": FILMS}})
    data.resolve(config, data.open_source(config))
    kept, training = real_clips(config, NUM)
    return pixel_statistics.pixel_table(kept["video"], training, kept["video"])[1:]


def few() -> list[dict]:
    """Distances of intact and blurred shapes, in draws of several sizes."""
    config = shapes.get_config().unlock()
    data.resolve(config, data.open_source(config))
    kept, training = real_clips(config, max(SIZES))
    found = []
    for n in SIZES:
        rows = []
        for seed in range(DRAWS):
            reference, named = reference_sets.reference_sets(
                kept["video"][:n], training, None, seed
            )
            features = pixel_statistics.pixel_features(reference)
            rows.append(
                [
                    frechet.frechet_of_features(
                        pixel_statistics.pixel_features(named[name]()), features
                    )
                    for name in ("training real", "4x4 blur")
                ]
            )
        nearer = sum(blurred < intact for intact, blurred in rows)
        found.append(
            {"clips": n, "draws": DRAWS, "closer_to_train": nearer, "frame_fd": rows}
        )
        print(n, nearer, "of", DRAWS, flush=True)
    return found


def main() -> None:
    """Print, write."""
    rows = film()
    print(format_table(*format_cells(rows, pixel_statistics.COLUMNS)))
    command = "python -m experiments.pixel_distortions.pixel_distortions"
    found = {"command": command, "film": rows, "few": few()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
