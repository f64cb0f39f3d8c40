"""Pixel statistics of real clips and of distorted ones, without a model.

    python -m experiments.pixel_distortions.pixel_distortions

`film`: the rows of the pixel table for clips of real footage. `few`: how often a small
set of blurred clips of moving shapes has a lower frame FD than a set of intact ones, by
the number of clips, and the frame FDs of each draw. Writes pixel_distortions.json.
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
    """Return the rows of the table, without samples."""
    config = clips.get_config().unlock()
    config.update({"data": {"path": FILMS}})
    data.resolve(config, data.open_source(config))
    held_out, training = real_clips(config, NUM)
    videos = held_out["video"]
    sets = reference_sets.reference_sets(videos, training, videos)
    return pixel_statistics.pixel_rows(sets, training)[1:]


def few() -> list[dict]:
    """Return distances of intact and blurred clips, in draws of several sizes."""
    config = shapes.get_config().unlock()
    data.resolve(config, data.open_source(config))
    held_out, training = real_clips(config, max(SIZES))
    result = []
    for n in SIZES:
        rows = []
        for seed in range(DRAWS):
            reference, named = reference_sets.reference_sets(
                held_out["video"][:n], training, None, seed
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
        lower = sum(blurred < intact for intact, blurred in rows)
        result.append(
            {"clips": n, "draws": DRAWS, "blur_is_lower": lower, "frame_fd": rows}
        )
        print(n, lower, "of", DRAWS, flush=True)
    return result


def main() -> None:
    """Measure, print, write."""
    rows = film()
    print(format_table(*format_cells(rows, pixel_statistics.COLUMNS)))
    command = "python -m experiments.pixel_distortions.pixel_distortions"
    result = {"command": command, "film": rows, "few": few()}
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
