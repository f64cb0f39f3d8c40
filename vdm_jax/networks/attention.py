"""Attention, and positions relative in time."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.networks.layers import wide


def attention(q, k, v, *, mask=None, bias=None, shaw=None):
    """softmax(q k' / sqrt(d) + bias) v, the softmax in float32 or wider.

    q [..., n, h, d]; k, v [..., m, h, d]; the leading axes only batch.
    mask  bool, broadcasts to [..., n, m]: True where query n may read key m, which
          must be so for one key of each query at least
    bias  [h, n, m], added to the scores
    shaw  (a_k, a_v), each [n, m, d]: vectors added to key and value of each pair
    Returns [..., n, h, d].
    """
    dtype = wide(q)
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
    # In v's dtype: XLA's CPU lacks some bfloat16 products with a float32 result.
    out = jnp.einsum("...hnm,...mhd->...nhd", p, v)
    if shaw is not None:  # sum_j p_ij (v_j + a_v[i, j]), equation 3
        out += jnp.einsum("...hnm,nmd->...nhd", p, shaw[1])
    return out


def frame_attention_mask(frame_mask: jax.Array) -> jax.Array:
    """bool [b, f] -> bool [b, f, f]: (m_i and m_j) or i = j.

    Frames of the video read each other, an independent image only itself
    (arXiv:2204.03458, section 3).
    """
    both = frame_mask[:, :, None] & frame_mask[:, None, :]
    return both | jnp.eye(frame_mask.shape[1], dtype=bool)[None]


def offsets(frames: int) -> np.ndarray:
    """[f, f]: j - i, from query frame i to key frame j."""
    return np.arange(frames)[None, :] - np.arange(frames)[:, None]


def relative_buckets(frames: int, buckets: int = 32, reach: int = 32) -> np.ndarray:
    """T5's bucket of every j - i: int [f, f] in 0..buckets-1 (arXiv:1910.10683, 2.1).

    Half of the buckets for each sign. In each half, the first half holds the exact
    distances 0, 1, 2, ..., the rest are spaced evenly in log distance up to `reach`;
    all that lies beyond shares the last.
    """
    half, exact = buckets // 2, buckets // 4
    far = offsets(frames)
    distance = np.abs(far)
    octave = np.log(np.maximum(distance, 1) / exact) / math.log(reach / exact)
    coarse = np.minimum(exact + (octave * (half - exact)).astype(int), half - 1)
    return np.where(far > 0, half, 0) + np.where(distance < exact, distance, coarse)


class ShawPosition(nn.Module):
    """Vectors for keys and values by clipped distance (arXiv:1803.02155, 3.1-3.2).

    One for each of -reach..reach, shared by the heads.
    """

    reach: int = 16

    @nn.compact
    def __call__(self, q: jax.Array) -> dict:
        """q [..., f, h, d] -> {"shaw": (a_k [f, f, d], a_v [f, f, d])}."""
        frames, _, dim = q.shape[-3:]
        index = np.clip(offsets(frames), -self.reach, self.reach) + self.reach
        shape, init = (2 * self.reach + 1, dim), nn.initializers.normal(dim**-0.5)
        a_k = self.param("keys", init, shape, wide(q))
        a_v = self.param("values", init, shape, wide(q))
        return {"shaw": (a_k[index].astype(q.dtype), a_v[index].astype(q.dtype))}


class BiasPosition(nn.Module):
    """One scalar for each head and bucket of distance (arXiv:1910.10683, 2.1)."""

    buckets: int = 32
    reach: int = 32

    @nn.compact
    def __call__(self, q: jax.Array) -> dict:
        """q [..., f, h, d] -> {"bias": [h, f, f]}."""
        frames, heads, _ = q.shape[-3:]
        index = relative_buckets(frames, self.buckets, self.reach)
        shape, init = (heads, self.buckets), nn.initializers.normal(1.0)
        return {"bias": self.param("table", init, shape, wide(q))[:, index]}


POSITIONS = {"shaw": ShawPosition, "bias": BiasPosition}
