"""Laws of the shared layers."""

import os
import re
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

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


@pytest.mark.parametrize("mean", [0, 1, 30, 100])
def test_group_norm_of_bfloat16_reads_once_and_loses_nothing(mean):
    """Its error is at most that of rounding its result, at 100 times the deviation."""
    values = np.random.default_rng(0).normal(mean, 1, (1, 2, 16, 16, 128))
    x = jnp.asarray(values, jnp.bfloat16)
    norm = layers.GroupNorm()
    got = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x), np.float64)
    groups = np.asarray(x, np.float64).reshape(1, 2, 16 * 16, 32, 4)
    centred = groups - groups.mean((2, 4), keepdims=True)
    exact = centred / np.sqrt(np.square(centred).mean((2, 4), keepdims=True) + 1e-6)
    exact = exact.reshape(x.shape)
    assert np.abs(got - exact).max() <= 2**-8 * np.abs(exact).max()


class TestDropout:
    """Statistics of the mask: what independent coin flips have."""

    N = 2 * 3 * 16 * 16 * 64

    def mask(self, seed, rate=0.3):
        x = jnp.ones((2, 3, 16, 16, 64))
        return np.asarray(layers.dropout(x, rate, jax.random.key(seed))) > 0

    def close(self, fraction, p, n):
        """Whether a fraction of n flips is within 5 standard deviations of p."""
        return abs(fraction - p) < 5 * np.sqrt(p * (1 - p) / n)

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    def test_the_rate(self, rate):
        kept = self.mask(0, rate)
        assert self.close(kept.mean(), 1 - rate, self.N)
        for axis in range(5):  # of every frame, row, column and channel
            others = tuple(a for a in range(5) if a != axis)
            fractions = kept.mean(others)
            n = self.N // kept.shape[axis]
            assert all(self.close(f, 1 - rate, n) for f in fractions)

    def test_positions_keys_and_frames_are_independent(self):
        kept, other = self.mask(0), self.mask(1)
        pairs = {
            "keys": (kept, other),
            "examples": (kept[:1], kept[1:]),
            "frames": (kept[:, :-1], kept[:, 1:]),
            "rows": (kept[:, :, :-1], kept[:, :, 1:]),
            "columns": (kept[..., :-1, :], kept[..., 1:, :]),
            "channels": (kept[..., :-1], kept[..., 1:]),
            "two channels": (kept[..., :-2], kept[..., 2:]),
        }
        for name, (a, b) in pairs.items():
            assert self.close((a & b).mean(), 0.7**2, a.size), name

    def test_the_rest_is_scaled_and_nothing_is_drawn_at_rate_0(self):
        x = jnp.arange(1.0, 49).reshape(1, 2, 4, 2, 3)
        y = layers.dropout(x, 0.25, jax.random.key(0))
        np.testing.assert_allclose(y, np.where(np.asarray(y) > 0, x / 0.75, 0))
        assert layers.dropout(x, 0.0, jax.random.key(0)) is x

    def test_a_part_of_the_batch_has_its_part_of_the_mask(self):
        """So it is the same on every mesh: a position decides, not the shape split."""
        program = """
            import jax, jax.numpy as jnp, numpy as np
            from jax.sharding import NamedSharding, PartitionSpec as P
            from vdm_jax.networks.layers import dropout
            x, key = jnp.ones((4, 4, 8, 8, 16)), jax.random.key(3)
            whole, drop = dropout(x, 0.5, key), jax.jit(lambda x: dropout(x, 0.5, key))
            for spec in (P("a", "b"), P("a", None, "b"), P(None, None, None, "a", "b")):
                mesh = jax.make_mesh((2, 2), ("a", "b"))
                split = jax.device_put(x, NamedSharding(mesh, spec))
                compiled = drop.lower(split).compile()
                assert "all-" not in compiled.as_text(), spec
                np.testing.assert_array_equal(compiled(split), whole)
        """
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
        command = [sys.executable, "-c", textwrap.dedent(program)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_a_kernel_is_cast_and_then_gathered_whole():
    """On a mesh that splits it, the narrow kernel is pinned whole, or by outputs."""

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.dense(layers.conv(x, 6, "conv"), 8, "dense")

    x = jnp.zeros((2, 1, 4, 4, 4), jnp.bfloat16)
    params = Layers().init(jax.random.key(0), x)
    sizes = {"fsdp_0": 2, "tensor_0": 2}
    axes = (AxisType.Auto,) * 2
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axes)
    for rules, spec in (
        ((("batch", ("fsdp_0",)),), "None"),
        ((("batch", ("fsdp_0",)), ("channel", ("tensor_0",))), "'tensor_0'"),
    ):
        with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
            text = str(jax.make_jaxpr(Layers().apply)(params, x))
        pins = re.findall(r":(\w+\[[\d,]+\]) = sharding_constraint\[.*?P\(([^)]*)\)",
                          text, re.DOTALL)  # fmt: skip
        assert [kernel for kernel, _ in pins] == ["bf16[3,3,4,6]", "bf16[6,8]"]
        for _, pinned in pins:
            *whole, outputs = pinned.split(", ")
            assert set(whole) == {"None"} and outputs == spec
