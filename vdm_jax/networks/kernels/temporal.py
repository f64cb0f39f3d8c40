"""Attention of each pixel to the same pixel of all frames, as one TPU kernel.

Queries, keys and values are read as the projections write them, [b, f, pixels, heads
d]. Eight pixels of all frames are one matrix of 8 f rows (frame, pixel), and its
products have 8 f columns, of which those of the same pixel count: a matrix unit is 128
wide, so f alone would leave it empty, and nothing is transposed.

Vectors of relative positions (arXiv:1803.02155) are tables by offset. Their products
with the queries have a column for each offset. The rows of frame i are rotated so that
columns become key frames, and each key has a one at the column of its own frame.
The backward pass recomputes the scores.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vdm_jax.networks.kernels.common import (
    COMPILER_PARAMS,
    HIDDEN,
    LANES,
    dot,
    head_block,
)

SITES = 8  # pixels of a matrix, the rows of a register
MAX_FRAMES = 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def temporal_attention(
    q, k, v, mask, bias, key_table, value_table, heads: int, interpret: bool = False
):
    """Return softmax((q k' + q a_k') / sqrt(d) + bias) (v + a_v), [b, f, n, c].

    q, k, v      [b, f, n, c], heads side by side in c = heads d; n % 8 == 0, f <= 32
    mask         bool [b or 1, f, f]: True where query frame i may read key frame j
    bias         [heads, f, f] or None
    key_table, value_table  [2 f - 1, d] or None: a_k and a_v by j - i + f - 1
    interpret: run as JAX operations, on any device
    """
    args = q, k, v, mask, bias, key_table, value_table
    return _forward(*args, heads, interpret)[0]


def _forward(q, k, v, mask, bias, key_table, value_table, heads, interpret):
    args = q, k, v, mask, bias, key_table, value_table
    outputs = ((jax.ShapeDtypeStruct(q.shape, q.dtype), "pixels"),)
    (o,) = _call(
        _forward_kernel, "temporal_attention", args, outputs, heads, 2, interpret
    )
    return o, args


def _backward(heads, interpret, args, do):
    q, k, v, mask, bias, key_table, value_table = args
    b, f, _, c = q.shape
    d = c // heads
    grad = jax.ShapeDtypeStruct(q.shape, q.dtype), "pixels"
    outputs = [grad] * 3
    rows = SITES * f
    if bias is not None:
        outputs += [(jax.ShapeDtypeStruct((b, heads, rows, rows), jnp.float32), "bias")]
    blocks = heads // head_block(heads, d)
    for table in (key_table, value_table):
        if table is not None:
            shape = jax.ShapeDtypeStruct((b, blocks, LANES, d), jnp.float32)
            outputs += [(shape, "table")]
    dq, dk, dv, *more = _call(
        _backward_kernel, "temporal_attention_backward", (*args, do), outputs, heads, 4,
        interpret,
    )  # fmt: skip
    dbias = dkeys = dvalues = None
    if bias is not None:  # of the same pixel: the others are 0
        dbias = more.pop(0).sum(0).reshape(heads, f, SITES, f, SITES).sum((2, 4))
        dbias = dbias.astype(bias.dtype)
    if key_table is not None:
        dkeys = more.pop(0).sum((0, 1))[: 2 * f - 1].astype(key_table.dtype)
    if value_table is not None:
        dvalues = more.pop(0).sum((0, 1))[: 2 * f - 1].astype(value_table.dtype)
    return dq, dk, dv, None, dbias, dkeys, dvalues


temporal_attention.defvjp(_forward, _backward)


def _call(kernel, name, args, outputs, heads, products, interpret):
    """Run a kernel on a grid of (examples, blocks of heads, blocks of pixels)."""
    q, k, v, mask, bias, key_table, value_table, *more = args
    b, f, n, c = q.shape
    d, rows = c // heads, SITES * f
    block = head_block(heads, d)
    sites = next(s for s in (2 * SITES, SITES) if n % s == 0)

    # Pixels of a matrix read their own alone.
    same = jnp.eye(SITES, dtype=bool)[None, None, :, None, :]
    hidden = jnp.where(mask[:, :, None, :, None] & same, 0, HIDDEN)
    hidden = hidden.astype(jnp.float32).reshape(mask.shape[0], rows, rows)
    which = (lambda i: i) if mask.shape[0] > 1 else (lambda i: 0)
    specs = {
        "pixels": pl.BlockSpec((1, f, sites, block * d), lambda i, h, j: (i, 0, j, h)),
        "hidden": pl.BlockSpec((1, rows, rows), lambda i, h, j: (which(i), 0, 0)),
        "bias": pl.BlockSpec((1, block, rows, rows), lambda i, h, j: (i, h, 0, 0)),
        "biases": pl.BlockSpec((block, rows, rows), lambda i, h, j: (h, 0, 0)),
        "tables": pl.BlockSpec((LANES, d), lambda i, h, j: (0, 0)),
        "table": pl.BlockSpec((1, 1, LANES, d), lambda i, h, j: (i, h, 0, 0)),
    }
    operands = [(q, "pixels"), (k, "pixels"), (v, "pixels"), (hidden, "hidden")]
    if bias is not None:
        repeated = bias.astype(jnp.float32).repeat(SITES, 1).repeat(SITES, 2)
        operands += [(repeated, "biases")]
    for table in (key_table, value_table):
        if table is not None:
            padded = jnp.pad(table, ((0, LANES - len(table)), (0, 0)))
            operands += [(padded.astype(q.dtype), "tables")]
    operands += [(array, "pixels") for array in more]
    has = bias is not None, key_table is not None, value_table is not None
    cost = pl.CostEstimate(
        flops=2 * products * b * n * f * f * c * (1 + any(has[1:])),
        transcendentals=b * n * heads * f * f * SITES,
        bytes_accessed=q.dtype.itemsize * b * f * n * c * (2 * products + 1),
    )
    return pl.pallas_call(
        functools.partial(kernel, heads=block, has=has),
        name=name,
        grid=(b, heads // block, n // sites),
        in_specs=[specs[kind] for _, kind in operands],
        out_specs=[specs[kind] for _, kind in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=COMPILER_PARAMS,
        cost_estimate=cost,
        interpret=interpret,
    )(*(array for array, _ in operands))


class _Offsets:
    """Columns by offset of two frames, in products that have columns by frame.

    A head narrower than 128 leaves a part of the matrix units empty, so that these
    columns next to those of a head cost little: keys and values get a one at the
    column of their frame.
    """

    def __init__(self, frames: int, dtype):
        self.frames, self.dtype = frames, dtype
        shape = SITES * frames, 2 * MAX_FRAMES
        frame = jax.lax.broadcasted_iota(jnp.int32, shape, 0) >> 3  # of SITES rows
        lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1) & (MAX_FRAMES - 1)
        self.is_frame = (lane == frame).astype(dtype)  # [8 f, 64], twice

    def _rotate(self, x, sign: int):
        """Shift the 8 rows of frame i by sign (f - 1 - i) of 128 columns."""
        last = self.frames - 1
        rows = x.reshape(self.frames, SITES, LANES)
        turned = [
            pltpu.roll(rows[i], sign * (last - i) % LANES, 1) for i in range(last + 1)
        ]
        return jnp.concatenate(turned, axis=0)

    def extend_keys(self, x):
        """[8 f, d] -> [8 f, d + 64]."""
        return jnp.concatenate([x, self.is_frame], axis=1)

    def extend_queries(self, x, table):
        """[8 f, d] -> [8 f, d + 64]: behind x its product with the table, by frame."""
        by_key = self._rotate(dot(x, table, (1, 1)), -1)[:, :MAX_FRAMES]
        # In two parts of the narrow dtype, side by side, so that nothing is rounded.
        high = by_key.astype(self.dtype)
        low = (by_key - high.astype(jnp.float32)).astype(self.dtype)
        return jnp.concatenate([x, high, low], axis=1)

    def by_offset(self, x):
        """[8 f, 64] by frame, from `extend_keys`, -> [8 f, 128] by offset."""
        rest = jnp.zeros((x.shape[0], LANES - MAX_FRAMES), jnp.float32)
        x = jnp.concatenate([x[:, :MAX_FRAMES], rest], axis=1)
        return self._rotate(x, 1).astype(self.dtype)


def _matrices(ref, start: int):
    """Return [8 f, c] of eight pixels of a block [1, f, sites, c]."""
    x = ref[0].astype(jnp.float32)[:, start : start + SITES]
    return x.reshape(-1, x.shape[-1]).astype(ref.dtype)


def _pixels(x, frames: int):
    """Invert `_matrices`: [8 f, c] -> [f, 8, c]."""
    return x.reshape(frames, SITES, x.shape[-1])


def _exps(q, k, h, offsets, hidden, bias_ref, key_table):
    """Return exp(scores - maximum) of one head, [8 f, 8 f], and its sums [8 f, 1]."""
    scale = 1 / math.sqrt(q.shape[-1])
    if key_table is not None:
        q, k = offsets.extend_queries(q, key_table), offsets.extend_keys(k)
    scores = dot(q, k, (1, 1)) * scale
    if bias_ref is not None:
        scores += bias_ref[h]
    scores += hidden
    exps = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return exps, exps.sum(axis=1, keepdims=True)


def _split(refs, has):
    """Return bias_ref, key_table, value_table and the other references."""
    refs = list(refs)
    bias_ref = refs.pop(0) if has[0] else None
    key_table, value_table = (refs.pop(0)[...] if h else None for h in has[1:])
    return bias_ref, key_table, value_table, refs


def _forward_kernel(q_ref, k_ref, v_ref, hidden_ref, *refs, heads: int, has: tuple):
    bias_ref, key_table, value_table, (o_ref,) = _split(refs, has)
    _, f, sites, c = q_ref.shape
    d, dtype = c // heads, q_ref.dtype
    offsets, hidden = _Offsets(f, dtype), hidden_ref[0]
    groups = []
    for start in range(0, sites, SITES):
        q, k, v = (_matrices(ref, start) for ref in (q_ref, k_ref, v_ref))
        outs = []
        for h in range(heads):
            lanes = slice(h * d, (h + 1) * d)
            q_h, k_h = q[:, lanes], k[:, lanes]
            p, total = _exps(q_h, k_h, h, offsets, hidden, bias_ref, key_table)
            v_h = v[:, lanes]
            if value_table is not None:
                v_h = offsets.extend_keys(v_h)
            out = dot(p.astype(dtype), v_h, (1, 0)) / total
            if value_table is not None:
                by_offset = offsets.by_offset(out[:, d:])
                out = out[:, :d] + dot(by_offset, value_table, (1, 0))
            outs.append(out)
        groups.append(_pixels(jnp.concatenate(outs, axis=1), f))
    o_ref[0] = jnp.concatenate(groups, axis=1).astype(dtype)


def _backward_kernel(q_ref, k_ref, v_ref, hidden_ref, *refs, heads: int, has: tuple):
    bias_ref, key_table, value_table, refs = _split(refs, has)
    do_ref, dq_ref, dk_ref, dv_ref, *refs = refs
    _, f, sites, c = q_ref.shape
    d, dtype = c // heads, q_ref.dtype
    scale = 1 / math.sqrt(d)
    dbias_ref: Any = refs.pop(0) if has[0] else None
    dkeys_ref: Any = refs.pop(0) if has[1] else None
    dvalues_ref: Any = refs.pop(0) if has[2] else None

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in (dbias_ref, dkeys_ref, dvalues_ref):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    offsets, hidden = _Offsets(f, dtype), hidden_ref[0]
    groups = []
    for start in range(0, sites, SITES):
        q, k, v, do = (_matrices(x, start) for x in (q_ref, k_ref, v_ref, do_ref))
        grads = []
        for h in range(heads):
            lanes = slice(h * d, (h + 1) * d)
            q_h, k_h, v_h, do_h = (x[:, lanes] for x in (q, k, v, do))
            p, total = _exps(q_h, k_h, h, offsets, hidden, bias_ref, key_table)
            p = p / total
            if value_table is None:
                dp = dot(do_h, v_h, (1, 1))
            else:
                queries = offsets.extend_queries(do_h, value_table)
                dp = dot(queries, offsets.extend_keys(v_h), (1, 1))
                sums = dot(p.astype(dtype), offsets.is_frame, (1, 0))
                dvalues_ref[0, 0] += dot(offsets.by_offset(sums), do_h, (0, 0))
            ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
            if dbias_ref is not None:
                dbias_ref[0, h] += ds
            ds = (ds * scale).astype(dtype)
            if key_table is None:
                dq = dot(ds, k_h, (1, 0))
            else:
                dq = dot(ds, offsets.extend_keys(k_h), (1, 0))
                by_offset = offsets.by_offset(dq[:, d:])
                dq = dq[:, :d] + dot(by_offset, key_table, (1, 0))
                dkeys_ref[0, 0] += dot(by_offset, q_h, (0, 0))
            grads.append((dq, dot(ds, q_h, (0, 0)), dot(p.astype(dtype), do_h, (0, 0))))
        groups.append(
            [_pixels(jnp.concatenate(g, axis=1), f) for g in zip(*grads, strict=True)]
        )
    for ref, parts in zip(
        (dq_ref, dk_ref, dv_ref), zip(*groups, strict=True), strict=True
    ):
        ref[0] = jnp.concatenate(parts, axis=1).astype(dtype)
