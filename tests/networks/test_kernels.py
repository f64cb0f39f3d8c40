"""The TPU kernels, interpreted, are the dense attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks.attention import FRAME_READS, attention, relative_offsets
from vdm_jax.networks.kernels.common import head_block
from vdm_jax.networks.kernels.spatial import spatial_attention
from vdm_jax.networks.kernels.temporal import temporal_attention

RNG = np.random.default_rng(0)


def normal(*shape):  # so that scores of heads of 160 are not large, and rounded
    return jnp.asarray(0.5 * RNG.normal(size=shape), jnp.float32)


def assert_same(kernel, dense, *args):
    """Outputs and gradients to 1e-6 of their largest value."""
    with jax.default_matmul_precision("highest"):
        out, vjp = jax.vjp(kernel, *args)
        cotangent = normal(*out.shape)
        grads = vjp(cotangent)
    with jax.enable_x64(True):
        args, cotangent = jax.tree.map(
            lambda x: np.asarray(x, np.float64), (args, cotangent)
        )
        expected, vjp = jax.vjp(dense, *args)
        expected = (expected, *vjp(cotangent))
    for ours, theirs in zip(
        jax.tree.leaves((out, *grads)), jax.tree.leaves(expected), strict=True
    ):
        theirs = np.asarray(theirs)
        error = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert error <= 1e-6 * np.abs(theirs).max()


def split(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1)


def dense_spatial(q, k, v, mask, table, heads):
    n = len(q)
    k, v = (split(x, heads)[table].reshape(n, -1, heads, q.shape[-1] // heads)
            for x in (k, v))  # fmt: skip
    mask = None if mask is None else mask[table].reshape(n, 1, -1)
    return attention(split(q, heads), k, v, mask=mask).reshape(q.shape)


SPATIAL = {  # query frames, key frames, queries, keys, heads, head size, table, masked
    "own": (2, 2, 256, 128, 2, 64, None, False),
    "blocks of queries": (1, 1, 640, 128, 1, 32, None, False),
    "blocks of heads": (1, 1, 128, 128, 8, 64, None, True),
    "tokens of a video": (3, 1, 128, 128, 4, 32, ((0,), (0,), (0,)), True),
    "previous": (3, 3, 128, 128, 2, 40, FRAME_READS["previous"](3), False),
    "stable diffusion's 80": (1, 2, 128, 128, 2, 80, ((0, 1),), True),
    "stable diffusion's 160": (2, 2, 128, 256, 1, 160, None, True),
    "head size 128": (1, 1, 256, 128, 1, 128, None, False),
}


@pytest.mark.parametrize("case", SPATIAL)
def test_spatial_attention(case):
    n, m, t, s, heads, d, table, masked = SPATIAL[case]
    mask = RNG.random((m, s)) < 0.7 if masked else None
    if table is not None:
        table = tuple(tuple(map(int, row)) for row in table)
    rows = np.arange(n)[:, None] if table is None else np.array(table)
    assert_same(
        lambda q, k, v: spatial_attention(q, k, v, mask, table, heads, True),
        lambda q, k, v: dense_spatial(q, k, v, mask, rows, heads),
        normal(n, t, heads * d), normal(m, s, heads * d), normal(m, s, heads * d),
    )  # fmt: skip


def dense_temporal(q, k, v, mask, bias, tables, heads):
    q, k, v = (jnp.swapaxes(split(x, heads), 1, 2) for x in (q, k, v))
    f = q.shape[2]
    index = relative_offsets(f) + f - 1
    shaw = None if tables is None else tuple(table[index] for table in tables)
    out = attention(q, k, v, mask=mask[:, None], bias=bias, shaw=shaw)
    return jnp.swapaxes(out, 1, 2).reshape(*out.shape[:1], f, out.shape[1], -1)


TEMPORAL = {  # batch, frames, pixels, heads, head size, masks, positions
    "shaw": (2, 5, 16, 2, 32, 2, "shaw"),
    "shaw, one group of pixels": (1, 24, 8, 2, 64, 1, "shaw"),
    "bias": (2, 6, 16, 2, 32, 1, "bias"),
    "no position": (1, 7, 24, 1, 128, 1, ""),
    "blocks of heads": (1, 3, 8, 8, 64, 1, "bias"),
    "stable diffusion's 40": (1, 4, 8, 2, 40, 1, ""),
    "stable diffusion's 160": (1, 3, 8, 1, 160, 1, "shaw"),
}


@pytest.mark.parametrize("case", TEMPORAL)
def test_temporal_attention(case):
    b, f, n, heads, d, masks, position = TEMPORAL[case]
    mask = (RNG.random((masks, f, f)) < 0.6) | np.eye(f, dtype=bool)
    qkv = [normal(b, f, n, heads * d) for _ in range(3)]
    bias = normal(heads, f, f) if position == "bias" else None
    tables = None
    if position == "shaw":
        tables = normal(2 * f - 1, d), normal(2 * f - 1, d)

    def kernel(q, k, v, bias, tables):
        tables = tables or (None, None)
        return temporal_attention(q, k, v, mask, bias, *tables, heads, True)

    def dense(q, k, v, bias, tables):
        return dense_temporal(q, k, v, mask, bias, tables, heads)

    assert_same(kernel, dense, *qkv, bias, tables)


def test_blocks_of_heads_are_whole_registers_wide():
    assert head_block(16, 64) == 4
    assert head_block(4, 64) == 4
    assert head_block(8, 40) == 8  # Stable Diffusion's 320 channels: no part of them
    assert head_block(8, 80) == 8
    assert head_block(8, 160) == 4
    for heads in (1, 2, 6, 12, 24):
        for d in (32, 64, 128):
            block = head_block(heads, d)
            assert heads % block == 0
            assert block == heads or block * d % 128 == 0
