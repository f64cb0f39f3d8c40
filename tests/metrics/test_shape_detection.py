"""Template matching of clips with known attributes."""

import numpy as np
import pytest

from vdm_jax.data import shapes
from vdm_jax.metrics import shape_scores
from vdm_jax.metrics.shape_scores import SHAPES, position_scores

GEOMETRY = shapes.Geometry(8, 16, 16)


def clips(n=72, geometry=GEOMETRY):
    source, rng = shapes.Shapes(geometry, held_out=True), np.random.default_rng(0)
    loaded = [source.load(i, rng, geometry.frames) for i in range(n)]
    return [np.stack([c[key] for c in loaded]) for key in ("video", "label")]


@pytest.fixture(scope="module")
def real():
    return clips()


def all_attributes(videos, labels):
    return shape_scores.accuracy(SHAPES.measure(videos), labels, SHAPES.names)[
        "all_attributes"
    ]


def test_reference_scores_are_high_for_real_and_low_for_distorted_clips():
    rows = SHAPES.reference_scores(GEOMETRY, n=144)
    assert rows["real"]["all_attributes"] >= 0.99
    assert rows["real + noise .2"]["all_attributes"] >= 0.99
    assert rows["shuffled frames"]["all_attributes"] <= 0.1
    assert rows["noise"]["all_attributes"] <= 0.1
    assert rows["chance"]["all_attributes"] == pytest.approx(1 / 3 / 3 / 4 / 2)
    assert rows["real"]["template_mse"] < 0.1 < rows["real + noise .2"]["template_mse"]


@pytest.mark.parametrize("size", [(16, 32, 32), (9, 20, 12), (4, 12, 24)])
def test_other_sizes(size):
    assert all_attributes(*clips(36, shapes.Geometry(*size))) >= 0.97


def test_centres_are_those_that_were_rendered(real):
    videos, _ = real
    centres = SHAPES.measure(videos)["centres"]
    labels = [np.array(np.unravel_index(i, shapes.ATTRIBUTE_SIZES)) for i in range(72)]
    for i, label in enumerate(labels):
        rng = np.random.default_rng((1, i))  # the held-out item's own
        truth = np.stack(shapes.trajectory(label, rng, GEOMETRY), -1)
        np.testing.assert_allclose(centres[i], truth, atol=0.15)


def test_uint8_and_float_have_equal_scores(real):
    videos, _ = real
    a, b = SHAPES.measure(videos), SHAPES.measure(videos / 127.5 - 1)
    np.testing.assert_array_equal(a["attributes"], b["attributes"])
    np.testing.assert_allclose(a["template_mse"], b["template_mse"], atol=1e-4)


def test_mirrors_and_reversal_map_the_direction(real):
    videos, labels = real
    flips = {
        "time": (videos[:, ::-1], [1, 0, 3, 2]),
        "width": (videos[:, :, :, ::-1], [1, 0, 2, 3]),
        "height": (videos[:, :, ::-1], [0, 1, 3, 2]),
        "transposed": (videos.swapaxes(2, 3), [2, 3, 0, 1]),
    }
    for name, (flipped, mapped) in flips.items():
        expected = labels.copy()
        expected[:, 2] = np.array(mapped)[labels[:, 2]]
        got = SHAPES.measure(flipped)["attributes"]
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_channel_order_is_the_colour(real):
    videos, labels = real
    expected = labels.copy()
    expected[:, 1] = (labels[:, 1] + 1) % 3
    got = SHAPES.measure(np.roll(videos, 1, axis=-1))["attributes"]
    np.testing.assert_array_equal(got, expected)


def test_one_reversed_displacement_makes_the_direction_undecidable(real):
    videos, labels = real
    swapped = videos[:, [0, 1, 2, 4, 3, 5, 6, 7]]
    got = SHAPES.measure(swapped)["attributes"]
    assert (got[:, 2] == -1).all()
    np.testing.assert_array_equal(got[:, :2], labels[:, :2])


def test_a_still_clip_has_neither_direction_nor_speed(real):
    got = SHAPES.measure(np.repeat(real[0][:, :1], 8, 1))["attributes"]
    np.testing.assert_array_equal(got[:, 2:], -1)


def test_an_empty_frame_makes_all_undecidable(real):
    videos = real[0].copy()
    videos[:, 5] = 0
    np.testing.assert_array_equal(SHAPES.measure(videos)["attributes"], -1)
    black = np.zeros((1, 8, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(SHAPES.measure(black)["attributes"], -1)


def test_two_shapes_make_the_shape_undecidable():
    """Two discs in opposite corners with the same motion."""
    geometry = shapes.Geometry(8, 24, 24)
    time = np.arange(8) * geometry.fast_speed
    a, b = np.full(8, 6.0), np.full(8, 18.0)
    one = shapes.coverage(0, 6 + time / 2, a, geometry)
    two = one + shapes.coverage(0, 12 + time / 2, b, geometry)
    videos = np.stack([one, two])[..., None] * shapes.COLOURS[0] * 2 - 1
    got = SHAPES.measure(videos)["attributes"]
    np.testing.assert_array_equal(got[0], [0, 0, 1, 0])
    assert got[1, 0] == -1


def test_two_colours_make_the_colour_undecidable(real):
    white = np.repeat(real[0].max(-1, keepdims=True), 3, -1)
    got = SHAPES.measure(white)["attributes"]
    np.testing.assert_array_equal(got[:, 1], -1)


def test_template_mse_counts_pixels(real):
    """A dot of the shape's colour far from it adds its energy, 1 per frame."""
    videos = real[0][:1].copy()
    before = SHAPES.measure(videos)["template_mse"][0]
    corner = (videos[0].max((0, 3))[[0, 0, -1, -1], [0, -1, 0, -1]]).argmin()
    videos[:, :, [0, 0, -1, -1][corner], [0, -1, 0, -1][corner], 0] = 255
    after = SHAPES.measure(videos)["template_mse"][0]
    assert after - before == pytest.approx(1.0, abs=0.02)


def test_position_std_is_that_of_the_mean_positions(real):
    measured = SHAPES.measure(real[0])
    means = measured["centres"].mean(1)
    expected = np.sqrt((means.var(0)[0] + means.var(0)[1]) / 2)
    assert position_scores(measured)["position_std"] == pytest.approx(float(expected))
    same = SHAPES.measure(np.repeat(real[0][:1], 3, 0))
    assert position_scores(same)["position_std"] == pytest.approx(0, abs=1e-5)


def test_accuracy_ignores_unspecified_labels_and_counts_undecidable_as_wrong():
    measured = {"attributes": np.array([[0, 1, 2, 1], [0, -1, 2, 0]])}
    labels = np.array([[0, 1, 2, -1], [-1, 0, 2, -1]])
    got = shape_scores.accuracy(measured, labels, SHAPES.names)
    expected = {
        "shape": 1,
        "colour": 0.5,
        "direction": 1,
        "speed": 1,
        "all_attributes": 0.5,
    }
    assert got == expected


def test_position_std_error_is_the_deviation_over_fresh_clips():
    rng = np.random.default_rng(0)

    def fresh():
        centres = rng.normal(5, 2, (80, 1, 2)).repeat(4, 1)
        return position_scores({"centres": centres, "template_mse": np.zeros(80)})

    expected = np.std([fresh()["position_std"] for _ in range(500)])
    error = np.mean([fresh()["position_std_error"] for _ in range(5)])
    assert error == pytest.approx(expected, rel=0.15)
