"""The second measure of sprites, and its agreement with the first."""

import numpy as np
import pytest

from tests.sprite_cases import held_out_items, needs_pictures, sprites
from vdm_jax.metrics import sprite_descriptors, sprite_scores
from vdm_jax.metrics.sprite_detection import detect_sprites

DISC = np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 12


def test_a_mask_is_filled_where_the_object_encloses_the_background():
    image = np.full((40, 40, 3), 0.5)
    ring = DISC & ~(np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 9)
    image[ring] = (1, 0, 0)
    np.testing.assert_array_equal(sprite_descriptors.separate(image), DISC)


def test_moments_of_an_ellipse():
    """Second moments of a disc are r^2 / 4: of unit area 1 / (4 pi)."""
    y, x = np.mgrid[:80, :80] - 39.5
    for a, b in ((20, 20), (30, 15)):
        found = sprite_descriptors.outline_moments((x / a) ** 2 + (y / b) ** 2 < 1)
        expected = [a / b / 4 / np.pi, 0, b / a / 4 / np.pi, 0, 0, 0, 0]
        np.testing.assert_allclose(found[:7], expected, atol=2e-3)
        np.testing.assert_allclose(found[7:], [np.log(a / b), np.pi / 4], atol=0.03)


def test_a_histogram_of_one_colour_has_its_bin():
    image = np.zeros((4, 4, 3)) + (0.125, 0.625, 1.0)  # centres of bins, and the end
    found = sprite_descriptors.colour_histogram(image, np.ones((4, 4), bool))
    assert np.flatnonzero(found).tolist() == [0 * 16 + 2 * 4 + 3]
    assert found.max() == pytest.approx(1)


@pytest.mark.parametrize("axis, bins", [(1, 0), (0, 4)])
def test_edges_have_the_direction_of_the_gradient(axis, bins):
    image = np.repeat((np.mgrid[:20, :20][axis] / 20)[..., None], 3, -1)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    found = sprite_descriptors.edge_histograms(image, mask).reshape(9, 8)
    assert (found[:, bins] > 0).all()
    np.testing.assert_allclose(np.delete(found, bins, 1), 0, atol=1e-6)


def test_a_blank_still_has_a_description():
    blank = np.full((64, 64, 3), 140, np.uint8)
    assert not sprite_descriptors.describe(blank).any()


@needs_pictures
def test_two_measures_agree_on_captions_half_of_which_are_wrong():
    """Of 200 stills of everyday objects, does each show what its caption says?

    100 captions name another object: for every second of them the most similar one by
    the descriptions, for the others any.
    """
    source = sprites("everyday", 1)
    videos, labels, _ = held_out_items(source, 200, seed=3)
    second = sprite_descriptors.nearest_description("everyday", 64, 64)
    means = second.descriptions.reshape(200, -1, second.descriptions.shape[1]).mean(1)
    distance = np.square(means[:, None] - means).sum(-1)
    distance[np.diag_indices(200)] = np.inf
    claimed, rng = labels[:, 0].copy(), np.random.default_rng(0)
    claimed[:50] = distance.argmin(1)[claimed[:50]]
    claimed[50:100] = (claimed[50:100] + rng.integers(1, 200, 50)) % 200
    truth = np.arange(200) >= 100
    detected = detect_sprites(videos, source)
    first = sprite_scores.measure(detected, source)[:, 0] == claimed
    other = second.name(videos[:, 0]) == claimed
    assert np.count_nonzero(first == other) >= 190
    assert np.count_nonzero(first == truth) >= 196
    assert np.count_nonzero(other == truth) >= 190
