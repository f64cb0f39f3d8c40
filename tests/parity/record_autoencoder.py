"""Record what diffusers' AutoencoderKL computes, for tests of ours.

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate
    python -m tests.parity.record_autoencoder

Writes tests/parity/autoencoder.npz: outputs in float64 of a network with drawn weights
on drawn frames, and of a smaller one in tiles; their configurations and the shapes of
their parameters.
"""

import json
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from diffusers import AutoencoderKL  # pyright: ignore[reportMissingImports]

from tests.parity.drawn import normal, weight

FILE = Path(__file__).parent / "autoencoder.npz"
SIZES = dict(layers_per_block=1, latent_channels=4, norm_num_groups=4)


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a drawn input in float64."""
    return torch.tensor(normal(f"autoencoder/input/{name}", shape)).double()


def drawn(name: str, channels: list[int], tile: int) -> AutoencoderKL:
    """Return a network in float64 whose weights are drawn by a name."""
    network = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        sample_size=tile,
        **SIZES,
    )
    weights = {
        key: torch.tensor(weight(name, key, p.shape))
        for key, p in network.named_parameters()
    }
    network.load_state_dict(weights)
    return network.double().eval()


def description(network: AutoencoderKL) -> tuple[np.ndarray, np.ndarray]:
    """Return its configuration and the shapes of its parameters, as JSON."""
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    config = {"_class_name": "AutoencoderKL", **network.config}
    return np.array(json.dumps(config)), np.array(json.dumps(shapes))


def main() -> None:
    """Record all arrays."""
    network = drawn("autoencoder", [8, 16, 24], 32)
    small = drawn("autoencoder_tiles", [8, 8], 16)
    frames, noise = tensor("frames", (2, 3, 24, 16)), tensor("noise", (2, 4, 6, 4))
    large = tensor("large", (1, 3, 36, 28))
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
        whole = small.encode(large).latent_dist.mean
        small.enable_tiling()
        recorded["tiled_mean"] = small.encode(large).latent_dist.mean
        recorded["tiled_decoded"] = small.decode(tensor("tiles", (1, 4, 18, 14)))[0]
    arrays = {name: value.numpy() for name, value in recorded.items()}
    arrays["config"], arrays["shapes"] = description(network)
    arrays["tiles_config"], arrays["tiles_shapes"] = description(small)
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size, "bytes")
    for name, value in recorded.items():
        print(name, tuple(value.shape), f"rms {value.square().mean().sqrt():.3f}")
    effect = (arrays["tiled_mean"] - whole.numpy()).std()
    print(f"tiles change the means by {effect:.3f} rms")


if __name__ == "__main__":
    main()
