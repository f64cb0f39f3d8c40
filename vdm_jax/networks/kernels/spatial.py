"""Attention of the pixels of a frame to those of some frames, as one TPU kernel.

Queries, keys and values are read as the projections write them, [frames, pixels,
heads d]: a head is a slice of the lanes, so nothing is transposed in memory. All keys
of a frame are in the chip's vector memory at once; scores never leave it. They are
computed transposed, [keys, queries], so that the softmax's maxima and sums are over
sublanes, which costs additions of registers alone.

The backward pass recomputes the scores from the stored log-sum-exp, as FlashAttention
does (arXiv:2205.14135, section 3.1).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vdm_jax.networks.kernels.common import (
    COMPILER_PARAMS,
    HIDDEN,
    LANES,
    dot,
    head_block,
)

MAX_BLOCK = 512  # queries
MAX_SCORES = 2**19  # numbers, 2 MiB in float32: one head's scores of a block
Table = tuple[tuple[int, ...], ...]
MAX_KEYS = 2**21  # numbers of the keys of a block of heads, as those of the values


def fits(keys: int, heads: int, d: int) -> bool:
    """Return whether the keys that a frame reads fit in the chip's vector memory."""
    return keys * head_block(heads, d) * d <= MAX_KEYS


def padding(queries: int, keys: int) -> tuple[int, int]:
    """Return how many queries and keys to append so that the kernel can take them."""
    return -queries % (LANES if queries > MAX_BLOCK else 16), -keys % 16


def block_size(queries: int, keys: int) -> int:
    """Return the queries of a block: a multiple of 128 that divides `queries`, or all.

    It is the largest one up to MAX_BLOCK whose scores of one head are at most
    MAX_SCORES.
    """
    if queries <= MAX_BLOCK and (queries % LANES or queries * keys <= MAX_SCORES):
        return queries
    sizes = [n for n in (MAX_BLOCK, MAX_BLOCK // 2) if queries % n == 0]
    return next((n for n in sizes if n * keys <= MAX_SCORES), LANES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def spatial_attention(
    q, k, v, key_mask, table: Table | None, heads: int, interpret: bool = False
):
    """Return softmax(q k' / sqrt(d)) v of each frame, [n, t, c].

    q         [n, t, c], heads side by side in c = heads d
    k, v      [m, s, c]; of t and s `padding` is 0
    key_mask  bool [m, s]: False where no query may read the key; None for all
    table     [n][r]: the r of the m key frames that each query frame reads; None where
              each frame reads itself alone
    interpret: run as JAX operations, on any device
    """
    return _forward(q, k, v, key_mask, table, heads, interpret)[0]


def _head(x, h: int, d: int):
    return x[:, h * d : (h + 1) * d]


def _scores(q_ref, k_refs, mask_refs, h: int, d: int):
    """Return one head's scores [keys of all k_refs, queries] in float32, masked."""
    q = _head(q_ref[0], h, d)
    parts = []
    for i, k_ref in enumerate(k_refs):
        scores = dot(_head(k_ref[0], h, d), q, (1, 1)) * (1 / math.sqrt(d))
        if mask_refs:  # [s, 1]: 0 or HIDDEN
            scores = scores + mask_refs[i][0]
        parts.append(scores)
    return parts


def _forward_kernel(table_ref, q_ref, *refs, heads: int, reads: int, masked: bool):
    del table_ref  # read by the index maps
    k_refs, v_refs, refs = refs[:reads], refs[reads : 2 * reads], refs[2 * reads :]
    mask_refs = refs[:reads] if masked else ()
    o_ref, lse_ref = refs[-2:]
    d = q_ref.shape[-1] // heads
    outs, lses = [], []
    for h in range(heads):
        parts = _scores(q_ref, k_refs, mask_refs, h, d)
        highest = functools.reduce(
            jnp.maximum, (s.max(axis=0, keepdims=True) for s in parts)
        )
        exps = [jnp.exp(s - highest) for s in parts]
        total = sum(e.sum(axis=0, keepdims=True) for e in exps)
        out = sum(
            dot(_head(v_ref[0], h, d), e.astype(v_ref.dtype), (0, 0))
            for v_ref, e in zip(v_refs, exps, strict=True)
        )
        outs.append(out / total)  # [d, queries]
        lses.append(highest + jnp.log(total))
    o_ref[0] = jnp.concatenate(outs, axis=0).T.astype(o_ref.dtype)
    lse_ref[0, 0] = jnp.concatenate(lses, axis=0)


def _backward_kernel(table_ref, q_ref, *refs, heads: int, reads: int, masked: bool):
    del table_ref
    k_refs, v_refs, refs = refs[:reads], refs[reads : 2 * reads], refs[2 * reads :]
    mask_refs = refs[:reads] if masked else ()
    o_ref, lse_ref, do_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs[-8:]
    d = q_ref.shape[-1] // heads
    dtype, scale = q_ref.dtype, 1 / math.sqrt(d)

    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    weighted = do_ref[0].astype(jnp.float32) * o_ref[0].astype(jnp.float32)
    ones = jnp.ones((8, d), jnp.float32)
    dqs = []
    for h in range(heads):
        lanes = slice(h * d, (h + 1) * d)
        q, do = _head(q_ref[0], h, d), _head(do_ref[0], h, d)
        delta = dot(ones, _head(weighted, h, d), (1, 1), "highest")[:1]
        lse = lse_ref[0, 0, h : h + 1]
        dq = 0
        for i, scores in enumerate(_scores(q_ref, k_refs, mask_refs, h, d)):
            p = jnp.exp(scores - lse)  # [keys, queries]
            dp = dot(_head(v_refs[i][0], h, d), do, (1, 1))
            ds = (p * (dp - delta)).astype(dtype)
            dv_sum[i, :, lanes] += dot(p.astype(dtype), do, (1, 0))
            dk_sum[i, :, lanes] += dot(ds, q, (1, 0)) * scale
            dq += dot(_head(k_refs[i][0], h, d), ds, (0, 0))
        dqs.append(dq * scale)
    dq_ref[0] = jnp.concatenate(dqs, axis=0).T.astype(dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dk_ref[0] = dk_sum[...].astype(dtype)
        dv_ref[0] = dv_sum[...].astype(dtype)


def _call(kernel, name, q, k, v, key_mask, table, more, outputs, scratch, **options):
    """Run a kernel on a grid of (query frames, blocks of heads, blocks of queries).

    more     further operands, as pairs of array and "queries" [n, t, c] or "rows"
             [n, blocks of heads, heads of a block, t]
    outputs  pairs of shape and, as well, "keys" [n, r, s, c]
    """
    n, t, c = q.shape
    table = np.arange(n)[:, None] if table is None else np.array(table)
    s, reads = k.shape[1], table.shape[1]
    size = block_size(t, s * reads)
    heads, products = options.pop("heads"), options.pop("products")
    interpret = options.pop("interpret")
    block = head_block(heads, c // heads)
    width = block * (c // heads)
    specs = {
        "queries": pl.BlockSpec((1, size, width), lambda i, h, j, table: (i, j, h)),
        "rows": pl.BlockSpec((1, 1, block, size), lambda i, h, j, table: (i, h, 0, j)),
        "keys": pl.BlockSpec((1, reads, s, width), lambda i, h, j, table: (i, 0, 0, h)),
    }

    def read(which, width, by_head):
        def index(i, h, j, table):
            return table[i * reads + which], 0, h if by_head else 0

        return pl.BlockSpec((1, s, width), index)

    each = range(reads)
    operands, in_specs = [q], [specs["queries"]]
    for array in (k, v):
        operands += [array] * reads
        in_specs += [read(i, width, True) for i in each]
    if key_mask is not None:
        column = jnp.where(key_mask, 0, HIDDEN).astype(jnp.float32)[..., None]
        operands += [column] * reads
        in_specs += [read(i, 1, False) for i in each]
    operands += [array for array, _ in more]
    in_specs += [specs[kind] for _, kind in more]
    item = q.dtype.itemsize
    cost = pl.CostEstimate(
        flops=2 * products * n * t * s * reads * c,
        transcendentals=n * heads * t * s * reads,
        bytes_accessed=item * n * c * (2 * t + 2 * s * reads) * products // 2,
    )
    return pl.pallas_call(
        functools.partial(
            kernel, heads=block, reads=reads, masked=key_mask is not None
        ),
        name=name,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(n, heads // block, t // size),
            in_specs=in_specs,
            out_specs=[specs[kind] for _, kind in outputs],
            scratch_shapes=scratch,
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=COMPILER_PARAMS,
        cost_estimate=cost,
        interpret=interpret,
    )(jnp.asarray(table.reshape(-1), jnp.int32), *operands)


def _forward(q, k, v, key_mask, table, heads, interpret):
    n, t, c = q.shape
    block = head_block(heads, c // heads)
    lse = jax.ShapeDtypeStruct((n, heads // block, block, t), jnp.float32)
    outputs = (jax.ShapeDtypeStruct(q.shape, q.dtype), "queries"), (lse, "rows")
    options = {"heads": heads, "products": 2, "interpret": interpret}
    o, lse = _call(
        _forward_kernel, "spatial_attention", q, k, v, key_mask, table, (), outputs, (),
        **options,
    )  # fmt: skip
    return o, (q, k, v, key_mask, o, lse)


def _backward(table, heads, interpret, residuals, do):
    q, k, v, key_mask, o, lse = residuals
    n, (s, c), reads = q.shape[0], k.shape[1:], len(table[0]) if table else 1
    more = (o, "queries"), (lse, "rows"), (do, "queries")
    per_read = jax.ShapeDtypeStruct((n, reads, s, c), k.dtype), "keys"
    outputs = (jax.ShapeDtypeStruct(q.shape, q.dtype), "queries"), per_read, per_read
    width = c // heads * head_block(heads, c // heads)
    scratch = [pltpu.VMEM((reads, s, width), jnp.float32)] * 2
    options = {"heads": heads, "products": 4, "interpret": interpret}
    dq, dk, dv = _call(
        _backward_kernel, "spatial_attention_backward", q, k, v, key_mask, table, more,
        outputs, scratch, **options,
    )  # fmt: skip

    def add(parts):  # of a key frame, over the query frames that read it
        if table is None:
            return parts[:, 0]
        zeros = jnp.zeros(k.shape, jnp.float32)
        return zeros.at[np.array(table)].add(parts.astype(jnp.float32)).astype(k.dtype)

    return dq, add(dk), add(dv), None


spatial_attention.defvjp(_forward, _backward)
