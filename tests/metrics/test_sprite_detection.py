"""Objects and motion of sprites with known labels: sprite_detection, sprite_scores."""

import numpy as np
import pytest

from tests.sprite_cases import held_out_items, needs_pictures, sprites
from vdm_jax.data import sprite_pictures
from vdm_jax.data.sprite_pictures import SUPERSAMPLING
from vdm_jax.metrics import sprite_scores
from vdm_jax.metrics.sprite_descriptors import separate
from vdm_jax.metrics.sprite_detection import (
    Matcher,
    background_basis,
    detect_sprites,
    fit_background,
    silhouettes,
)

pytestmark = needs_pictures


@pytest.fixture(scope="module")
def clips():
    """Return source, videos, labels, true centres and detections of 24 clips."""
    source = sprites()
    videos, labels, centres = held_out_items(source, 24)
    return source, videos, labels, centres, detect_sprites(videos, source)


def least_squares(frame, template, row, column, basis):
    """Return the least error of a frame [h, w, 3] by a general solver."""
    height, width, _ = frame.shape
    side = template.shape[-1]
    canvas = np.zeros((4, height, width))
    canvas[:, row : row + side, column : column + side] = template
    design = ((1 - canvas[3]) * basis[:, :, None]).reshape(len(basis), -1).T
    target = (frame - np.moveaxis(canvas[:3], 0, -1)).reshape(-1, 3)
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    return np.square(target - design @ solution).sum(), solution


@pytest.mark.parametrize("gradients", [False, True])
def test_errors_are_those_of_least_squares_at_every_place(gradients):
    rng = np.random.default_rng(0)
    frame = rng.uniform(0, 1, (11, 13, 3)).astype(np.float32)
    side = 5 * SUPERSAMPLING
    pictures = rng.integers(0, 256, (2, 4, side, side)).astype(np.uint8)
    basis = background_basis(11, gradients)
    errors = Matcher(pictures, basis, 13).errors(np.moveaxis(frame, -1, 0))
    assert errors.shape == (2, 7, 9)
    for number, row, column in ((0, 0, 0), (1, 6, 8), (0, 3, 2), (1, 2, 7)):
        cells = pictures[number].reshape(4, 5, SUPERSAMPLING, 5, SUPERSAMPLING)
        template = cells.mean((2, 4)) / 255
        expected, _ = least_squares(frame, template, row, column, basis)
        assert errors[number, row, column] == pytest.approx(expected, rel=1e-4)


def test_a_background_between_pixels_is_recovered():
    source = sprites(frames=1, gradients=True)
    picture = sprite_pictures.pictures("small", 28)[3].astype(np.float32)
    frame = source.background(20, np.random.default_rng(0))
    top, bottom = 1.5 * frame[0, 0] - 0.5 * frame[1, 0], frame[-1, 0]
    sprite_pictures.paste(frame, picture, 11.3, 20.85)
    basis = background_basis(64, True)
    error, edges, rendering = fit_background(frame / 255, picture, 11.3, 20.85, basis)
    assert error < 1e-6
    np.testing.assert_allclose(rendering, frame / 255, atol=1e-4)
    np.testing.assert_allclose(edges[0], top / 255, atol=1e-4)
    np.testing.assert_allclose(edges[1], bottom / 255, atol=0.02)  # half a row off


@pytest.mark.parametrize(
    "vocabulary, side, gradients",
    [
        ("everyday", 64, False),
        pytest.param("everyday", 48, False, marks=pytest.mark.slow),
        ("small", 57, True),
    ],
)
def test_stills_are_recognised(vocabulary, side, gradients):
    source = sprites(vocabulary, 1, side, gradients=gradients)
    videos, labels, centres = held_out_items(source, 60)
    detected = detect_sprites(videos, source)
    correct = sprite_scores.measure(detected, source) == labels
    assert correct.mean(0).min() >= 0.98
    assert sprite_scores.trajectory_error(detected, centres).mean() < 0.2


def test_real_clips_score_high_and_distorted_ones_low():
    rows = sprite_scores.reference_scores(sprites(), n=10)
    for name in ("real", "real + noise .2"):
        assert rows[name]["all_attributes"] == rows[name]["identity"] == 1
    assert rows["noise"]["object"] <= 0.2
    for name in ("noise", "shuffled frames", "frames of other clips"):
        assert rows[name]["direction"] <= 0.25 and rows[name]["all_attributes"] == 0
    assert rows["shuffled frames"]["object"] == 1
    assert rows["frames of other clips"]["identity"] == 0
    assert rows["chance"]["object"] == pytest.approx(1 / 24)
    assert rows["chance"]["all_attributes"] == pytest.approx(1 / 1536)


def test_centres_sizes_and_renderings_are_those_of_the_data(clips):
    _, videos, _, centres, detected = clips
    np.testing.assert_allclose(detected.centre, centres, atol=0.6)
    assert np.linalg.norm(detected.centre - centres, axis=-1).mean() < 0.15
    assert (detected.size == detected.size[:, :1]).all()
    difference = np.abs(detected.rendering.astype(int) - videos)
    assert difference.mean() < 1.5  # of 255


@needs_pictures
@pytest.mark.parametrize("size", [27, 31, 33, 37])
def test_an_object_of_a_size_that_the_data_lack_is_found(size):
    """Samples have any size; the nearest one that is searched explains them."""
    source = sprites(frames=1)
    white = source.background(0, np.random.default_rng(0))
    frames = [
        source.render(k, size, np.array([[30.0, 33.0]]), white) for k in range(24)
    ]
    found = detect_sprites(np.stack(frames), source)
    assert (found.object[:, 0] == np.arange(24)).all()
    assert (abs(found.size - size) <= 2).all()
    assert (found.explained > 0.5).all()


def test_an_object_that_the_border_cuts_off_is_found_beyond_it():
    """By 8 pixels at each edge, by 2 or less, and inside of the frame."""
    source, side, half = sprites(frames=1), 64, 14
    places = [(half - 8, 30), (side - half + 8, 30), (30, half - 8), (30, side - 6)]
    places += [(half - 1, 30), (30, side - half), (24, 24)]
    large = sprites(frames=1, side=side + 40)
    white = large.background(0, np.random.default_rng(0))
    clips = [
        large.render(k, 2 * half, np.array([place], np.float32) + 20, white)
        for k, place in enumerate(places)
    ]
    videos = np.stack(clips)[:, :, 20:-20, 20:-20]
    found = detect_sprites(videos, source, margin=half)
    assert (found.object[:, 0] == np.arange(len(places))).all()
    np.testing.assert_allclose(found.centre[:, 0], places, atol=1.5)
    cut = sprite_scores.cut_off(videos, source)
    assert cut.tolist() == [True] * 4 + [False] * 3


def test_real_clips_and_noise_are_not_cut_off(clips):
    source, videos, _, _, _ = clips
    noise = np.random.default_rng(0).integers(0, 256, videos[:2].shape, np.uint8)
    assert not sprite_scores.cut_off(np.concatenate([videos[:6], noise]), source).any()


def test_silhouettes_are_where_a_clip_differs_from_its_background(clips):
    """All but its soft edge and what has the background's colour."""
    source, videos, _, _, found = clips
    flat = [i for i in range(len(videos)) if found.explained[i].min() > 0.98][:3]
    masks = silhouettes(videos[flat], source) > 127
    for clip, mask in zip(videos[flat], masks, strict=True):
        for frame, own in zip(clip, mask[..., 0], strict=True):
            apart = separate(frame / np.float32(255))
            assert (own & apart).sum() > 0.8 * (own | apart).sum()


def test_uint8_and_float_have_equal_scores(clips):
    source, videos, labels, _, _ = clips
    some = slice(0, 4)
    a = sprite_scores.scores(videos[some], labels[some], source)
    b = sprite_scores.scores(videos[some] / 127.5 - 1, labels[some], source)
    for name in a:
        assert a[name] == pytest.approx(b[name], abs=1e-5), name


def test_reversed_clips_have_the_opposite_direction(clips):
    source, _, labels, _, detected = clips
    reverse = type(detected)(*(field[:, ::-1] for field in detected))
    expected = labels.copy()
    expected[:, 2] = np.array([1, 0, 3, 2])[labels[:, 2]]
    np.testing.assert_array_equal(sprite_scores.measure(reverse, source), expected)


def test_a_frame_that_goes_back_makes_the_direction_undecidable(clips):
    source, _, labels, _, detected = clips
    order = [0, 1, 2, 4, 3, 5, 6, 7]
    mixed = type(detected)(*(field[:, order] for field in detected))
    found = sprite_scores.measure(mixed, source)
    assert (found[:, 2] == -1).all()
    np.testing.assert_array_equal(found[:, :2], labels[:, :2])


def test_a_blank_frame_makes_all_undecidable(clips):
    source, videos, _, _, _ = clips
    blank = videos[:2].copy()
    blank[0, 5] = blank[0, 5, 0, 0]
    blank[1, :] = 140
    detected = detect_sprites(blank, source)
    np.testing.assert_array_equal(sprite_scores.measure(detected, source), -1)
    assert not sprite_scores.identity(detected).any()


def test_a_background_of_no_name_is_undecidable():
    source = sprites(frames=1)
    turquoise = np.full((64, 64, 3), (0, 220, 200), np.float32)
    frame = source.render(1, 36, np.array([[30.0, 31.5]]), turquoise)
    detected = detect_sprites(frame[None], source)
    np.testing.assert_array_equal(sprite_scores.measure(detected, source), [[1, -1]])


def test_identity_notices_one_frame_of_another_object(clips):
    _, _, labels, _, detected = clips
    objects = detected.object.copy()
    objects[3, 2] = (objects[3, 2] + 1) % 24
    changed = sprite_scores.identity(detected._replace(object=objects))
    assert np.flatnonzero(~changed).tolist() == [3]


def test_trajectory_error_is_the_distance(clips):
    _, _, _, _, detected = clips
    moved = detected.centre + np.array([3.0, -4.0])
    np.testing.assert_allclose(
        sprite_scores.trajectory_error(detected, moved), 5, rtol=1e-5
    )


def test_flicker_counts_changes_between_frames(clips):
    _, videos, _, _, _ = clips
    real = videos[:3] / 127.5 - 1
    constant = sprite_scores.flicker(real + 0.2, real)
    np.testing.assert_allclose(constant, 0, atol=1e-6)
    sign = np.array([1, -1] * 4)[None, :, None, None, None]
    # +-.05 in a range of 2 is .025 of [0, 1], and twice that from frame to frame.
    alternating = sprite_scores.flicker(real + 0.05 * sign, real)
    np.testing.assert_allclose(alternating, 0.05, rtol=1e-4)


def test_warp_error_is_small_for_a_rigid_object_only(clips):
    source, videos, _, _, detected = clips
    rigid = sprite_scores.warp_error(videos, detected)
    still = detected._replace(centre=detected.centre[:, :1].repeat(8, 1))
    assert (rigid < 0.1).all()
    assert (sprite_scores.warp_error(videos, still) > 1.3 * rigid).all()
    constant = videos[:, :1].repeat(8, 1)
    np.testing.assert_allclose(sprite_scores.warp_error(constant, still), 0, atol=1e-7)


@pytest.mark.parametrize(
    "column, inside", [(16, False), (17, True), (44, True), (45, False)]
)
def test_warp_error_is_of_the_square_about_the_centre(clips, column, inside):
    _, _, _, _, detected = clips
    one = type(detected)(*(field[:1, :2] for field in detected))
    one = one._replace(
        size=np.full((1, 2), 28), centre=np.array([[[31.0, 30.0], [31.0, 30.0]]])
    )
    videos = np.zeros((1, 2, 64, 64, 3), np.uint8)
    videos[0, 1, 30, column] = 255
    expected = np.sqrt(1 / 28**2) if inside else 0
    found = sprite_scores.warp_error(videos, one)[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_seen_and_unseen_pairs_are_scored_apart(clips):
    source, videos, labels, _, _ = clips
    parts = sprite_scores.split_scores(videos, labels, source)
    assert parts["seen"]["clips"] + parts["unseen"]["clips"] == len(videos)
    assert parts[""] == sprite_scores.scores(videos, labels, source)
    part = labels[((labels[:, :1] + labels[:, 1:3]) % 4 == 3).any(1)]
    assert parts["unseen"]["clips"] == len(part) > 0
    assert parts["unseen"]["object"] == 1


def test_an_interval_holds_the_probabilities_that_do_not_contradict_the_share():
    """Its ends solve |p - share| = z sqrt(p (1 - p) / n)."""
    for share, n in ((0.98, 200), (0.5, 10), (1.0, 60), (0.0, 60)):
        low, high = sprite_scores.wilson_interval(share, n)
        assert 0 <= low <= share <= high <= 1
        for p in {low, high} - {share}:
            assert abs(p - share) == pytest.approx(1.96 * np.sqrt(p * (1 - p) / n))
