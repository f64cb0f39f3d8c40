"""Positions: sines and cosines as recorded, rotations by complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.recorded import load
from vdm_jax.networks import positions


def test_sines_equal_the_published_programs():
    dit, latte = load("dit"), load("latte")
    for dim, side in ((48, 4), (16, 3)):
        grid = positions.sincos_2d(side, side, dim).reshape(-1, dim)
        np.testing.assert_allclose(grid, dit[f"position_{dim}_{side}"], atol=1e-6)
    line = positions.sincos_1d(np.arange(6), 16)
    np.testing.assert_allclose(line, dit["position_1d_16"], atol=1e-6)
    frames = positions.sincos_1d(np.arange(3), 48)
    np.testing.assert_allclose(frames, latte["temporal_embedding"], atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (6, 4)])
def test_first_half_of_the_channels_is_the_column(size):
    height, width = size
    grid = positions.sincos_2d(height, width, 8)
    for row, column in np.ndindex(height, width):
        expected = [
            fn(index / 10000 ** (i / 2))
            for index in (column, row)
            for fn in (np.sin, np.cos)
            for i in range(2)
        ]
        np.testing.assert_allclose(grid[row, column], expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 4, 6), (3, 6, 4)])
def test_rotation_equals_complex_products(sizes):
    dim = 16  # 8 channels turn by the frame, 4 by the row, 4 by the column
    assert positions.rope_splits(dim) == (8, 4, 4)
    x = np.random.default_rng(0).normal(size=(*sizes, 2, dim)).astype(np.float32)
    angles = positions.rope_angles(sizes, positions.rope_splits(dim))
    turned = positions.apply_rope(jnp.asarray(x), angles)
    z = x[..., 0::2] + 1j * x[..., 1::2]
    for index in np.ndindex(sizes):
        pairs = [p * 1e4 ** (-2 * i / n) for p, n in zip(index, (8, 4, 4), strict=True)
                 for i in range(n // 2)]  # fmt: skip
        expected = z[index] * np.exp(1j * np.array(pairs))
        ours = turned[index][..., 0::2] + 1j * turned[index][..., 1::2]
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_splits_are_those_of_wan():
    assert positions.rope_splits(128) == (44, 42, 42)


def test_products_depend_on_differences_of_positions():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 12)).astype(np.float32)
    splits = positions.rope_splits(12)

    def product(a, b):
        turned = (
            positions.apply_rope(
                jnp.asarray(x), positions.token_angles(jnp.array([p]), splits)
            )
            for x, p in ((q, a), (k, b))
        )
        return float(jnp.vdot(*turned))

    np.testing.assert_allclose(
        product((1, 2, 3), (2, 2, 5)), product((7, 0, 4), (8, 0, 6)), atol=1e-5
    )


def test_angles_of_large_positions_are_exact_for_bfloat16_inputs():
    """257 has no bfloat16: it rounds to 256, and 4095 to 4096."""
    x = jnp.tile(jnp.array([1.0, 0.0], jnp.bfloat16), 3).reshape(1, 1, 6)
    for p in (257, 4095):
        angles = positions.token_angles(jnp.full((1, 3), p), (2, 2, 2))
        assert angles.dtype == jnp.float32
        turned = positions.apply_rope(x, angles)
        np.testing.assert_allclose(turned[0, 0, 0], np.cos(p), atol=5e-3)
