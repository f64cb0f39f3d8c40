"""Activations of I3D by PyTorch, written from the paper and without our module.

    make .venv-baselines/ready
    .venv-baselines/bin/python -m tests.metrics.record_i3d $(.venv/bin/python -c \
      "from vdm_jax.metrics.i3d import WEIGHTS; print(WEIGHTS.verified_path())")

Writes tests/metrics/data/i3d.npz. In float64, with batch norms as they are stored,
with TensorFlow's padding written out; the layers in the order of Carreira and Zisserman
(arXiv:1705.07750, figure 3), their sizes read off the weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tests.metrics.waves import sample, waves
from vdm_jax.pretrained import pickled

DATA = Path(__file__).parent / "data" / "i3d.npz"
ENDPOINTS = ("Conv3d_1a_7x7", "Mixed_3c", "Mixed_4f", "Mixed_5c")
INFINITY = float("inf")


def same(x, window, stride, value):
    """TensorFlow's SAME: ceil(size / stride) places, what is odd behind."""
    pads = []
    for size, w, s in zip(x.shape[2:], window, stride, strict=True):
        total = max((-(-size // s) - 1) * s + w - size, 0)
        pads.insert(0, (total // 2, total - total // 2))
    return F.pad(x, [pad for pair in pads for pad in pair], value=value)


def pool(x, window, stride):
    """Maximum over windows."""
    return F.max_pool3d(same(x, window, stride, -INFINITY), window, stride)


class Network:
    """The layers over the stored variables; `seen` keeps the endpoints."""

    def __init__(self, stored: dict):
        self.params, self.stats = stored["params"], stored["batch_stats"]
        self.seen: dict[str, np.ndarray] = {}

    def unit(self, x, stride, *names):
        """Convolution, batch norm, ReLU."""
        params, stats = self.params, self.stats
        for name in names:
            params, stats = params[name], stats[name]
        kernel = torch.tensor(params["Conv_0"]["kernel"]).double()
        window, strides = kernel.shape[:3], (stride,) * 3
        x = F.conv3d(
            same(x, window, strides, 0.0), kernel.permute(4, 3, 0, 1, 2), stride=strides
        )
        bias = torch.tensor(params["BatchNorm_0"]["bias"]).double()
        mean, variance = (
            torch.tensor(stats["BatchNorm_0"][k]).double().flatten()
            for k in ("mean", "var")
        )
        return F.relu(F.batch_norm(x, mean, variance, bias=bias, eps=1e-3))

    def mixed(self, x, name):
        """Four branches."""
        first, second = (
            self.unit(
                self.unit(x, 1, name, f"Branch_{i}/Conv3d_0a_1x1"),
                1,
                name,
                f"Branch_{i}/Conv3d_0b_3x3",
            )
            for i in (1, 2)
        )
        plain = self.unit(x, 1, name, "Branch_0/Conv3d_0a_1x1")
        most = pool(x, (3, 3, 3), (1, 1, 1))
        most = self.unit(most, 1, name, "Branch_3/Conv3d_0b_1x1")
        return self.keep(name, torch.cat([plain, first, second, most], 1))

    def keep(self, name, x):
        """Remember an endpoint, channels last."""
        if name in ENDPOINTS:
            self.seen[name] = x.permute(0, 2, 3, 4, 1).numpy()
        return x

    def logits(self, videos: np.ndarray) -> np.ndarray:
        """[n, f, h, w, 3] in [-1, 1] -> [n, 400]."""
        x = torch.tensor(videos).permute(0, 4, 1, 2, 3)
        x = self.keep("Conv3d_1a_7x7", self.unit(x, 2, "Conv3d_1a_7x7"))
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit(x, 1, "Conv3d_2b_1x1")
        x = self.unit(x, 1, "Conv3d_2c_3x3")
        x = pool(x, (1, 3, 3), (1, 2, 2))
        for letter in "bc":
            x = self.mixed(x, f"Mixed_3{letter}")
        x = pool(x, (3, 3, 3), (2, 2, 2))
        for letter in "bcdef":
            x = self.mixed(x, f"Mixed_4{letter}")
        x = pool(x, (2, 2, 2), (2, 2, 2))
        for letter in "bc":
            x = self.mixed(x, f"Mixed_5{letter}")
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        last = self.params["Logits/Conv3d_0c_1x1"]["Conv_0"]
        kernel = torch.tensor(last["kernel"]).double().permute(4, 3, 0, 1, 2)
        x = F.conv3d(x, kernel, torch.tensor(last["bias"]).double())
        return x.squeeze(4).squeeze(3).mean(2).numpy()


def resized(videos: np.ndarray) -> np.ndarray:
    """[1, f, h, w, c] -> [1, f, 224, 224, c] by PyTorch's bilinear interpolation."""
    frames = torch.tensor(videos[0]).permute(0, 3, 1, 2)
    frames = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    return frames.permute(0, 2, 3, 1)[None].numpy()


def main() -> None:
    """Record the small input, the full size, and the resizing."""
    network = Network(pickled.read(Path(sys.argv[1])))
    found = {}
    for size, video in {
        "small": waves(17, 50, 70),  # odd numbers, and two windows in the end
        "full": resized(waves(16, 48, 64)),
    }.items():
        found[f"{size}/Logits"] = network.logits(video)[0]
        found |= {f"{size}/{name}": sample(x) for name, x in network.seen.items()}
    for height, width in ((20, 36), (300, 260)):
        found[f"resized/{height}x{width}"] = sample(resized(waves(2, height, width)))
    DATA.parent.mkdir(exist_ok=True)
    arrays = {name: x.astype(np.float32) for name, x in found.items()}
    np.savez_compressed(DATA, **arrays)
    print(DATA, DATA.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
