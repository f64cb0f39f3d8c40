"""Sections of a report's page."""

import numpy as np

from vdm_jax.evaluators import sections


def test_the_closest_pair_is_first_with_the_sample_on_the_left():
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (5, 2, 8, 8, 3), dtype=np.uint8)
    samples = training[[3, 0, 4]].copy()
    samples[0, 0, 0, 0] ^= 255  # the second is a copy
    samples[2, :, :2] ^= 255
    real, nearest = sections.comparison_sections(samples, training, training, 8)
    assert [len(grid.videos) for grid in real.grids] == [5, 3]
    order, clips = [1, 0, 2], [0, 3, 4]
    for grid, sample, clip in zip(nearest.grids, order, clips, strict=True):
        np.testing.assert_array_equal(grid.videos[0], samples[sample])
        np.testing.assert_array_equal(grid.videos[1], training[clip])
    assert nearest.grids[0].caption == "distance 0.000"


def test_pictures_stand_side_by_side_above_their_prompts():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8, 3), np.uint8)
    shown = sections.prompt_grid(["a", "b", "c"], {"model": pictures}, 1.0)
    assert [grid.caption for grid in shown.grids] == ["a", "b", "c"]
    for grid, picture in zip(shown.grids, pictures, strict=True):
        np.testing.assert_array_equal(grid.videos, picture[None])
    clips = pictures.repeat(2, axis=1)
    assert sections.prompt_grid(["a"], {"model": clips}, 1.0).prompts == ["a"]
