"""Scaled dot-product attention, its masks, and relative positions in time."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.networks.layers import param_dtype

MAX_SCORES = 2**27  # numbers, 512 MiB in float32


def attention(q, k, v, *, mask=None, bias=None, shaw=None):
    """Return softmax(q k' / sqrt(d) + bias) v, with the softmax in float32 or wider.

    q [..., n, h, d]; k, v [..., m, h, d]; the leading axes are batch axes.
    mask  bool, broadcasts to [..., n, m]: True where query n may read key m; each query
          must be able to read at least one key
    bias  [h, n, m], added to the scores
    shaw  (a_k, a_v), each [n, m, d]: vectors added to the key and value of each pair
    Returns [..., n, h, d].
    """
    dtype = param_dtype(q)
    wide_einsum = functools.partial(jnp.einsum, preferred_element_type=dtype)
    scores = wide_einsum("...nhd,...mhd->...hnm", q, k)
    if shaw is not None:  # q_i . (k_j + a_k[i, j]), arXiv:1803.02155, equation 4
        scores += wide_einsum("...nhd,nmd->...hnm", q, shaw[0])
    scores = scores / math.sqrt(q.shape[-1])
    lead = (1,) * (q.ndim - 3)
    if bias is not None:
        scores = scores + bias.astype(dtype).reshape(lead + bias.shape)
    if mask is not None:  # last, so that no bias can lift a masked pair
        hidden = jnp.asarray(-0.7 * jnp.finfo(dtype).max, dtype)
        scores = jnp.where(mask[..., None, :, :], scores, hidden)
    p = nn.softmax(scores).astype(v.dtype)
    # In v's dtype: XLA on CPU lacks some bfloat16 products with a float32 result.
    out = jnp.einsum("...hnm,...mhd->...nhd", p, v)
    if shaw is not None:  # sum_j p_ij (v_j + a_v[i, j]), equation 3
        out += jnp.einsum("...hnm,nmd->...nhd", p, shaw[1])
    return out


def chunked_attention(q, k, v, *, mask=None, max_scores: int = MAX_SCORES):
    """Return `attention`, by chunks of the queries where all scores are too many.

    Each chunk reads all keys, so the result is the same; the scores of one chunk are
    in memory at a time, in the backward pass as well.
    mask  bool, broadcasts to [..., 1, m]
    max_scores  the most numbers of a product of queries and keys
    """
    *lead, n, heads, d = q.shape
    scores = math.prod(q.shape[:-1]) * k.shape[-3]
    size = -(-n // -(-scores // max_scores)) if scores > max_scores else n
    if size == n:
        return attention(q, k, v, mask=mask)
    chunks = -(-n // size)
    padding = ((0, 0),) * len(lead) + ((0, chunks * size - n), (0, 0), (0, 0))
    q = jnp.pad(q, padding).reshape(*lead, chunks, size, heads, d)
    part = jax.checkpoint(lambda q: attention(q, k, v, mask=mask))
    out = jax.lax.map(part, jnp.moveaxis(q, -4, 0))
    out = jnp.moveaxis(out, 0, -4).reshape(*lead, chunks * size, heads, v.shape[-1])
    return out[..., :n, :, :]


def segment_attention(q, k, v, ids, key_ids, *, max_scores: int = MAX_SCORES):
    """Return `attention` of each query to the keys with its id.

    q [b, n, h, d]; k, v [b, m, h, d]; ids int [b, n]; key_ids int [b, m]
    A query without such a key contributes 0. Where all scores are too many, it is
    computed by chunks of the queries.
    """
    b, n, heads, d = q.shape

    def part(chunk):
        q, ids = chunk
        mask = ids[:, :, None] == key_ids[:, None]
        out = attention(q, k, v, mask=mask)
        # The softmax of masked scores alone would read all keys.
        return jnp.where(mask.any(-1)[..., None, None], out, 0)

    chunks = -(-math.prod((b, n, heads, k.shape[1])) // max_scores)
    size = -(-n // chunks)
    if size == n:
        return part((q, ids))
    padding = ((0, 0), (0, -n % size), (0, 0), (0, 0))
    chunked = [
        jnp.moveaxis(x.reshape(b, -1, size, *x.shape[2:]), 1, 0)
        for x in (jnp.pad(q, padding), jnp.pad(ids, padding[:2]))
    ]
    out = jax.lax.map(jax.checkpoint(part), tuple(chunked))
    return jnp.moveaxis(out, 0, 1).reshape(b, -1, heads, v.shape[-1])[:, :n]


# Name -> frames of a video -> int [f, m]: the frames whose keys and values each of the
# f frames reads in the self-attention of an image network.
FRAME_READS: dict[str, Callable[[int], np.ndarray]] = {
    "own": lambda f: np.arange(f)[:, None],
    # Text2Video-Zero, arXiv:2303.13439, section 3.3.
    "first": lambda f: np.zeros((f, 1), int),
    # Tune-A-Video, arXiv:2212.11565, section 3.2: sparse-causal.
    "previous": lambda f: np.array([[0, max(i - 1, 0)] for i in range(f)]),
    # ControlVideo, arXiv:2305.13077, section 3.2: fully cross-frame; between two key
    # frames, section 3.4.
    "every": lambda f: np.tile(np.arange(f), (f, 1)),
    "ends": lambda f: np.tile([0, f - 1], (f, 1)),
}


def read_frames(
    q: jax.Array, k: jax.Array, v: jax.Array, reads: np.ndarray
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arrange arrays [b, f, n, h, d] so that frames read others: [b, f', n', h, d].

    Where all frames read the same ones, their queries become one sequence, so that keys
    and values are not repeated. Attention of the result, reshaped to q's shape, is the
    output in q's order.

    reads: int [f, m], a row of FRAME_READS.
    """
    b, f, n, heads, d = q.shape
    if (reads == reads[:1]).all():
        q, reads = q.reshape(b, 1, f * n, heads, d), reads[:1]
    k, v = (x[:, reads].reshape(b, len(reads), -1, heads, x.shape[-1]) for x in (k, v))
    return q, k, v


def frame_attention_mask(frame_mask: jax.Array) -> jax.Array:
    """Return (m_i and m_j) or i = j: bool [b, f] -> bool [b, f, f].

    Frames of the video attend to each other, an independent image only to itself
    (arXiv:2204.03458, section 3).
    """
    both = frame_mask[:, :, None] & frame_mask[:, None, :]
    return both | jnp.eye(frame_mask.shape[1], dtype=bool)[None]


def relative_offsets(frames: int) -> np.ndarray:
    """Return j - i for query frame i and key frame j: int [f, f]."""
    return np.arange(frames)[None, :] - np.arange(frames)[:, None]


def relative_buckets(
    frames: int, num_buckets: int = 32, max_distance: int = 32
) -> np.ndarray:
    """Return T5's bucket of every j - i: int [f, f] in 0..num_buckets-1.

    Half of the buckets are for each sign (arXiv:1910.10683, section 2.1). In each half,
    the first half holds the exact distances 0, 1, 2, ..., and the rest are spaced
    evenly in log distance up to `max_distance`. Larger distances share the last bucket.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    offset = relative_offsets(frames)
    distance = np.abs(offset)
    log_distance = np.log(np.maximum(distance, 1) / exact)
    log_distance = log_distance / math.log(max_distance / exact)
    coarse = np.minimum(exact + (log_distance * (half - exact)).astype(int), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, coarse)


class ShawPosition(nn.Module):
    """Vectors for keys and values by clipped distance (arXiv:1803.02155, 3.1-3.2).

    There is one for each of -max_distance..max_distance, shared by the heads.
    """

    max_distance: int = 16

    @nn.compact
    def __call__(self, q: jax.Array) -> dict:
        """q [..., f, h, d] -> {"shaw": (a_k [f, f, d], a_v [f, f, d])}."""
        frames, _, dim = q.shape[-3:]
        most = self.max_distance
        index = np.clip(relative_offsets(frames), -most, most) + most
        shape = (2 * most + 1, dim)
        init = nn.initializers.normal(dim**-0.5)
        a_k = self.param("keys", init, shape, param_dtype(q))
        a_v = self.param("values", init, shape, param_dtype(q))
        return {"shaw": (a_k[index].astype(q.dtype), a_v[index].astype(q.dtype))}


class BiasPosition(nn.Module):
    """One scalar per head and bucket of distances (arXiv:1910.10683, section 2.1)."""

    num_buckets: int = 32
    max_distance: int = 32

    @nn.compact
    def __call__(self, q: jax.Array) -> dict:
        """q [..., f, h, d] -> {"bias": [h, f, f]}."""
        frames, heads, _ = q.shape[-3:]
        index = relative_buckets(frames, self.num_buckets, self.max_distance)
        shape = (heads, self.num_buckets)
        init = nn.initializers.normal(1.0)
        return {"bias": self.param("table", init, shape, param_dtype(q))[:, index]}


RELATIVE_POSITIONS = {"shaw": ShawPosition, "bias": BiasPosition}
