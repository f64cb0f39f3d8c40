"""A sheet of pictures near a square, with a caption below each."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdm_jax import files
from vdm_jax.files import StrPath

GUTTER, LINE, LETTER = 6, 12, 6  # pixels: between pictures, of a line, of a letter
MAX_LINES = 3  # of a caption; the rest is cut


def write_picture_grid(
    path: StrPath,
    pictures: np.ndarray,
    captions: Sequence[str],
    columns: int = 0,
    scale: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a PNG of pictures uint8 [n, h, w, 3], row by row.

    columns: in a row; 0 makes the sheet near a square.
    scale: pixels of the sheet to one of a picture; 0 makes a picture about 128 wide.
    """
    n, height, width, _ = pictures.shape
    scale = scale or max(1, round(128 / width))
    font = ImageFont.load_default(10)
    lines = [textwrap.wrap(c, max(1, width * scale // LETTER)) for c in captions]
    text_height = LINE * min(MAX_LINES, max(map(len, lines), default=0))
    cell = np.array([width * scale + GUTTER, height * scale + text_height + GUTTER])
    columns = columns or max(1, round(math.sqrt(n * cell[1] / cell[0])))
    rows = -(-n // columns)
    sheet = Image.new("RGB", tuple((cell * (columns, rows) + GUTTER).tolist()), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
        x, y = (cell * (i % columns, i // columns) + GUTTER).tolist()
        size = (width * scale, height * scale)
        sheet.paste(
            Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), (x, y)
        )
        words = "\n".join(text[:MAX_LINES])
        draw.multiline_text((x, y + size[1]), words, "black", font, spacing=1)
    with files.atomic_write(path, overwrite) as temporary:
        sheet.save(temporary, "PNG")
