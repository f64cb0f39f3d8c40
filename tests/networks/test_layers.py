"""Laws of the shared layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks import layers
from vdm_jax.networks.parts import nearest_upsample_init


class Conv(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return layers.conv(x, self.features, "conv")


def test_folded_convolution_is_the_1x3x3_convolution(x64, draw, random_params):
    x = draw(2, 3, 5, 4, 2)
    params = random_params(Conv(7), x)
    kernel, bias = (params["params"]["conv"][k] for k in ("kernel", "bias"))
    dims = ("NFHWC", "FHWIO", "NFHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel[None], (1, 1, 1), "SAME", dimension_numbers=dims
    )
    got = Conv(7).apply(params, x)
    np.testing.assert_allclose(got, expected + bias.reshape(1, 1, 1, 1, -1), rtol=1e-12)


@pytest.mark.parametrize("per_frame", [False, True])
def test_group_norm_is_flax_group_norm_of_each_frame(
    x64, draw, random_params, per_frame
):
    b, f, c, d = 2, 3, 24, 5
    x = 3 * draw(b, f, 4, 2, c) + 2
    vector = draw(*((b, f, d) if per_frame else (b, d)), seed=1)
    norm = layers.GroupNorm()
    params = random_params(norm, x, vector)
    own = jax.tree.map(np.asarray, params["params"])
    flax_norm = nn.GroupNorm(layers.num_groups(c), param_dtype=x.dtype)
    affine = {"params": {"scale": own["scale"], "bias": own["bias"]}}
    y = flax_norm.apply(affine, x.reshape(b * f, 4, 2, c))
    modulation = np.broadcast_to(np.asarray(vector).reshape(b, -1, d), (b, f, d))
    modulation = (
        modulation / (1 + np.exp(-modulation)) @ own["vector"]["kernel"]
        + own["vector"]["bias"]
    )
    modulation = modulation.reshape(b * f, 1, 1, 2 * c)
    expected = (y * (1 + modulation[..., :c]) + modulation[..., c:]).reshape(x.shape)
    got = norm.apply(params, x, vector)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_group_norm_is_exact_with_a_large_mean(draw):
    x = draw(1, 2, 8, 8, 8)
    norm = layers.GroupNorm()
    params = norm.init(jax.random.key(0), x)
    shifted = norm.apply(
        params, x + 300
    )  # E[x^2] - E[x]^2 would lose all digits but one
    np.testing.assert_allclose(shifted, norm.apply(params, x), atol=1e-3)


def test_group_norm_of_bfloat16_is_rounded_once(draw, random_params):
    x = draw(1, 2, 8, 8, 8).astype(jnp.bfloat16)
    vector = draw(1, 4, seed=1)
    norm = layers.GroupNorm()
    params = random_params(norm, x, vector)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    got = norm.apply(params, x, vector)
    exact = norm.apply(params, x.astype(jnp.float32), vector)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_num_groups_divides_every_width():
    for channels in range(1, 300):
        groups = layers.num_groups(channels)
        assert channels % groups == 0 and 1 <= groups <= 32
        assert groups == 1 or channels // groups >= 4


def test_num_groups_is_32_from_128_channels_on():
    assert [layers.num_groups(c) for c in (32, 48, 128, 256, 384, 1024)] == [
        8, 12, 32, 32, 32, 32
    ]  # fmt: skip


def test_noise_level_embedding_by_its_formula(x64):
    logsnr = np.array([[-25.0, -20.0, -3.0], [0.0, 4.0, 20.0]])
    angle = np.arctan2(1.0, np.exp(np.clip(logsnr, -20, 20) / 2)) / (np.pi / 2)
    got = layers.noise_level_embedding(jnp.asarray(logsnr), 8)
    assert got.shape == (2, 3, 8)
    for i in range(4):
        phase = 1000 * angle * 10.0 ** (-4 * i / 3)
        np.testing.assert_allclose(got[..., i], np.sin(phase), atol=1e-9)
        np.testing.assert_allclose(got[..., 4 + i], np.cos(phase), atol=1e-9)
    np.testing.assert_array_equal(got[0, 0], got[0, 1])  # clipped at -20


def test_noise_level_embedding_is_float32_or_wider():
    logsnr = jnp.linspace(-20, 20, 9)
    from_bfloat16 = layers.noise_level_embedding(logsnr.astype(jnp.bfloat16), 64)
    assert from_bfloat16.dtype == jnp.float32
    rounded = logsnr.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(
        from_bfloat16, layers.noise_level_embedding(rounded, 64)
    )
    with pytest.raises(ValueError, match="dim=7 must be even"):
        layers.noise_level_embedding(logsnr, 7)


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_space_to_depth_round_trip(draw, patch_size):
    x = draw(2, 3, 6, 12, 5)
    y = layers.space_to_depth(x, patch_size)
    assert y.shape == (2, 3, 6 // patch_size, 12 // patch_size, 5 * patch_size**2)
    np.testing.assert_array_equal(layers.depth_to_space(y, patch_size), x)
    corner = x[:, :, :patch_size, :patch_size].reshape(2, 3, -1)
    np.testing.assert_array_equal(y[:, :, 0, 0], corner)


def test_space_to_depth_and_a_product_are_a_strided_convolution(x64, draw):
    x, kernel = draw(3, 4, 6, 2), draw(2, 2, 2, 5, seed=1)
    dims = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=dims
    )
    got = layers.space_to_depth(x, 2) @ kernel.reshape(8, 5)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_upsample_starts_as_nearest_neighbour(draw):
    x = draw(1, 2, 3, 2, 4)
    kernel = nearest_upsample_init(jax.random.key(0), (4, 4 * 3), x.dtype)
    upsampled = layers.depth_to_space(x @ kernel, 2)
    nearest = jnp.repeat(jnp.repeat(x @ kernel[:, :3], 2, axis=2), 2, axis=3)
    np.testing.assert_allclose(upsampled, nearest, rtol=1e-5, atol=1e-6)
    assert abs(float(jnp.var(kernel)) * 4 - 1) < 1  # variance of a Dense kernel
