"""Closed forms, invariances and independent implementations; no stored values."""

import numpy as np
import pytest
import scipy.linalg

from vdm_jax.errors import UserError
from vdm_jax.metrics import frechet, pixel_statistics, reconstruction, reference_sets
from vdm_jax.metrics.tables import distance_columns, format_cells, format_table
from vdm_jax.metrics.video_arrays import to_float64


def gaussian(seed, d=6, rank=None):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(d, rank or d))
    return rng.normal(size=d), factor @ factor.T


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


# --- Frechet distance ------------------------------------------------------------


@pytest.mark.parametrize("rank", [6, 2])
def test_distance_to_itself_is_zero_also_at_low_rank(rank):
    mean, cov = gaussian(0, rank=rank)
    assert frechet.frechet_distance(mean, cov, mean, cov) < 1e-12 * np.trace(cov)


def test_one_dimension_has_a_closed_form():
    (m1, s1), (m2, s2) = (0.3, 1.7), (-2.0, 0.4)
    found = frechet.frechet_distance(
        np.array([m1]), np.array([[s1**2]]), np.array([m2]), np.array([[s2**2]])
    )
    assert found == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, rel=1e-12)


def test_diagonal_covariances_add_up_by_dimension():
    rng = np.random.default_rng(1)
    m1, m2, s1, s2 = rng.uniform(0.1, 2, (4, 5))
    found = frechet.frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2))
    assert found == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), rel=1e-12)


def test_same_for_rotated_axes_and_exchanged_arguments():
    (m1, c1), (m2, c2) = gaussian(2), gaussian(3, rank=3)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(6, 6)))[0]
    expected = frechet.frechet_distance(m1, c1, m2, c2)
    turned = frechet.frechet_distance(
        turn @ m1, turn @ c1 @ turn.T, turn @ m2, turn @ c2 @ turn.T
    )
    assert turned == pytest.approx(expected, rel=1e-10)
    assert frechet.frechet_distance(m2, c2, m1, c1) == pytest.approx(
        expected, rel=1e-10
    )


def test_agrees_with_the_matrix_square_root():
    (m1, c1), (m2, c2) = gaussian(5), gaussian(6)
    root = scipy.linalg.sqrtm(c1)
    trace = np.trace(scipy.linalg.sqrtm(root @ c2 @ root)).real
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace
    assert frechet.frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [5, 50])
def test_features_give_the_distance_of_their_means_and_covariances(n):
    a, b = np.random.default_rng(9).normal(size=(2, n, 8)) * np.arange(1, 9)
    expected = frechet.frechet_distance(
        a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)
    )
    assert frechet.frechet_of_features(a, b) == pytest.approx(expected, rel=1e-9)


def test_fitted_distance_approaches_that_of_the_gaussians_and_is_biased_upward():
    rng = np.random.default_rng(7)
    few, many = (
        np.mean(
            [
                frechet.frechet_of_features(*rng.normal(size=(2, n, 4)))
                for _ in range(20)
            ]
        )
        for n in (20, 2000)
    )
    assert 0 < many < 0.02 < few


def test_unequal_numbers_are_refused():
    with pytest.raises(UserError, match="equal numbers"):
        frechet.frechet_of_features(np.zeros((8, 3)), np.zeros((9, 3)))


# --- features --------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 8, 12, 13])
def test_cells_share_out_every_pixel(size):
    weights = pixel_statistics.area_weights(size, 8)
    assert weights.shape == (8, size)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(0), 8 / size, rtol=1e-12)


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


def test_order_of_frames_is_seen_by_motion_alone():
    videos = clips(2, f=6)
    shuffled = videos[:, [3, 0, 5, 1, 4, 2]]
    frames, moves = (
        frechet.frechet_of_features(features(videos), features(shuffled))
        for features in (
            pixel_statistics.pixel_features,
            pixel_statistics.motion_features,
        )
    )
    assert frames < 1e-9
    assert moves > 0.1


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
        (np.zeros((4, 1, 8, 8, 3)), "at least 2 clips of 2 frames"),
        (np.zeros((4, 8, 8, 3)), "at least 2 clips of 2 frames"),
        (np.full((2, 2, 8, 8, 3), np.nan), "NaN"),
        (np.zeros((2, 2, 8, 8, 3), np.int32), "int32"),
    ],
)
def test_videos_that_cannot_be_measured_are_refused(videos, message):
    with pytest.raises(UserError, match=message):
        pixel_statistics.pixel_features(videos)


# --- nearest ---------------------------------------------------------------------


def test_nearest_agrees_with_brute_force_across_chunks():
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


# --- the table -------------------------------------------------------------------


def test_rows_of_the_table():
    training, held_out = clips(10, n=40), clips(11, n=12)
    rows = {
        row["row"]: row
        for row in pixel_statistics.pixel_table(held_out, training, held_out)
    }
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


def test_reference_and_spoilt_clips_share_no_clip():
    training = clips(12, n=12)
    training[:, 0, 0, 0, 0] = np.arange(12)  # a number to know each by
    seen = []
    original = pixel_statistics.pixel_features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pixel_statistics,
            "pixel_features",
            lambda v: seen.append(to_float64(v)[:, 0, 0, 0, 0]) or original(v),
        )
        pixel_statistics.pixel_table(clips(13), training, clips(14))
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
    rows = pixel_statistics.pixel_table(
        clips(0, samples), clips(1, training), clips(2, held_out)
    )
    assert {row["clips"] for row in rows} == {n}
    assert format_cells(rows, pixel_statistics.COLUMNS)[0][0] == f"{n} clips a row"
    assert all(np.isfinite(row["frame_fd"]) for row in rows)


def test_repeated_clips_do_not_count():
    training, held_out = clips(1, n=12), clips(2)
    again = pixel_statistics.pixel_table(
        clips(0, n=9), np.tile(training, (3, 1, 1, 1, 1)), np.repeat(held_out, 2, 0)
    )
    assert again == pixel_statistics.pixel_table(clips(0, n=9), training, held_out)
    with pytest.raises(UserError, match="1 held-out"):
        pixel_statistics.pixel_table(clips(0), training, held_out[:1].repeat(6, 0))


def test_still_clips_leave_the_motion_ratio_undefined():
    still = np.repeat(clips(15, n=12)[:, :1], 4, axis=1)
    rows = pixel_statistics.pixel_table(still[:6], still, still[6:])
    headings, cells = format_cells(rows, pixel_statistics.COLUMNS)
    assert cells[0][headings.index("motion / real")] == "–"


def test_text_is_aligned():
    lines = format_table(["", "a", "bb"], [["x", "1.00", "–"], ["long", "2.5", "3"]])
    assert lines.splitlines() == [
        "         a  bb",
        "----  ----  --",
        "x     1.00   –",
        "long   2.5   3",
    ]


def test_agreement_is_1_for_the_same_0_for_the_mean_and_minus_1_for_others():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 2, 2, 2, 1))
    assert reconstruction.r2(a, a) == 1
    mean = np.broadcast_to(a.mean(0), a.shape)
    assert reconstruction.r2(mean, a) == pytest.approx(0, abs=1e-9)
    assert reconstruction.r2(b, a) == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("mean, spread", [(1, 1), (0, 2)])
def test_the_error_of_a_distance_is_its_deviation_over_fresh_videos(mean, spread):
    """Features of one video are alike: the error is that of n videos, not of n k.

    Whether sets differ in their means or in their covariances.
    """
    rng = np.random.default_rng(0)
    n, k, d = 60, 4, 3
    target = rng.standard_normal((n, k, d))

    def fresh():
        place = mean + spread * rng.standard_normal((n, 1, d))
        return place + 0.1 * rng.standard_normal((n, k, d))

    def distance(a):
        return frechet.frechet_of_features(*(x.reshape(-1, d) for x in (a, target)))

    over = np.std([distance(fresh()) for _ in range(300)])
    found = [frechet.frechet_error(fresh(), target, draws=100) for _ in range(8)]
    assert np.mean(found) == pytest.approx(over, rel=0.2)


@pytest.mark.parametrize("n, d, within", [(60, 4, 0.1), (60, 16, 0.2), (40, 64, 0.2)])
def test_the_error_where_nothing_but_chance_differs(n, d, within):
    """There the slope is chance too, and a bootstrap is root 3 too wide or more."""
    rng = np.random.default_rng(0)
    target = rng.standard_normal((n, 1, d))
    fresh = lambda: rng.standard_normal((n, 1, d))  # noqa: E731
    over = np.std(
        [frechet.frechet_of_features(fresh()[:, 0], target[:, 0]) for _ in range(400)]
    )
    found = [frechet.frechet_error(fresh(), target) for _ in range(30)]
    assert np.mean(found) == pytest.approx(over, rel=within)


def test_the_extrapolated_distance_is_that_of_the_gaussians():
    """Where the fitted one is far too large: |m|^2 + d / 4 for deviations 1 and 1.5."""
    rng, n, d = np.random.default_rng(0), 60, 8
    mean = np.full(d, 0.2)
    pairs = [
        (mean + 1.5 * rng.standard_normal((n, 1, d)), rng.standard_normal((n, 1, d)))
        for _ in range(60)
    ]
    fitted = [frechet.frechet_of_features(a[:, 0], b[:, 0]) for a, b in pairs]
    found = [frechet.frechet_infinity(a, b) for a, b in pairs]
    expected, error = mean @ mean + d / 4, np.std(found) / np.sqrt(len(found))
    assert np.mean(fitted) > expected + 5 * error
    assert np.mean(found) == pytest.approx(expected, abs=3 * error)


def test_a_distance_and_what_is_said_of_it():
    a, b = np.random.default_rng(0).standard_normal((2, 9, 4, 3))
    found = frechet.distance_scores("fd", a, b)
    columns = distance_columns("fd", "FD", ".2f")
    assert found.keys() == columns.keys() and np.isfinite([*found.values()]).all()
    flat = (x.reshape(-1, 3) for x in (a, b))
    assert found["fd"] == frechet.frechet_of_features(*flat)
    few = frechet.distance_scores("fd", a[:3], b[:3])
    missing = {name for name, value in few.items() if np.isnan(value)}
    assert missing == {"fd_error", "fd_infinite", "fd_kernel_error"}
    same = frechet.distance_scores("fd", np.ones((5, 2, 3)), np.ones((5, 2, 3)))
    assert [*same.values()] == pytest.approx([0] * 5)


def test_the_error_where_the_distance_is_quadratic():
    """The reference is the population itself: no slope, so that a jackknife is root 2
    too wide and a bootstrap root 3.
    """
    rng, n, d = np.random.default_rng(0), 60, 16
    target = rng.standard_normal((n, d))
    target -= target.mean(0)
    white = np.linalg.inv(np.linalg.cholesky(np.cov(target, rowvar=False)))
    target = target @ white.T
    fresh = lambda: rng.standard_normal((n, 1, d))  # noqa: E731
    over = np.std(
        [frechet.frechet_of_features(fresh()[:, 0], target) for _ in range(300)]
    )
    found = [frechet.frechet_error(fresh(), target[:, None]) for _ in range(20)]
    assert over < np.mean(found) < 1.3 * over
