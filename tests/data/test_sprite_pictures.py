"""Words and pictures of sprites: sprite_vocabulary.py and sprite_pictures.py."""

import itertools
import re

import numpy as np
import pytest

from tests.sprite_cases import needs_pictures
from vdm_jax.data import sprite_pictures, sprite_vocabulary
from vdm_jax.data.sprite_pictures import SUPERSAMPLING
from vdm_jax.data.sprite_vocabulary import COLOURS, PICKED, VOCABULARIES

MOTION_WORDS = r"left|right|up|down|upwards|downwards|slowly|quickly|pace"


def picture(seed=0, size=5):
    """Return random RGB times alpha, and alpha, as of `sprite_pictures.render`."""
    rng = np.random.default_rng(seed)
    rgba = rng.uniform(0, 255, (4, size * SUPERSAMPLING, size * SUPERSAMPLING))
    rgba[:3] *= rgba[3] / 255
    return rgba.astype(np.float32)


def blocks(fine):
    """Return means of [c, 4 h, 4 w] over squares of 4 x 4."""
    c, height, width = fine.shape
    cells = fine.reshape(c, height // 4, 4, width // 4, 4)
    return cells.mean((2, 4))


# Words.


def test_vocabularies_are_nested_and_nouns_are_unique():
    words = {name: sprite_vocabulary.objects(name, [0x1F996]) for name in VOCABULARIES}
    assert [len(words[name]) for name in ("small", "50", "100", "everyday")] == [
        24, 50, 100, 200,
    ]  # fmt: skip
    for shorter, longer in itertools.pairwise(words.values()):
        assert longer[: len(shorter)] == shorter
    nouns = [noun for _, noun in PICKED]
    assert len({*nouns}) == len({code for code, _ in PICKED}) == 200
    assert {"rocket", "frog", "cat", "dog"} <= {*nouns[:24]}


def test_no_noun_has_a_word_of_another_attribute():
    words = rf"\b({MOTION_WORDS}|slow|fast|face|{'|'.join(COLOURS)}|background)\b"
    assert not [noun for _, noun in PICKED if re.search(words, noun)]


def test_articles():
    found = {sprite_vocabulary.with_article(noun).split()[0] for _, noun in PICKED}
    assert found == {"a", "an"}
    cases = {"owl": "an owl", "unicorn": "a unicorn", "umbrella": "an umbrella"}
    assert {n: sprite_vocabulary.with_article(n) for n in cases} == cases


def test_named_colours_are_far_apart():
    values = np.array([*COLOURS.values()], float)
    distance = np.linalg.norm(values[:, None] - values, axis=-1)
    assert distance[~np.eye(8, dtype=bool)].min() > 80


# Pasting.


@pytest.mark.parametrize("across, down", [(0, 0), (1, 3), (2, 2), (3, 1), (17, 6)])
def test_a_pasted_picture_is_the_mean_over_pixels(across, down):
    """The reference moves whole columns of a canvas four times as fine."""
    rgba, frame = picture(), np.random.default_rng(1).uniform(0, 255, (12, 16, 3))
    canvas = np.zeros((4, 48, 64))
    canvas[:, down : down + 20, across : across + 20] = rgba
    *rgb, alpha = blocks(canvas)
    expected = frame * (1 - alpha[..., None] / 255) + np.stack(rgb, -1)
    pasted = frame.astype(np.float32)
    sprite_pictures.paste(pasted, rgba, across / 4, down / 4)
    np.testing.assert_allclose(pasted, expected, atol=1e-3)


def test_between_columns_a_picture_is_interpolated():
    """The mean over a pixel of a function of steps is linear between its steps."""

    def at(x):
        frame = np.zeros((12, 16, 3), np.float32)
        sprite_pictures.paste(frame, picture(), x, 2.25)
        return frame

    np.testing.assert_allclose(at(3.35), 0.6 * at(3.25) + 0.4 * at(3.5), atol=1e-3)


@pytest.mark.parametrize("x, y", [(0, 0), (11, 7), (10.9, 0.1)])
def test_a_picture_at_the_edge_is_whole(x, y):
    frame = np.zeros((12, 16, 3), np.float32)
    sprite_pictures.paste(frame, picture(), x, y)
    expected = picture()[:3].sum((1, 2)) / SUPERSAMPLING**2
    np.testing.assert_allclose(frame.sum((0, 1)), expected, rtol=1e-4)


# Pictures.


@needs_pictures
def test_a_rendered_picture_fills_its_square_and_is_centred():
    for code, noun in PICKED[:24]:
        alpha = sprite_pictures.render(code, 16)[3]
        rows, columns = (np.flatnonzero(alpha.max(axis)) for axis in (1, 0))
        extents = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert max(extents) >= 62, noun
        for line in (rows, columns):
            assert line[0] + line[-1] == pytest.approx(63, abs=2.5), noun


@needs_pictures
def test_rendered_colours_are_those_of_the_drawing():
    """A heart is one red, within a black line; its colour is in the file."""
    fill = re.search(
        r'fill="#(d22f27)"', (sprite_pictures.svg_folder() / "2764.svg").read_text()
    )
    assert fill
    red = [int(fill[1][i : i + 2], 16) for i in (0, 2, 4)]
    heart = sprite_pictures.render(0x2764, 32)
    np.testing.assert_array_equal(heart[:3, 64, 64], red)
    assert heart[3, 64, 64] == 255 and heart[3, 0, 64] == 0
    assert (heart[:3] <= heart[3]).all()  # RGB times alpha


@needs_pictures
def test_pictures_of_everyday_are_distinct():
    """At the least size no two are as similar as one is to itself half a pixel off."""
    bank = sprite_pictures.pictures("everyday", 21)
    grey = np.stack([blocks(rgba.astype(np.float32)) for rgba in bank]) / 255
    # On white, black and grey in turn: what is seen on any background.
    flat = np.concatenate(
        [grey[:, :3] + c * (1 - grey[:, 3:]) for c in (0, 0.5, 1)], 1
    ).reshape(len(bank), -1)
    energy = np.square(flat).sum(1)
    distance = energy[:, None] + energy - 2 * flat @ flat.T
    distance[np.diag_indices(len(bank))] = np.inf
    assert distance.min() / (3 * 3 * 21**2) > 0.01  # mean square of a value in [0, 1]


@needs_pictures
def test_a_damaged_cache_is_rendered_again(tmp_path):
    render = sprite_pictures.pictures.__wrapped__
    first = render("small", 8, str(tmp_path))
    (path,) = (tmp_path / "sprites").iterdir()
    before = path.stat().st_mtime_ns
    np.testing.assert_array_equal(render("small", 8, str(tmp_path)), first)
    assert path.stat().st_mtime_ns == before
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    np.testing.assert_array_equal(render("small", 8, str(tmp_path)), first)


@needs_pictures
def test_all_has_every_named_picture_once():
    everything = sprite_pictures.objects("all")
    assert everything[:200] == PICKED and len(everything) > 1300
    assert len({noun for _, noun in everything}) == len(everything)
    names = dict(everything)
    assert names[0x1F43E] == "paw prints"
    assert 0x1F408 not in names  # Unicode's CAT; the noun is that of the cat's face
    for code, noun in everything[200:]:
        assert (sprite_pictures.svg_folder() / f"{code:04X}.svg").exists(), noun
