"""The critic: what a logit depends on."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.networks.critic import PatchCritic


def test_a_logit_sees_70_pixels(monkeypatch):
    """Of three strided layers (Isola et al. 2017); the norms are made the identity."""
    monkeypatch.setattr("vdm_jax.networks.critic.GroupNorm", lambda name: lambda x: x)
    critic, size = PatchCritic(channels=4), 128
    x = jax.random.normal(jax.random.key(0), (1, 2, size, size, 3))
    params = critic.init(jax.random.key(1), x)
    logits = critic.apply(params, x)
    assert logits.shape == (1, 2, size // 8 - 2, size // 8 - 2, 1)
    grad = jax.grad(lambda x: critic.apply(params, x)[0, 1, 7, 5, 0])(x)
    seen = np.asarray((grad != 0).any((0, 4)))
    assert not seen[0].any()
    rows, columns = np.flatnonzero(seen[1].any(1)), np.flatnonzero(seen[1].any(0))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 70


def test_frames_are_judged_alone():
    critic = PatchCritic(channels=8, layers=2)
    x = jax.random.normal(jax.random.key(0), (2, 3, 32, 32, 3))
    params = critic.init(jax.random.key(1), x)
    whole = critic.apply(params, x)
    alone = critic.apply(params, x[1:, 2:])
    np.testing.assert_allclose(whole[1:, 2:], alone, atol=1e-5)
    assert jnp.abs(whole).max() > 1e-3
