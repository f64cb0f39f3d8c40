"""Pixel statistics and their table: closed forms and invariances; no stored values."""

import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.metrics import frechet, pixel_statistics, reference_sets
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.metrics.video_arrays import to_float64


def clips(seed, n=6, f=4, h=16, w=16, c=3):
    """Squares that move over noise of low contrast, uint8."""
    rng = np.random.default_rng(seed)
    videos = rng.integers(0, 40, (n, f, h, w, c), dtype=np.uint8)
    for video in videos:
        y, x, dx = rng.integers(0, h - 4), rng.integers(0, w), rng.integers(1, 4)
        for k, frame in enumerate(video):
            columns = (x + dx * k + np.arange(4)) % w
            frame[y : y + 4, columns] = rng.integers(100, 255, c)
    return videos


def test_colour_means_equal_block_means_of_the_frame_with_repeated_pixels():
    videos = clips(0, n=2, h=12, w=10)
    colour = pixel_statistics.pixel_features(videos)[:, :192]
    fine = (videos / 127.5 - 1).repeat(2, axis=2).repeat(4, axis=3)  # 24 x 40
    blocks = fine.reshape(8, 8, 3, 8, 5, 3).mean((2, 4))
    np.testing.assert_allclose(colour, blocks.reshape(8, 192), atol=1e-12)


def test_gradient_of_flat_frames_and_of_a_plane():
    flat = np.full((2, 2, 16, 16, 3), 0.25)
    features = pixel_statistics.pixel_features(flat)
    assert features.shape == (4, 256)
    np.testing.assert_allclose(features[:, :192], 0.25, rtol=1e-12)
    np.testing.assert_array_equal(features[:, 192:], 0)
    y, x = np.mgrid[:16, :16]
    plane = np.broadcast_to((0.03 * y - 0.04 * x)[None, None, ..., None], flat.shape)
    inner = pixel_statistics.pixel_features(plane)[:, 192:].reshape(4, 8, 8)[:, :7, :7]
    np.testing.assert_allclose(inner, 0.05, rtol=1e-12)


def test_bytes_and_floats_of_one_video_are_the_same():
    videos = clips(1)
    floats = (videos / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(
        pixel_statistics.pixel_features(videos),
        pixel_statistics.pixel_features(floats),
        atol=1e-6,
    )


def test_only_motion_depends_on_the_order_of_frames():
    videos = clips(2, f=6)
    shuffled = videos[:, [3, 0, 5, 1, 4, 2]]
    frame_fd, motion_fd = (
        frechet.frechet_of_features(features(videos), features(shuffled))
        for features in (
            pixel_statistics.pixel_features,
            pixel_statistics.motion_features,
        )
    )
    assert frame_fd < 1e-9
    assert motion_fd > 0.1


def test_motion_and_sharpness_scale_with_contrast():
    videos = clips(3) / 127.5 - 1
    for measure in (pixel_statistics.motion, pixel_statistics.sharpness):
        assert measure(videos / 2) == pytest.approx(measure(videos) / 2, rel=1e-12)
    assert (
        pixel_statistics.motion(reference_sets.DISTORTIONS["frozen frame"](videos)) == 0
    )


def test_laplacian_of_one_bright_pixel():
    videos = np.zeros((2, 2, 9, 9, 1))
    videos[:, :, 4, 4] = 0.5
    assert pixel_statistics.sharpness(videos) == pytest.approx(0.5 * 8 / 81, rel=1e-12)


@pytest.mark.parametrize(
    "videos, message",
    [
        (np.zeros((1, 2, 8, 8, 3)), "at least 2 clips"),
        (np.zeros((4, 8, 8, 3)), "at least 2 clips"),
        (np.full((2, 2, 8, 8, 3), np.nan), "NaN"),
        (np.zeros((2, 2, 8, 8, 3), np.int32), "int32"),
    ],
)
def test_videos_that_cannot_be_measured_are_refused(videos, message):
    with pytest.raises(UserError, match=message):
        pixel_statistics.pixel_features(videos)


def test_nearest_clips_agree_with_brute_force_across_chunks():
    rng = np.random.default_rng(8)
    training = rng.integers(0, 256, (600, 2, 3, 3, 1), dtype=np.uint8)
    samples = rng.integers(0, 256, (5, 2, 3, 3, 1), dtype=np.uint8)
    samples[2] = training[555]  # a copy
    index, distance = pixel_statistics.nearest_training(samples, training)
    every = (samples[:, None] / 127.5 - training[None] / 127.5) ** 2
    every = np.sqrt(every.reshape(5, 600, -1).mean(-1))
    np.testing.assert_array_equal(index, every.argmin(1))
    np.testing.assert_allclose(distance, every.min(1), rtol=1e-12)
    assert index[2] == 555 and distance[2] == 0


def test_clips_of_other_shapes_are_refused():
    with pytest.raises(UserError, match="cannot be compared"):
        pixel_statistics.nearest_training(clips(0), clips(0, f=5))


def pixel_table(samples, training, held_out):
    sets = reference_sets.reference_sets(samples, training, held_out)
    return pixel_statistics.pixel_rows(sets, training)


def test_rows_of_the_table():
    training, held_out = clips(10, n=40), clips(11, n=12)
    rows = {row["row"]: row for row in pixel_table(held_out, training, held_out)}
    assert list(rows) == ["samples", "training real", "held-out real"] + list(
        reference_sets.DISTORTIONS
    )
    same = {k: v for k, v in rows["samples"].items() if k != "row"}
    assert same == {k: v for k, v in rows["held-out real"].items() if k != "row"}
    assert rows["held-out real"]["closer_to_train"] <= 0.5
    assert rows["training real"]["closer_to_train"] == 1  # each is its own neighbour
    assert rows["training real"]["frame_fd"] > 0  # but never its own reference
    for name in ("frozen frame", "per-video mean", "global mean"):
        assert rows[name]["motion"] == 0
    assert rows["4x4 blur"]["sharpness"] < 0.5 < rows["training real"]["sharpness"]
    assert rows["noise"]["frame_fd"] == max(row["frame_fd"] for row in rows.values())


def test_reference_and_distorted_sets_share_no_clip():
    training = clips(12, n=12)
    training[:, 0, 0, 0, 0] = np.arange(12)  # identifies each clip
    seen = []
    original = pixel_statistics.pixel_features
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            pixel_statistics.FEATURES,
            "frame_fd",
            lambda v: seen.append(to_float64(v)[:, 0, 0, 0, 0]) or original(v),
        )
        pixel_table(clips(13), training, clips(14))
    reference, _, other = seen[:3]
    assert len(np.unique(np.r_[reference, other])) == 12


def test_the_seed_draws_the_reference_out_of_all_training_clips():
    training = np.arange(40).reshape(-1, 1, 1, 1, 1)
    drawn = [
        reference_sets.reference_sets(training[:9], training, None, seed)[0].ravel()
        for seed in range(8)
    ]
    assert len({tuple(each) for each in drawn}) == 8
    assert len(np.unique(drawn)) > 30


@pytest.mark.parametrize(
    "samples, training, held_out, n", [(9, 40, 7, 7), (5, 40, 7, 5), (9, 13, 9, 6)]
)
def test_rows_have_equal_numbers_of_clips(samples, training, held_out, n):
    rows = pixel_table(clips(0, samples), clips(1, training), clips(2, held_out))
    assert {row["clips"] for row in rows} == {n}
    assert format_cells(rows, pixel_statistics.COLUMNS)[0][0] == f"{n} clips a row"
    assert all(np.isfinite(row["frame_fd"]) for row in rows)


def test_duplicate_clips_do_not_count():
    training, held_out = clips(1, n=12), clips(2)
    again = pixel_table(
        clips(0, n=9), np.tile(training, (3, 1, 1, 1, 1)), np.repeat(held_out, 2, 0)
    )
    assert again == pixel_table(clips(0, n=9), training, held_out)
    with pytest.raises(UserError, match="1 held-out"):
        pixel_table(clips(0), training, held_out[:1].repeat(6, 0))


def test_still_clips_leave_the_motion_ratio_undefined():
    still = np.repeat(clips(15, n=12)[:, :1], 4, axis=1)
    rows = pixel_table(still[:6], still, still[6:])
    headings, cells = format_cells(rows, pixel_statistics.COLUMNS)
    assert cells[0][headings.index("motion / real")] == "–"


def test_text_tables_are_aligned():
    lines = format_table(["", "a", "bb"], [["x", "1.00", "–"], ["long", "2.5", "3"]])
    assert lines.splitlines() == [
        "         a  bb",
        "----  ----  --",
        "x     1.00   –",
        "long   2.5   3",
    ]


def test_r2_is_1_for_equal_0_for_mean_and_minus_1_for_independent_videos():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 2, 2, 2, 1))
    assert pixel_statistics.r2(a, a) == 1
    mean = np.broadcast_to(a.mean(0), a.shape)
    assert pixel_statistics.r2(mean, a) == pytest.approx(0, abs=1e-9)
    assert pixel_statistics.r2(b, a) == pytest.approx(-1, abs=0.05)
