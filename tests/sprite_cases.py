"""Sprites for tests: the skip without their packages, and loaded items."""

import numpy as np
import pytest

from vdm_jax.data import sprite_pictures
from vdm_jax.data.sprites import Geometry, Sprites

MISSING = [p.package for p in sprite_pictures.PACKAGES if p.find() is None]
needs_pictures = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"
)


def sprites(vocabulary="small", frames=8, side=64, **changes) -> Sprites:
    return Sprites(vocabulary, Geometry(frames, side, side), **changes)


def load(source: Sprites, index: int, frames: int = 0, seed: int = 0):
    rng = np.random.default_rng(seed)
    return source.load(index, rng, frames or source.geometry.frames)


def held_out_items(source: Sprites, n: int, seed: int = 0):
    """Return videos [n, f, h, w, 3], labels [n, attributes] and centres [n, f, 2]."""
    part = source.split(True)
    items = np.random.default_rng(seed).integers(len(part), size=n).tolist()
    clips = [load(part, item) for item in items]
    centres = [
        part.draw_place(clip["label"], np.random.default_rng((1, item)))[1]
        for item, clip in zip(items, clips, strict=True)
    ]
    arrays = [np.stack([clip[key] for clip in clips]) for key in ("video", "label")]
    return *arrays, np.stack(centres)
