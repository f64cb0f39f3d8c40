"""The sheet of pictures with captions."""

import numpy as np
import pytest
from PIL import Image

from vdm_jax.errors import UserError
from vdm_jax.video_io.picture_grid import GUTTER, LINE, MAX_LINES, write_picture_grid

PICTURES = np.random.default_rng(0).integers(0, 255, (5, 8, 12, 3)).astype(np.uint8)


def sheet(path, captions, **options):
    write_picture_grid(path, PICTURES, captions, **options)
    return np.asarray(Image.open(path))


def test_pictures_are_where_their_row_and_column_are(tmp_path):
    pixels = sheet(tmp_path / "a.png", ["x"] * 5, scale=4)
    height, width = 8 * 4 + LINE + GUTTER, 12 * 4 + GUTTER
    assert pixels.shape == (3 * height + GUTTER, 2 * width + GUTTER, 3)
    for i, picture in enumerate(PICTURES):
        y, x = i // 2 * height + GUTTER, i % 2 * width + GUTTER
        shown = pixels[y : y + 32, x : x + 48]
        np.testing.assert_array_equal(shown[::4, ::4], picture)
        below = pixels[y + 32 : y + 32 + LINE, x : x + 48]
        assert (below < 128).any()  # the caption
    last = pixels[2 * height + GUTTER :, width + GUTTER :]
    assert (last == 255).all()


def test_without_columns_the_sheet_is_near_a_square(tmp_path):
    height, width, _ = sheet(tmp_path / "a.png", ["a long caption"] * 5).shape
    assert 0.4 < height / width < 2.5


def test_a_caption_of_any_length_stays_in_its_cell(tmp_path):
    others = ["word " * 20] * 4  # captions of as many lines in both sheets
    short = sheet(tmp_path / "a.png", ["x", *others], scale=8)
    y, x = GUTTER + 8 * 8, GUTTER + 12 * 8  # where the first caption starts and ends
    for words in ("word " * 100, "W" * 100, "word\nword"):
        long = sheet(tmp_path / "a.png", [words, *others], scale=8, overwrite=True)
        changed = (long != short).any(-1)
        own = changed[y : y + MAX_LINES * LINE, GUTTER:x]
        assert own.any() and own.sum() == changed.sum()


@pytest.mark.parametrize(("side", "shown"), [(8, 128), (64, 128), (512, 512)])
def test_small_pictures_have_larger_pixels(tmp_path, side, shown):
    pictures = np.zeros((4, side, side, 1), np.uint8)
    write_picture_grid(tmp_path / "a.png", pictures)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == 2 * (2 * (shown + GUTTER) + GUTTER,) + (3,)


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "a.png"
    sheet(path, [""] * 5)
    with pytest.raises(UserError, match="exists already"):
        sheet(path, [""] * 5)
    sheet(path, [""] * 5, overwrite=True)


def test_a_number_of_columns(tmp_path):
    pixels = sheet(tmp_path / "a.png", (), scale=1, columns=5)
    assert pixels.shape == (8 + 2 * GUTTER, 5 * (12 + GUTTER) + GUTTER, 3)
