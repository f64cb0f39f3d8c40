"""Extending a Gaussian video by replacement and by reconstruction guidance.

The video is AR(1), the denoiser its exact one, so a whole run of the real loop is
linear in the known frames, the start and all noises. The exact covariance of what it
draws is read from its Jacobian: no Monte Carlo, and no second copy of the recursion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import guidance, process, samplers, schedules

COSINE = schedules.Cosine()
FRAMES, KNOWN = 8, 4
MASK = np.arange(FRAMES).reshape(1, FRAMES, 1, 1, 1) < KNOWN
TRUE = 0.9 ** np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES)))
DRAWS = 4  # per row: the predictor's, the corrector's, two of the replaced frames
REPLACED = {0: 2, 2: 3}  # call -> draw for the known frames

ANCESTRAL = samplers.ancestral(0.1)
CORRECTED = samplers.with_langevin_corrector(samplers.ancestral(0.0), delta=0.1)


def video(frames):
    """Reshape [f] to [1, f, 1, 1, 1]."""
    return frames.reshape(1, FRAMES, 1, 1, 1)


def ar1(z, level, cond):
    """Predict E[x|z] = C alpha (alpha^2 C + sigma^2)^-1 z."""
    alpha, sigma = level.alpha, level.sigma
    total = alpha**2 * TRUE + sigma**2 * np.eye(FRAMES)
    x = alpha * TRUE @ jnp.linalg.solve(total, z.ravel())
    return process.from_x(video(x), z, level)


def ar1_conditional(known):
    """Return the denoiser E[x^b|z^b, x^a]: replacement with its missing term."""
    a, b = slice(0, KNOWN), slice(KNOWN, FRAMES)
    gain = np.linalg.solve(TRUE[a, a], TRUE[a, b]).T
    rest = TRUE[b, b] - gain @ TRUE[a, b]

    def denoise(z, level, cond):
        alpha, sigma = level.alpha, level.sigma
        total = alpha**2 * rest + sigma**2 * np.eye(FRAMES - KNOWN)
        mean = gain @ known.ravel()[a]
        change = jnp.linalg.solve(total, z.ravel()[b] - alpha * mean)
        x_b = mean + alpha * rest @ change
        x = video(jnp.concatenate([known.ravel()[a], x_b]))
        return process.from_x(x, z, level)

    return denoise


def replacement(known, weights):
    return ar1


def missing_term(known, weights):
    return ar1_conditional(known)


def residual_of(known):
    return lambda x: jnp.where(MASK, known - x, 0)


def reconstruction(known, weights):
    return guidance.reconstruction_guidance(ar1, residual_of(known), weights)


def reconstruction_snr_dependent(known, weights):
    """Use w = 1 + exp(-logsnr) at the level of each call, for unit variance."""
    w = guidance.snr_dependent_weight(1.0, 1.0)
    return guidance.reconstruction_guidance(ar1, residual_of(known), w)


@functools.partial(jax.jit, static_argnums=(0, 1))
def responses(sampler, method, table, weights):
    """Return d final frames / d independent standard normals, [f, inputs]."""
    rows = len(table["logsnr"])
    root = np.zeros((FRAMES, FRAMES))
    root[:KNOWN, :KNOWN] = np.linalg.cholesky(TRUE[:KNOWN, :KNOWN])

    def run(of_known, start, noises):
        known = video(root @ of_known)
        noise = lambda row, draw: video(noises[row, draw])  # noqa: E731
        fresh = lambda level: noise(level.step_index, REPLACED[level.call])  # noqa: E731
        denoise = guidance.replace_known(method(known, weights), known, MASK, fresh)
        carry = sampler.init(video(start))
        return samplers.sample_loop(
            sampler, denoise, carry, table, 0, rows, noise, None
        )[0]

    frames = jnp.zeros(FRAMES)
    parts = jax.jacfwd(lambda *inputs: run(*inputs).ravel(), (0, 1, 2))(
        frames, frames, jnp.zeros((rows, DRAWS, FRAMES))
    )
    return jnp.concatenate([part.reshape(FRAMES, -1) for part in parts], axis=1)


def kl_and_seam(sampler, method, n, weights=0.0):
    """Return KL(samples || truth) and the correlation of frames 4 and 5, the seam."""
    weights = np.broadcast_to(np.asarray(weights, float), n)
    of = np.asarray(responses(sampler, method, sampler.table(COSINE, n), weights))
    actual = of @ of.T
    np.testing.assert_allclose(actual[:KNOWN, :KNOWN], TRUE[:KNOWN, :KNOWN], atol=1e-12)
    ratio = np.linalg.solve(TRUE, actual)
    kl = (np.trace(ratio) - FRAMES - np.linalg.slogdet(ratio)[1]) / 2
    before, after = actual[KNOWN - 1, KNOWN - 1], actual[KNOWN, KNOWN]
    return kl, actual[KNOWN - 1, KNOWN] / np.sqrt(before * after)


# Sampler, method, steps, weight: KL and correlation (the truth has .9) of an
# independent covariance recursion in float64.
TABLE = [
    (ANCESTRAL, replacement, 128, 0, 0.3527, 0.7430),
    (CORRECTED, replacement, 128, 0, 0.1841, 0.8080),
    (ANCESTRAL, reconstruction, 128, 1, 0.1466, 0.8297),
    (ANCESTRAL, reconstruction, 128, 2, 0.0622, 0.8804),
    (ANCESTRAL, reconstruction, 128, 4, 0.0663, 0.9310),
    (ANCESTRAL, reconstruction, 128, 9, 0.2968, 0.9662),
    (CORRECTED, reconstruction, 128, 1, 0.0660, 0.8655),
    (CORRECTED, reconstruction, 128, 2, 0.0291, 0.8988),
    (CORRECTED, reconstruction, 128, 4, 0.0535, 0.9327),
    (ANCESTRAL, missing_term, 128, 0, 0.0043, 0.9043),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in (
            (ANCESTRAL, replacement, 512, 0, 0.3507, 0.7412),
            (ANCESTRAL, missing_term, 512, 0, 0.0003, 0.9012),
        )
    ),
]


@pytest.mark.parametrize("sampler, method, n, w, kl, seam", TABLE)
def test_extending_a_gaussian_video(sampler, method, n, w, kl, seam, x64):
    actual = kl_and_seam(sampler, method, n, w)
    np.testing.assert_allclose(actual, (kl, seam), rtol=0, atol=1e-3)


# The weight that is exact for independent pixels, 96 steps.
EXACT_FOR_A_PIXEL = pytest.mark.parametrize(
    "sampler, kl, seam", [(ANCESTRAL, 0.1212, 0.8987), (CORRECTED, 0.0537, 0.8912)]
)


@EXACT_FOR_A_PIXEL
def test_a_weight_that_depends_on_the_level_of_each_call(sampler, kl, seam, x64):
    actual = kl_and_seam(sampler, reconstruction_snr_dependent, 96)
    np.testing.assert_allclose(actual, (kl, seam), rtol=0, atol=1e-3)
