"""Record what diffusers' AutoencoderKL computes, for tests of ours.

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate
    python -m tests.parity.record_autoencoder

Writes tests/parity/autoencoder.npz: outputs in float64 of a network with drawn weights
on drawn frames, its configuration, and the shapes of its parameters.
"""

import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports]

from tests.parity.drawn import normal, weight

FILE = Path(__file__).parent / "autoencoder.npz"
NETWORK = "autoencoder"
CONFIG = dict(
    block_out_channels=[8, 16, 24],
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=32,
)


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a drawn input in float64."""
    return torch.tensor(normal(f"{NETWORK}/input/{name}", shape)).double()


def main() -> None:
    """Record all arrays."""
    network = AutoencoderKL(**CONFIG).double().eval()
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    network.load_state_dict(
        {k: torch.tensor(weight(NETWORK, k, shape)) for k, shape in shapes.items()}
    )
    frames, noise = tensor("frames", (2, 3, 24, 16)), tensor("noise", (2, 4, 6, 4))
    large = tensor("large", (1, 3, 72, 56))
    recorded = {}
    with torch.no_grad():
        posterior = network.encode(frames).latent_dist
        recorded["mean"], recorded["log_variance"] = posterior.mean, posterior.logvar
        recorded["sample"] = posterior.mean + posterior.std * noise
        recorded["kl"] = posterior.kl()
        recorded["decoded"] = network.decode(noise).sample
        block = network.encoder.down_blocks[1].resnets[0]
        recorded["block"] = block(tensor("block", (2, 8, 6, 5)), None)
        attention = network.decoder.mid_block.attentions[0]
        recorded["attention"] = attention(tensor("attention", (2, 24, 4, 5)))
        whole = network.encode(large).latent_dist.mean
        network.enable_tiling()
        recorded["tiled_mean"] = network.encode(large).latent_dist.mean
        recorded["tiled_decoded"] = network.decode(tensor("tiles", (1, 4, 18, 14)))[0]
    arrays = {name: value.numpy() for name, value in recorded.items()}
    arrays["config"] = np.array(json.dumps(dict(network.config), default=str))
    arrays["shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size, "bytes")
    for name, value in recorded.items():
        print(name, tuple(value.shape), f"rms {value.square().mean().sqrt():.3f}")
    effect = (arrays["tiled_mean"] - whole.numpy()).std()
    print(f"tiles change the means by {effect:.3f} rms")


if __name__ == "__main__":
    main()
