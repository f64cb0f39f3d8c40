"""Laws of attention and of relative positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks import attention as att

N, M, H, D = 3, 4, 2, 5
attention = jax.jit(att.attention)


def by_hand(q, k, v, mask=None, bias=None, shaw=None):
    """Attention as numpy loops over batch, head and query: [b, n, h, d]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys, values = k[b, :, h].copy(), v[b, :, h].copy()
        if shaw is not None:
            keys += np.asarray(shaw[0])[i]
            values += np.asarray(shaw[1])[i]
        score = keys @ q[b, i, h] / math.sqrt(q.shape[-1])
        if bias is not None:
            score += np.asarray(bias)[h, i]
        weight = np.exp(score - score.max())
        if mask is not None:
            weight *= np.asarray(mask)[b, i]
        out[b, i, h] = weight / weight.sum() @ values
    return out


@pytest.fixture
def qkv_and_options(draw):
    """fn() -> (q, k, v) and every option, in the default float type."""

    def make():
        q, k, v = draw(2, N, H, D), draw(2, M, H, D, seed=1), draw(2, M, H, D, seed=2)
        mask = np.random.default_rng(3).random((2, N, M)) < 0.5
        mask[:, :, 1] = True
        options = {
            "mask": jnp.asarray(mask),
            "bias": draw(H, N, M, seed=4),
            "shaw": (draw(N, M, D, seed=5), draw(N, M, D, seed=6)),
        }
        return (q, k, v), options

    return make


OPTIONS = [(), ("mask",), ("bias",), ("shaw",), ("mask", "bias", "shaw")]


@pytest.mark.parametrize("names", OPTIONS, ids="+".join)
def test_attention_by_hand(x64, qkv_and_options, names):
    qkv, options = qkv_and_options()
    options = {name: options[name] for name in names}
    got = attention(*qkv, **options)
    np.testing.assert_allclose(got, by_hand(*qkv, **options), rtol=1e-12, atol=1e-13)


def test_leading_axes_are_batch_axes(qkv_and_options, draw):
    (q, k, v), options = qkv_and_options()
    mask = options["mask"]
    more = [jnp.stack([a, a[::-1]], axis=1) for a in (q, k, v)]  # [b, 2, n, h, d]
    masks = jnp.stack([mask, mask[::-1]], axis=1)
    got = attention(*more, mask=masks)
    one = attention(q, k, v, mask=mask)
    np.testing.assert_allclose(got[:, 0], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[:, 1], one[::-1], rtol=1e-5, atol=1e-6)
    same = attention(*more, mask=mask[:, None])
    np.testing.assert_allclose(same[:, 0], one, rtol=1e-5, atol=1e-6)


def test_no_bias_lifts_a_masked_pair(qkv_and_options):
    """Value and gradient, with a large bias, and queries that read a single key."""
    (q, k, v), _ = qkv_and_options()
    mask = jnp.broadcast_to(jnp.arange(M) == 1, (2, N, M))
    bias = jnp.full((H, N, M), 1e30).at[:, :, 1].set(-1e30)

    def total(q, k, v):
        out = att.attention(q, k, v, mask=mask, bias=bias)
        return out.sum(), out

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    grads, out = grad(q, k, v)
    np.testing.assert_allclose(out, np.broadcast_to(v[:, 1:2], q.shape), rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)
    assert np.all(np.asarray(grads[2])[:, np.arange(M) != 1] == 0)


def test_softmax_of_bfloat16_is_computed_in_float32():
    """Scores of 1000 and 1001 are equal in bfloat16."""
    q = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    v = jnp.arange(2, dtype=q.dtype).reshape(1, 2, 1, 1) * q
    bias = jnp.broadcast_to(jnp.asarray([1000.0, 1001.0]), (1, 2, 2))
    got = attention(q, 0 * q, v, bias=bias)
    assert got.dtype == jnp.bfloat16
    expected = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=4e-3)


def test_frame_attention_mask_by_its_formula():
    m = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    got = att.frame_attention_mask(jnp.asarray(m))
    for b, i, j in np.ndindex(2, 5, 5):
        assert got[b, i, j] == ((m[b, i] and m[b, j]) or i == j)


def t5_bucket(relative_position, num_buckets, max_distance):
    """One entry, after the code of T5: memory position minus query position."""
    bucket, n = 0, -relative_position
    num_buckets //= 2
    if n < 0:
        bucket, n = num_buckets, -n
    max_exact = num_buckets // 2
    if n < max_exact:
        return bucket + n
    steps = math.log(n / max_exact) / math.log(max_distance / max_exact)
    large = max_exact + int(steps * (num_buckets - max_exact))
    return bucket + min(large, num_buckets - 1)


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 32), (32, 128), (8, 16)])
def test_bucket_table_is_t5s(num_buckets, max_distance):
    got = att.relative_buckets(32, num_buckets, max_distance)
    for i, j in np.ndindex(32, 32):
        assert got[i, j] == t5_bucket(j - i, num_buckets, max_distance), (i, j)
    assert set(
        att.relative_buckets(2 * max_distance, num_buckets, max_distance).flat
    ) == set(range(num_buckets)) - {
        num_buckets // 2
    }  # a positive offset of 0 does not exist


def test_bias_depends_on_the_offset_and_its_sign(draw, random_params):
    q = draw(1, 9, H, D)
    module = att.BiasPosition(num_buckets=8, max_distance=4)
    params = random_params(module, q)
    bias = np.asarray(module.apply(params, q)["bias"])
    assert bias.shape == (H, 9, 9)
    for head in bias:
        rows = [{head[i, i + d] for i in range(9) if 0 <= i + d < 9} for d in range(9)]
        assert all(len(row) == 1 for row in rows)
        assert head[0, 1] != head[1, 0]
        assert head[0, 5] == head[0, 8]  # beyond max_distance


def test_shaw_vectors_by_clipped_distance(draw, random_params):
    q = draw(1, 6, H, D)
    module = att.ShawPosition(max_distance=2)
    params = random_params(module, q)
    for got, name in zip(
        module.apply(params, q)["shaw"], ("keys", "values"), strict=True
    ):
        table = params["params"][name]
        assert table.shape == (5, D)
        for i, j in np.ndindex(6, 6):
            np.testing.assert_array_equal(got[i, j], table[2 + max(-2, min(2, j - i))])


@pytest.mark.parametrize("max_scores", [1, 100, 200, 336])
def test_attention_by_chunks_of_the_queries_is_attention(max_scores, draw):
    """Also its gradient; 7 queries in chunks of 1, 2, 4 and 7, 3 frames of one text."""
    q, k, v = draw(2, 3, 7, H, D), draw(2, 1, M, H, D, seed=1), draw(2, 1, M, H, D)
    mask = jnp.asarray([[1, 1, 0, 1], [0, 1, 0, 0]], bool)[:, None, None]

    def loss(q, k, v, attend):
        return jnp.sum(jnp.sin(attend(q, k, v, mask=mask)))

    chunked = functools.partial(att.chunked_attention, max_scores=max_scores)
    output = chunked(q, k, v, mask=mask)
    for i in range(3):
        rows = by_hand(q[:, i], k[:, 0], v[:, 0], mask=mask[:, 0].repeat(7, axis=1))
        np.testing.assert_allclose(output[:, i], rows, atol=1e-6)
    gradients, plain = (
        jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)(q, k, v, attend)
        for attend in (chunked, att.attention)
    )
    for a, b in zip(gradients, plain, strict=True):
        largest = np.max(np.abs(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest)


def test_chunks_keep_the_scores_of_one_chunk_in_memory(draw):
    """Of 1024 queries and keys, also where keys are shared by frames."""
    q, k = draw(2, 512, H, D), draw(1, 1024, H, D)
    sizes = []
    for max_scores in (2**30, 2**16):
        attend = functools.partial(att.chunked_attention, max_scores=max_scores)
        gradient = jax.grad(lambda q, f=attend: jnp.sum(f(q, k, k) ** 2))
        compiled = jax.jit(gradient).lower(q).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    whole = 2 * 512 * 1024 * H * 4  # bytes of all scores
    print(sizes, whole)
    assert sizes[0] > whole and sizes[1] < whole / 4
