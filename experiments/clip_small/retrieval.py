"""How often a small CLIP finds the caption of a still of sprites among k.

    python -m experiments.clip_small.retrieval [WORKDIR]

Held-out stills at other places, of pairs of object and background that training has and
of those that it lacks. An image chooses among its own caption and k - 1 others: of any
other pair, or of its own object or its own background with the other one changed.
WORKDIR is models/clip_small by default. Writes retrieval.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import data, image_text
from vdm_jax.data import sprite_vocabulary
from vdm_jax.data.sprites import Sprites, is_held_out
from vdm_jax.image_text import ImageTextModel
from vdm_jax.metrics import clip_score
from vdm_jax.metrics.sprite_scores import wilson_interval
from vdm_jax.metrics.tables import format_cells, format_table

FILE = Path(__file__).with_suffix(".json")
NUM = 1000  # stills
CHOICES = (2, 8, 64)  # captions of any pair
COLUMNS = {
    "n": ("n", "d"), "k": ("k", "d"), "right": ("right", ".3f"),
    "interval": ("95%", "s"),
}  # fmt: skip


def sentences(source: Sprites, labels: np.ndarray, seed: int) -> list[str]:
    """Return a caption of each label [n, 2], drawn by the seed."""
    rng = np.random.default_rng(seed)
    names = source.label_vocabulary
    return [
        sprite_vocabulary.caption([names[0][o], names[1][b]], rng) for o, b in labels
    ]


def stills(source: Sprites, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return videos [n, 1, h, w, 3] and labels [n, 2] of the held-out part."""
    part, rng = source.split(True), np.random.default_rng(0)
    items = rng.integers(len(part), size=n).tolist()
    clips: list[Any] = [part.load(item, rng, 1) for item in items]
    videos, labels = ([clip[key] for clip in clips] for key in ("video", "label"))
    return np.stack(videos), np.stack(labels)


def changed(
    model: ImageTextModel,
    source: Sprites,
    image: np.ndarray,
    labels: np.ndarray,
    k: int,
) -> dict[str, np.ndarray]:
    """Return whether an image is nearest to its own of k captions, bool [n].

    The others have another object, or another background.
    """
    found = {}
    for axis, name in enumerate(("other objects", "other backgrounds")):
        size = len(source.label_vocabulary[axis])
        rng = np.random.default_rng(axis)
        shifts = [rng.permutation(np.arange(1, size))[: k - 1] for _ in labels]
        rows = labels[:, None].repeat(k, 1)
        rows[:, 1:, axis] = (rows[:, 1:, axis] + np.array(shifts)) % size
        text = model.embed_texts(sentences(source, rows.reshape(-1, 2), 2))
        cosine = np.einsum("nd,nkd->nk", image, text.reshape(len(image), k, -1))
        found[name] = cosine.argmax(1) == 0
    return found


def main() -> None:
    """Measure, print, write."""
    workdir = sys.argv[1] if len(sys.argv) > 1 else "models/clip_small"
    model = image_text.load(workdir)
    source: Any = data.open_source(model.config)
    videos, labels = stills(source, NUM)
    image = model.embed_videos(videos)
    text = model.embed_texts(sentences(source, labels, seed=1))
    group = labels @ [len(source.label_vocabulary[1]), 1]
    right = {
        ("any other pair", k): clip_score.retrieval(image, text, group, k)
        for k in CHOICES
    }
    for name, found in changed(model, source, image, labels, 8).items():
        right[name, 8] = found
    rows = []
    unseen = is_held_out(labels).any(1)
    for pairs, part in (("seen", ~unseen), ("unseen", unseen)):
        n = int(part.sum())
        for (captions, k), found in right.items():
            share = float(found[part].mean())
            interval = wilson_interval(share, n)
            row = {"row": f"{pairs} pairs, {captions}", "n": n, "k": k}
            rows.append(row | {"right": share, "interval": interval})
    scores = clip_score.clip_scores(image, text)
    others = clip_score.clip_scores(image, np.roll(text, 1, axis=0))
    shown = [r | {"interval": "{:.3f} to {:.3f}".format(*r["interval"])} for r in rows]
    print(format_table(*format_cells(shown, COLUMNS)))
    print(f"CLIP score {scores.mean():.1f}, of other captions {others.mean():.1f}")
    result = {
        "command": f"python -m experiments.clip_small.retrieval {workdir}",
        "rows": rows, "clip_score": float(scores.mean()),
        "clip_score_of_others": float(others.mean()), "step": model.step,
    }  # fmt: skip
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
