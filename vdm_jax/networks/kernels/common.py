"""What the kernels share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

LANES = 128
HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # the score of a pair that is masked
COMPILER_PARAMS = pltpu.CompilerParams(
    # The last axis of a grid runs in order: its steps add to the same results.
    dimension_semantics=("parallel", "parallel", "arbitrary"),
    vmem_limit_bytes=100 * 2**20,  # of the chip's vector memory
)


def head_block(heads: int, d: int) -> int:
    """Return the heads that a kernel takes at a time: their lanes are whole registers.

    All of them, where no smaller number has a width that is a multiple of 128.
    """
    least = LANES // math.gcd(LANES, d)
    sizes = [n for n in range(least, heads, least) if heads % n == 0 and n * d >= 256]
    return min(sizes, default=heads)


def dot(a, b, contract: tuple[int, int], precision=None):
    """Return the product over one axis of a and one of b, in float32."""
    dims = ((contract[:1], contract[1:]), ((), ()))
    wide = {"preferred_element_type": jnp.float32, "precision": precision}
    return jax.lax.dot_general(a, b, dims, **wide)
