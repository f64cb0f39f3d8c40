"""Packed buffers: what a network makes of one is what it makes of each video alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vdm_jax.errors import UserError
from vdm_jax.networks import attention, backends, packing
from vdm_jax.networks.dit import DiT
from vdm_jax.networks.dit_blocks import ATTEND, DiTSpec
from vdm_jax.networks.inputs import Inputs

SPEC = DiTSpec(
    width=16, depth=1, num_heads=2, positions="rope", cross_attention=True,
    out_channels=4,
)  # fmt: skip
SIZES = ((3, 4, 6), (1, 6, 4), (2, 2, 4))  # 18 + 6 + 4 tokens
CAPACITY = 32


@pytest.fixture
def videos(draw):
    return [np.asarray(draw(*size, 4, seed=i)) for i, size in enumerate(SIZES)]


def test_a_buffer_is_unpacked(videos):
    z, where = packing.pack(videos, 2, CAPACITY)
    assert z.shape == (CAPACITY, 1, 1, 16)
    assert np.bincount(where.segments).tolist() == [4, 18, 6, 4]
    for video, back in zip(videos, packing.unpack(z, SIZES, 2), strict=True):
        np.testing.assert_array_equal(back, video)
    assert np.asarray(where.positions)[17].tolist() == [2, 1, 2]
    with pytest.raises(UserError, match="28 tokens in a buffer of 24"):
        packing.pack(videos, 2, 24)


def test_what_the_numbers_of_attention_do_not_hold_is_refused():
    one = np.zeros((1, 2, 2, 1), np.float32)
    with pytest.raises(UserError, match="128 videos in a buffer: at most 127"):
        packing.pack([one] * 128, 2, 128)
    with pytest.raises(UserError, match="4097 frames of 2x2 in patches of 2"):
        packing.pack([np.zeros((4097, 2, 2, 1), np.float32)], 2, 5000)


def test_heads_that_the_kernel_does_not_take_are_refused(draw):
    q, ids = draw(1, 128, 1, 136), jnp.ones((1, 128), int)
    with pytest.raises(UserError, match="heads of 136"):
        backends.over_segments(q, q, q, ids, ids, backend="pallas")


def test_videos_fill_buffers():
    """Each where it first fits, the longest first; none is lost or split."""
    lengths = [3, 9, 5, 5, 1, 7, 2]
    buffers = packing.first_fit(lengths, 10)
    assert buffers == [[1, 4], [5, 0], [2, 3], [6]]
    with pytest.raises(UserError, match="a video of 11 tokens in a buffer of 10"):
        packing.first_fit([3, 11], 10)


@pytest.mark.parametrize("attend", ATTEND)
@pytest.mark.parametrize("per_frame", [False, True])
def test_packed_equals_separate(videos, draw, random_params, attend, per_frame):
    """And what is in the padding, or in another video, changes nothing."""
    net = DiT(dataclasses.replace(SPEC, attend=attend))
    frames = (3,) if per_frame else ()
    vector, tokens = draw(1, 3, *frames, 8, seed=7), draw(1, 3, 5, 6, seed=8)
    mask = np.arange(5) < np.array([[[5], [2], [0]]])  # one has no text
    z, where = packing.pack(videos, 2, CAPACITY)
    where = jax.tree.map(lambda x: jnp.asarray(x)[None], where)
    inputs = Inputs(vector, tokens=tokens, token_mask=jnp.asarray(mask), packing=where)
    params = random_params(net, jnp.asarray(z)[None], inputs)
    apply = jax.jit(net.apply)
    packed = np.asarray(apply(params, jnp.asarray(z)[None], inputs))[0]
    outputs = packing.unpack(packed, SIZES, 2)
    for i, (video, output) in enumerate(zip(videos, outputs, strict=True)):
        own = Inputs(
            vector[:, i, : len(video)] if per_frame else vector[:, i],
            tokens=tokens[:, i], token_mask=jnp.asarray(mask[:, i]),
        )  # fmt: skip
        alone = np.asarray(apply(params, jnp.asarray(video)[None], own))[0]
        np.testing.assert_allclose(output, alone, atol=1e-5)
        assert np.std(alone) > 0.1
    other = z.copy()
    other[18:] = 7.0  # all but the first video
    other = np.asarray(apply(params, jnp.asarray(other)[None], inputs))[0]
    np.testing.assert_array_equal(other[:18], packed[:18])


def test_attention_by_chunks_is_the_same(draw):
    """Where a query has no key, it contributes 0."""
    q, k, v = (draw(2, 7, 2, 4, seed=i) for i in range(3))
    ids = jnp.array([[1, 1, 2, 2, 2, 0, 5], [1, 1, 1, 1, 3, 3, 3]])
    keys = jnp.array([[1, 2, 2, 1, 0, 0, 2], [3, 3, 1, 1, 4, 4, 4]])
    whole = attention.segment_attention(q, k, v, ids, keys)
    parts = attention.segment_attention(q, k, v, ids, keys, max_scores=60)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert not np.asarray(whole[0, 6]).any() and np.asarray(whole[0, 5]).any()
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
    p = np.exp(scores) * (ids[:, :, None] == keys[:, None])[:, None]
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-30)
    expected = np.einsum("bhnm,bmhd->bnhd", p, v)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_the_kernel_equals_the_products(draw):
    """Interpreted here; keys of texts, which are not as many as queries, too."""
    q, k, v = draw(1, 150, 2, 8), draw(1, 40, 2, 8, seed=1), draw(1, 40, 2, 8, seed=2)
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [60, 50, 20, 20])[None])
    keys = jnp.asarray(np.repeat([1, 2, -1], [15, 15, 10])[None])

    def value_and_gradients(backend):
        def loss(q, k, v):
            out = backends.over_segments(q, k, v, ids, keys, backend=backend)
            return jnp.sin(out).sum(), out

        with pltpu.force_tpu_interpret_mode():  # the gradient's kernels, too
            return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    own, expected = map(value_and_gradients, ("pallas", "xla"))
    for a, b in zip(*map(jax.tree.leaves, (own, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.asarray(own[0][1][0, 110:]).any()  # no keys of these


def test_absolute_positions_are_refused(videos, draw):
    net = DiT(dataclasses.replace(SPEC, positions="sincos", cross_attention=False))
    z, where = packing.pack(videos, 2, CAPACITY)
    where = jax.tree.map(lambda x: jnp.asarray(x)[None], where)
    inputs = Inputs(draw(1, 3, 8), packing=where)
    with pytest.raises(UserError, match="rope for a packed buffer"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(z)[None], inputs)
