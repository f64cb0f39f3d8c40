"""The sheet of pictures with captions."""

import numpy as np
import pytest
from PIL import Image

from vdm_jax.errors import UserError
from vdm_jax.video_io.picture_grid import GUTTER, LINE, write_picture_grid

PICTURES = np.random.default_rng(0).integers(0, 255, (5, 8, 12, 3)).astype(np.uint8)


def sheet(path, captions, **options):
    write_picture_grid(path, PICTURES, captions, **options)
    return np.asarray(Image.open(path))


def test_pictures_are_where_their_row_and_column_are(tmp_path):
    pixels = sheet(tmp_path / "a.png", ["x"] * 5, columns=3, scale=4)
    height, width = 8 * 4 + LINE + GUTTER, 12 * 4 + GUTTER
    assert pixels.shape == (2 * height + GUTTER, 3 * width + GUTTER, 3)
    for i, picture in enumerate(PICTURES):
        y, x = i // 3 * height + GUTTER, i % 3 * width + GUTTER
        shown = pixels[y : y + 32, x : x + 48]
        np.testing.assert_array_equal(shown[::4, ::4], picture)
        below = pixels[y + 32 : y + 32 + LINE, x : x + 48]
        assert (below < 128).any()  # the caption
    last = pixels[height + GUTTER :, 2 * width + GUTTER :]
    assert (last == 255).all()


def test_without_columns_the_sheet_is_near_a_square(tmp_path):
    height, width, _ = sheet(tmp_path / "a.png", ["a long caption"] * 5).shape
    assert 0.4 < height / width < 2.5


def test_a_caption_of_any_length_stays_in_its_cell(tmp_path):
    one = sheet(tmp_path / "a.png", ["word " * 100] + [""] * 4, columns=5, scale=8)
    cell = one[:, GUTTER + 12 * 8 + GUTTER :]
    below = cell[GUTTER + 8 * 8 :, :]
    assert (below == 255).all()


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "a.png"
    sheet(path, [""] * 5)
    with pytest.raises(UserError, match="exists already"):
        sheet(path, [""] * 5)
    sheet(path, [""] * 5, overwrite=True)
