"""The embedding of guidance weights."""

import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.guidance_weight import guidance_embedding


def test_the_guidance_embedding_is_a_fourier_series():
    """They are orthogonal over twice the range, and scale with it."""
    w = jnp.linspace(2.0, 10.0, 400, endpoint=False)  # a period of the slowest
    found = np.asarray(guidance_embedding(w, 2.0, 4.0))
    np.testing.assert_allclose(found.T @ found / 200, np.eye(16), atol=1e-3)
    np.testing.assert_allclose(found, guidance_embedding(w / 2, 1.0, 2.0), atol=1e-5)
