"""Attention within the videos of a packed buffer: JAX's flash attention for TPUs.

It takes the number of each query's and each key's video, and its gradient is a kernel
too. Scores are never in memory (arXiv:2205.14135).
"""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import flash_attention as flash

from vdm_jax.networks.kernels.common import LANES

BLOCKS = (4 * LANES, 2 * LANES, LANES)  # queries and keys at a time


def segment_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    key_ids: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Return attention of each query to the keys with its id, [b, n, h, d].

    q [b, n, h, d]; k, v [b, m, h, d]; ids int [b, n]; key_ids int [b, m]; n and m are
    multiples of LANES. A query without such a key has the mean of some values.
    """
    rows, keys = (next(b for b in BLOCKS if x.shape[1] % b == 0) for x in (q, k))
    blocks = flash.BlockSizes(
        block_q=rows, block_k_major=keys, block_k=keys, block_b=1,
        block_q_major_dkv=rows, block_k_major_dkv=keys, block_k_dkv=keys,
        block_q_dkv=rows, block_k_major_dq=keys, block_k_dq=keys, block_q_dq=rows,
    )  # fmt: skip
    mode = pltpu.force_tpu_interpret_mode() if interpret else contextlib.nullcontext()
    with mode:
        out = flash.flash_attention(
            *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
            segment_ids=flash.SegmentIds(ids, key_ids),
            sm_scale=1 / math.sqrt(q.shape[-1]),
            block_sizes=blocks,
        )
    return jnp.swapaxes(out, 1, 2)
