"""Pictures as PNG, and a sheet of them near a square with a caption below each."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdm_jax import files
from vdm_jax.files import StrPath

GUTTER, LINE, LETTER = 6, 12, 6  # pixels: between pictures, of a line, of a letter
MAX_LINES = 3  # of a caption; the rest is cut


def write_picture(path: StrPath, picture: np.ndarray, overwrite: bool = False) -> None:
    """Write a picture uint8 [h, w, 1 or 3] as a PNG of its own size."""
    with files.atomic_write(path, overwrite) as temporary:
        _image(picture).save(temporary, "PNG")


def write_picture_grid(
    path: StrPath,
    pictures: np.ndarray,
    captions: Sequence[str] = (),
    scale: int = 0,
    overwrite: bool = False,
    columns: int = 0,
) -> None:
    """Write a PNG of pictures uint8 [n, h, w, 1 or 3], row by row.

    captions: of each picture, or none. A long one is cut after MAX_LINES lines.
    scale: pixels of the sheet to one of a picture; 0 makes a picture about 128 wide.
    columns: in a row; 0 makes the sheet near a square.
    """
    n, height, width, _ = pictures.shape
    scale = scale or max(1, round(128 / width))
    size = width * scale, height * scale
    font = ImageFont.load_default(10)
    lines = [textwrap.wrap(c, max(1, size[0] // LETTER)) for c in captions or [""] * n]
    text_height = LINE * min(MAX_LINES, max(map(len, lines)))
    cell = np.array([size[0] + GUTTER, size[1] + text_height + GUTTER])
    # Of the numbers of columns whose sheet has the least longer side, the smallest.
    widths = [columns] if columns else range(1, n + 1)
    shapes = [(columns, -(-n // columns)) for columns in widths]
    columns, rows = min(shapes, key=lambda shape: max(cell * shape))
    sheet = Image.new("RGB", tuple((cell * (columns, rows) + GUTTER).tolist()), "white")
    for i, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
        x, y = (cell * (i % columns, i // columns) + GUTTER).tolist()
        sheet.paste(_image(picture).resize(size, Image.Resampling.NEAREST), (x, y))
        if text:  # drawn on a label of its own, which cuts wide letters at the cell
            label = Image.new("RGB", (size[0], text_height), "white")
            words = "\n".join(text[:MAX_LINES])
            ImageDraw.Draw(label).multiline_text(
                (0, 0), words, "black", font, spacing=1
            )
            sheet.paste(label, (x, y + size[1]))
    with files.atomic_write(path, overwrite) as temporary:
        sheet.save(temporary, "PNG")


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(picture, 3 // picture.shape[-1], axis=-1))
