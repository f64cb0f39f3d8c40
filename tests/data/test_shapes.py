"""Moving shapes: vdm_jax/data/shapes.py."""

import itertools
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from vdm_jax.data import shapes
from vdm_jax.errors import UserError

GEOMETRY = shapes.Geometry(8, 16, 16)
SOURCE = shapes.Shapes(GEOMETRY)
SIZES = [(8, 16, 16), (2, 8, 8), (16, 32, 32), (9, 20, 12), (5, 17, 31)]


def load(index, source=SOURCE, frames=None, seed=0):
    frames = frames or source.geometry.frames
    return source.load(index, np.random.default_rng(seed), frames)


def centre_of_mass(grey):
    """Return x, y [n] of images [n, h, w]; 0.5 is the centre of the first pixel."""
    mass = grey.sum((1, 2))
    y = (grey.sum(2) * (np.arange(grey.shape[1]) + 0.5)).sum(1) / mass
    x = (grey.sum(1) * (np.arange(grey.shape[2]) + 0.5)).sum(1) / mass
    return x, y


@pytest.mark.parametrize("shape", range(3))
def test_coverage_has_the_area_of_the_disc_at_every_position(shape):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(5, 11, (2, 50))
    grey = shapes.coverage(shape, x, y, GEOMETRY)
    assert grey.min() >= 0 and grey.max() <= 1
    area = math.pi * GEOMETRY.radius**2
    # rows are sampled ROWS times a pixel: off by at most one sample row of edge
    np.testing.assert_allclose(grey.sum((1, 2)), area, atol=2.5)
    np.testing.assert_allclose(grey.sum((1, 2)).mean(), area, rtol=3e-3)
    np.testing.assert_allclose(centre_of_mass(grey), (x, y), atol=0.08)


@pytest.mark.parametrize("shape", range(3))
def test_coverage_equals_supersampling(shape):
    """The reference tests inequalities of the shapes on a 16 times finer grid."""
    x0, y0, fine, r = 7.3, 8.6, 16, GEOMETRY.radius
    y, x = (np.mgrid[: 16 * fine, : 16 * fine] + 0.5) / fine
    dx, dy = abs(x - x0), abs(y - y0)
    half = r * math.sqrt(math.pi) / 2
    arm = r * math.sqrt(math.pi / 2.56)
    inside = [
        dx**2 + dy**2 < r**2,
        (dx < half) & (dy < half),
        ((dx < arm) & (dy < 0.4 * arm)) | ((dx < 0.4 * arm) & (dy < arm)),
    ][shape]
    expected = inside.reshape(16, fine, 16, fine).mean((1, 3))
    got = shapes.coverage(shape, np.array([x0]), np.array([y0]), GEOMETRY)[0]
    np.testing.assert_allclose(got, expected, atol=0.13)  # one sample row of eight
    assert abs(got - expected).mean() < 0.01


def test_shapes_are_symmetric_and_move_with_their_centre():
    def render(shape, x, y):
        return shapes.coverage(shape, np.array([x]), np.array([y]), GEOMETRY)[0]

    for shape in range(3):
        grey = render(shape, 8.0, 8.0)
        for same in (grey[::-1], grey[:, ::-1]):
            np.testing.assert_allclose(grey, same, atol=1e-6)
        moved = np.roll(grey, (2, 1), (0, 1))
        np.testing.assert_allclose(render(shape, 9.0, 10.0), moved, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_paths_stay_inside_and_follow_the_label(size):
    geometry = shapes.Geometry(*size)
    frames, height, width = size
    rng = np.random.default_rng(1)
    for label in itertools.product(*map(range, shapes.ATTRIBUTE_SIZES)):
        extent = shapes.EXTENT[label[0]] * geometry.radius
        for _ in range(5):
            x, y = shapes.trajectory(np.array(label), rng, geometry)
            assert extent - 1e-4 <= x.min() and x.max() <= width - extent + 1e-4
            assert extent - 1e-4 <= y.min() and y.max() <= height - extent + 1e-4
            steps = np.diff(np.stack([x, y], 1), axis=0)
            speed = geometry.fast_speed * (1.0 if label[3] else 0.6)
            heading = [(-1, 0), (1, 0), (0, -1), (0, 1)][label[2]]
            expected = np.tile(np.multiply(heading, speed), (frames - 1, 1))
            np.testing.assert_allclose(steps, expected, atol=1e-4)


def test_speeds_at_the_default_size():
    assert GEOMETRY.fast_speed == pytest.approx(0.893, abs=0.001)
    assert GEOMETRY.radius == pytest.approx(4.0)


@pytest.mark.parametrize("size", SIZES)
def test_no_two_labels_look_alike(size):
    """They differ even where they are most similar: with one centre at mid-clip.

    The most similar pairs are the two speeds and, at 8x8, disc and square.
    """
    geometry = shapes.Geometry(*size)
    middle = np.array([geometry.width, geometry.height]) / 2
    clips = []
    for label in itertools.product(*map(range, shapes.ATTRIBUTE_SIZES)):
        rng = np.random.default_rng(0)
        x, y = shapes.trajectory(np.array(label), rng, geometry)
        x, y = x - x.mean() + middle[0], y - y.mean() + middle[1]
        grey = shapes.coverage(label[0], x, y, geometry)
        clips.append((grey[..., None] * shapes.COLOURS[label[1]]).ravel())
    clips = np.stack(clips)
    square = np.square(clips).sum(1)
    distance = square[:, None] + square - 2 * clips @ clips.T
    distance[np.diag_indices(len(clips))] = np.inf
    assert distance.min() > 0.01 * square.mean()


def test_the_label_can_be_read_from_the_pixels():
    """The colour follows from channel sums, the motion from the centre of mass."""
    for index in range(72):
        clip = load(index)
        video, (_, colour, direction, speed) = clip["video"], clip["label"]
        assert video.shape == (8, 16, 16, 3) and video.dtype == np.uint8
        channels = video.sum((0, 1, 2))
        assert channels.argmax() == colour and (channels > 0).sum() == 1
        x, y = centre_of_mass(video[..., colour].astype(float))
        along = [-np.diff(x), np.diff(x), -np.diff(y), np.diff(y)][direction]
        across = np.diff(y) if direction < 2 else np.diff(x)
        speed = GEOMETRY.fast_speed * (1.0 if speed else 0.6)
        np.testing.assert_allclose(along, speed, atol=0.13)
        np.testing.assert_allclose(across, 0, atol=0.13)


def test_seventy_two_consecutive_items_have_every_label_once():
    labels = {tuple(load(i)["label"].tolist()) for i in range(100, 172)}
    assert labels == set(itertools.product(*map(range, shapes.ATTRIBUTE_SIZES)))
    assert load(0)["label"].dtype == np.int32


def test_a_clip_is_a_function_of_its_index_and_the_generator():
    for index in (0, 71, len(SOURCE) - 1):
        a, b = load(index), load(index)
        np.testing.assert_array_equal(a["video"], b["video"])
        assert a["caption"] == b["caption"]
    assert (load(3)["video"] != load(75)["video"]).any()  # same label, other path


def test_held_out_paths_differ_and_splits_refer_to_the_whole():
    held = SOURCE.split(True)
    assert (load(3)["video"] != load(3, held)["video"]).any()
    np.testing.assert_array_equal(load(3)["label"], load(3, held)["label"])
    assert held.split(False) == SOURCE == SOURCE.split(False)


def test_a_single_frame_is_one_of_the_clips():
    clip = load(5)["video"]
    seen = set()
    for seed in range(40):
        image = load(5, frames=1, seed=seed)["video"]
        assert image.shape == (1, 16, 16, 3)
        seen |= {i for i in range(8) if (image[0] == clip[i]).all()}
    assert seen == set(range(8))


def test_captions_vary_and_determine_the_label():
    labels: dict[str, tuple] = {}
    for index in range(72):
        label = tuple(load(index)["label"].tolist())
        captions = {load(index, seed=s)["caption"] for s in range(30)}
        assert len(captions) > 4
        for caption in captions:
            assert labels.setdefault(caption, label) == label  # one label per caption
            for words, value in zip(shapes.WORDS, label, strict=True):
                assert any(w in caption for w in words[value])
                others = itertools.chain(*(words[:value] + words[value + 1 :]))
                assert not any(f" {w} " in f" {caption} " for w in others)


@pytest.mark.parametrize(
    "field, value",
    [("frames", 1), ("height", 7), ("width", 4), ("channels", 1)],
)
def test_sizes_without_distinct_labels_are_rejected(field, value):
    video = {"frames": 8, "height": 16, "width": 16, "channels": 3}
    config = ConfigDict({"video": video | {field: value}})
    with pytest.raises(UserError, match="need config.video.frames >= 2"):
        shapes.open_shapes(config)


@pytest.mark.parametrize("stride", [2, 4])
def test_a_stride_selects_frames_of_the_whole_clip(stride):
    whole = shapes.Shapes(shapes.Geometry(16, 16, 24))
    few = shapes.Shapes(shapes.Geometry(16 // stride, 16, 24, stride))
    for index in (0, 5, 71, 72):
        np.testing.assert_array_equal(
            load(index, few)["video"], load(index, whole)["video"][::stride]
        )


def test_held_out_combinations_are_in_the_held_out_part_only():
    held_out = shapes.choose_held_out_combinations(12)
    assert (
        held_out == shapes.choose_held_out_combinations(12) and len(set(held_out)) == 12
    )
    values = np.stack(np.unravel_index(held_out, shapes.ATTRIBUTE_SIZES))
    for row, size in zip(values, shapes.ATTRIBUTE_SIZES, strict=True):
        assert np.bincount(row, minlength=size).min() >= 12 // size - 1
    source = shapes.Shapes(GEOMETRY, held_out_combinations=held_out)

    def numbers(part):
        labels = [load(i, part)["label"] for i in range(144)]
        return {
            int(np.ravel_multi_index(label, shapes.ATTRIBUTE_SIZES)) for label in labels
        }

    assert numbers(source) == set(range(72)) - set(held_out)
    assert numbers(source.split(True)) == set(range(72))
