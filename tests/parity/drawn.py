"""Random numbers that a name decides: a recording and its test draw the same.

Recorded files hold outputs only. Weights of a network are drawn by the network's name
and their torch names, inputs by a name of their own.
"""

import hashlib
import math

import numpy as np


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal float32 numbers; the seed is the name's sha256."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def weight(network: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a weight of a network by its torch name and torch shape.

    Biases have deviation .1, scales of norms are 1 + .1 n, and kernels keep the
    variance. Near 0 the scales would hide errors. Those of a ControlNet's hint encoder
    are larger: eight convolutions with SiLU would forget the hint.
    """
    n = normal(f"{network}/{name}", shape)
    if name.endswith("bias"):
        return np.float32(0.1) * n
    if name.endswith("gamma"):  # scales of norms that have axes of size 1
        return 1 + np.float32(0.1) * n
    if len(shape) == 1:
        is_scale = name.split(".")[-1] == "weight"
        return 1 + np.float32(0.1) * n if is_scale else n
    gain = 1.7 if name.startswith("controlnet_cond_embedding.") else 1.0
    return n / np.float32(math.sqrt(math.prod(shape[1:])) / gain)
