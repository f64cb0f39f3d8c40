"""PSNR, SSIM and R^2: closed forms, a plain double loop, and scikit-image's values."""

import numpy as np
import pytest

from tests.metrics.record_networks import DATA, pairs
from vdm_jax.errors import UserError
from vdm_jax.metrics import reconstruction


def flat(*values):
    """Return videos of one grey each, from [0, 1], as floats in [-1, 1]."""
    grey = np.array(values).reshape(-1, 1, 1, 1, 1)
    return np.broadcast_to(2 * grey - 1, (len(values), 2, 12, 13, 3))


def noise(seed, n=2):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 14, 16, 3))


def test_flat_videos_have_closed_forms():
    a, b = np.array([0.2, 0.5, 0.0]), np.array([0.3, 0.9, 1.0])
    psnr = reconstruction.psnr(flat(*a), flat(*b))
    np.testing.assert_allclose(psnr, -20 * np.log10(b - a), rtol=1e-12, atol=1e-12)
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    ssim = reconstruction.ssim(flat(*a), flat(*b))
    np.testing.assert_allclose(ssim, expected, rtol=1e-9)


def test_equal_videos():
    np.testing.assert_array_equal(reconstruction.psnr(noise(0), noise(0)), np.inf)
    np.testing.assert_allclose(reconstruction.ssim(noise(0), noise(0)), 1, rtol=1e-12)


def test_error_of_all_frames_is_pooled():
    """PSNR is finite where one frame of three is equal."""
    a, b = noise(0), noise(1)
    b[:, 0] = a[:, 0]
    expected = 10 * np.log10(4 / np.square(a - b).mean((1, 2, 3, 4)))
    np.testing.assert_allclose(reconstruction.psnr(a, b), expected, rtol=1e-12)


def test_similarity_agrees_with_a_plain_loop_over_windows():
    a, b = noise(2, 1)[:, :1, :12, :13, :1], noise(3, 1)[:, :1, :12, :13, :1]
    i = np.arange(11) - 5
    weights = np.exp(-(i[:, None] ** 2 + i**2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = ((v[0, 0, :, :, 0] + 1) / 2 for v in (a, b))
    windows = []
    for r in range(2):
        for c in range(3):
            p, q = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            light = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
            windows.append(light * (2 * cov + 9e-4) / (vp + vq + 9e-4))
    assert reconstruction.ssim(a, b)[0] == pytest.approx(np.mean(windows), rel=1e-10)


def test_scores_are_those_of_scikit_image():
    frames, near = pairs()[1]
    recorded = np.load(DATA)
    psnr = reconstruction.psnr(frames[None], near[None])
    np.testing.assert_allclose(psnr, recorded["psnr"], rtol=1e-9)
    ssim = reconstruction.ssim(frames[:, None], near[:, None])
    np.testing.assert_allclose(ssim, recorded["ssim"], rtol=1e-9)
    whole = reconstruction.ssim(frames[None], near[None])
    np.testing.assert_allclose(whole, recorded["ssim"].mean(), rtol=1e-9)


@pytest.mark.parametrize("measure", [reconstruction.psnr, reconstruction.ssim])
def test_bytes_and_floats_agree_and_the_order_does_not_matter(measure):
    a, b = (np.uint8(np.round((noise(s) + 1) * 127.5)) for s in (4, 5))
    scores = measure(a, b)
    floats = measure(a / 127.5 - 1, b / 127.5 - 1)
    np.testing.assert_allclose(floats, scores, rtol=1e-9)
    np.testing.assert_allclose(measure(b, a), scores, rtol=1e-9)


@pytest.mark.parametrize("measure", [reconstruction.psnr, reconstruction.ssim])
def test_both_fall_with_the_strength_of_the_noise(measure):
    clean, other = noise(6) / 2, noise(7) / 2
    scores = [measure(clean + a * other, clean) for a in (0.1, 0.3, 1)]
    assert (np.diff(scores, axis=0) < 0).all()


@pytest.mark.parametrize("measure", [reconstruction.psnr, reconstruction.ssim])
@pytest.mark.parametrize("a, b", [(12, 13), (0, 0)])
def test_what_cannot_be_compared_is_refused(measure, a, b):
    with pytest.raises(UserError, match="cannot be compared"):
        measure(np.zeros((1, 2, 12, a, 3)), np.zeros((1, 2, 12, b, 3)))


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(UserError, match="10x40: SSIM needs 11 pixels"):
        reconstruction.ssim(np.zeros((1, 1, 10, 40, 3)), np.zeros((1, 1, 10, 40, 3)))


def test_r2_is_1_for_equal_0_for_mean_and_minus_1_for_independent_videos():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4000, 2, 2, 2, 1))
    assert reconstruction.r2(a, a) == 1
    mean = np.broadcast_to(a.mean(0), a.shape)
    assert reconstruction.r2(mean, a) == pytest.approx(0, abs=1e-9)
    assert reconstruction.r2(b, a) == pytest.approx(-1, abs=0.05)
