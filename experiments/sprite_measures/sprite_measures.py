"""How well two measures of sprites recognise real stills and clips, and distorted ones.

    python -m experiments.sprite_measures.sprite_measures

`sets`: the rows of `sprite_scores.reference_scores` of several vocabularies and sizes,
with 95% intervals of the shares. `agreement`: of 200 stills of everyday objects with a
caption, half of which is wrong, those that each measure judges right. `loading`: items
a second of one core. Writes sprite_measures.json.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.sprites import Geometry, Sprites
from vdm_jax.metrics import sprite_descriptors, sprite_scores
from vdm_jax.metrics.sprite_detection import detect_sprites
from vdm_jax.metrics.tables import format_cells, format_table

FILE = Path(__file__).with_suffix(".json")
# Title, vocabulary, frames, side, gradients, number of items in a row.
SETS = (
    ("stills", "everyday", 1, 64, False, 400),
    ("stills", "everyday", 1, 48, False, 400),
    ("stills with gradients", "everyday", 1, 64, True, 400),
    ("clips", "everyday", 8, 64, False, 60),
    ("clips", "small", 8, 64, False, 200),
)
SHARES = (*sprite_scores.NAMES, "all_attributes", "identity")
COLUMNS = {
    "object": ("object", ".3f"), "object_interval": ("95%", "s"),
    "background": ("background", ".3f"), "direction": ("direction", ".3f"),
    "speed": ("speed", ".3f"), "all_attributes": ("all", ".3f"),
    "identity": ("identity", ".3f"), "flicker": ("flicker", ".3f"),
    "warp_error": ("warp error", ".3f"),
}  # fmt: skip
CASES = 200
LOADED = 2000  # items whose loading is timed


def _range(interval: tuple[float, float]) -> str:
    return "{:.3f} to {:.3f}".format(*interval)


def measure_set(title, vocabulary, frames, side, gradients, n) -> dict[str, Any]:
    """Return the rows of real and of distorted items."""
    source = Sprites(vocabulary, Geometry(frames, side, side), gradients)
    rows = []
    for name, row in sprite_scores.reference_scores(source, n).items():
        for key in [key for key in SHARES if key in row and name != "chance"]:
            row[f"{key}_interval"] = sprite_scores.wilson_interval(row[key], n)
        rows.append({"row": name} | row)
    print(f"\n{title}, {vocabulary}, {frames} x {side}x{side}, n = {n}")
    shown = [
        row | {key: _range(row[key]) for key in row if "interval" in key}
        for row in rows
    ]
    print(format_table(*format_cells(shown, COLUMNS)), flush=True)
    about = {"title": title, "vocabulary": vocabulary, "frames": frames, "side": side}
    return about | {"gradients": gradients, "n": n, "rows": rows}


def agreement(seed: int = 1) -> dict[str, int]:
    """Judge stills of which half have the caption of another object."""
    source: Any = Sprites("everyday", Geometry(1, 64, 64)).split(True)
    rng = np.random.default_rng(seed)
    items = rng.integers(len(source), size=CASES).tolist()
    stills = [source.load(item, rng, 1) for item in items]
    videos = np.stack([still["video"] for still in stills])
    objects = np.array([still["label"][0] for still in stills])
    right = np.arange(CASES) % 2 == 0
    others = (objects + rng.integers(1, source.sizes[0], CASES)) % source.sizes[0]
    claimed = np.where(right, objects, others)
    found = sprite_scores.measure(detect_sprites(videos, source), source)[:, 0]
    second = sprite_descriptors.nearest_description("everyday", 64, 64)
    first, other = found == claimed, second.name(videos[:, 0]) == claimed
    result = {
        "cases": CASES,
        "wrong_captions": int((~right).sum()),
        "agree": int((first == other).sum()),
        "first_right": int((first == right).sum()),
        "second_right": int((other == right).sum()),
    }
    print(f"\n{result}", flush=True)
    return result


def loading() -> list[dict[str, Any]]:
    """Time the loading of stills and clips, in seconds of this process."""
    rows = []
    for frames in (1, 8):
        source = Sprites("everyday", Geometry(frames, 64, 64))
        rng = np.random.default_rng(0)
        for i in range(len(source.geometry.sizes) * 20):  # renders, fills caches
            source.load(i, rng, frames)
        started = time.process_time()
        for i in range(LOADED):
            source.load(7 * i, rng, frames)
        rate = LOADED / (time.process_time() - started)
        rows.append({"frames": frames, "side": 64, "n": LOADED, "per_second": rate})
        print(f"{frames} x 64x64: {rate:.0f} a second", flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    command = "python -m experiments.sprite_measures.sprite_measures"
    result = {"command": command, "loading": loading(), "agreement": agreement()}
    result["sets"] = [measure_set(*each) for each in SETS]
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
