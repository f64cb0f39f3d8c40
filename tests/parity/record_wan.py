"""Record what diffusers and transformers compute with small networks of Wan 2.1.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate ftfy
    python -m tests.parity.record_wan

Writes tests/parity/wan.npz: outputs in float64 of networks with drawn weights, their
configs, and the names and shapes of their parameters.
"""

import json
import math

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.parity import wan_cases as cases
from tests.parity.drawn import normal, weight


class Sinusoid(torch.nn.Module):
    """diffusers' `Timesteps` in float64."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        exponent = torch.arange(self.half, dtype=torch.float64) / self.half
        angle = timesteps.double()[:, None] * torch.exp(-math.log(1e4) * exponent)
        return torch.cat([angle.cos(), angle.sin()], -1)


def fill(name: str, network: torch.nn.Module) -> torch.nn.Module:
    """Draw the weights of a network by their names, in float64."""
    with torch.no_grad():
        for key, tensor in network.named_parameters():
            tensor.copy_(torch.from_numpy(weight(name, key, tuple(tensor.shape))))
    return network.double().eval()


def double(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).double()


def description(name: str, network: torch.nn.Module, config: dict) -> dict:
    """Return config and shapes of a network as JSON."""
    shapes = {key: list(p.shape) for key, p in network.named_parameters()}
    return {
        f"{name}/config": np.array(json.dumps(config)),
        f"{name}/shapes": np.array(json.dumps(shapes)),
    }


def transformer() -> dict:
    """Return outputs of the transformer, of a block, and rotated tokens."""
    network = diffusers.WanTransformer3DModel(**cases.TRANSFORMER)
    network = fill("wan/transformer", network)
    recorded = description("transformer", network, dict(network.config))
    network.condition_embedder.timesteps_proj = Sinusoid(16)
    # Their casts to float32 would limit the recording.
    torch.Tensor.float = torch.Tensor.double
    video, text = double(cases.video()), double(cases.text())
    times = torch.tensor(cases.TIMESTEPS, dtype=torch.float64)
    out = network(video, times, text).sample
    recorded["transformer/output"] = out
    f, h, w = cases.GRID
    each = torch.tensor(cases.FRAME_TIMESTEPS, dtype=torch.float64)
    each = each[:, :, None].expand(2, f, h * w).reshape(2, -1)
    recorded["transformer/output_with_frame_levels"] = network(video, each, text).sample
    cos, sin = network.rope(video)
    vector = double(normal("wan/input/vector", (2, 6, 36)))
    context = double(normal("wan/input/context", (2, 7, 36)))
    tokens = double(cases.tokens())
    block = network.blocks[0]
    recorded["transformer/block"] = block(tokens, context, vector, (cos, sin))
    x = tokens.reshape(2, -1, 2, 18)
    first, second = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., 0::2], sin[..., 1::2]
    turned = torch.stack([first * c - second * s, first * s + second * c], -1)
    recorded["transformer/rope"] = turned.reshape(x.shape)
    for name, other in {
        "timesteps": network(video, times + 200, text).sample,
        "text": network(video, times, -text).sample,
        "frame order": network(video.flip(2), times, text).sample.flip(2),
    }.items():
        print("effect of", name, (other - out).square().mean().sqrt().item())
    return recorded


def autoencoder() -> dict:
    """Return moments and videos of the autoencoder."""
    network = fill("wan/vae", diffusers.AutoencoderKLWan(**cases.VAE))
    recorded = description("vae", network, dict(network.config))
    torch.clamp = lambda x, *_, **__: x  # which would hide what is outside of [-1, 1]
    posterior = network.encode(double(cases.frames())).latent_dist
    recorded["vae/mean"], recorded["vae/log_variance"] = (
        posterior.mean, posterior.parameters.chunk(2, dim=1)[1],
    )  # fmt: skip
    recorded["vae/image_mean"] = network.encode(
        double(cases.frames()[:, :, :1])
    ).latent_dist.mean
    recorded["vae/decoded"] = network.decode(double(cases.latents(cases.FEW))).sample
    many = network.decode(double(cases.latents(cases.MANY))).sample
    assert many.shape[2] == 65
    recorded["vae/decoded_65"] = many[:, :, cases.MANY_FRAMES]
    x = double(normal("wan/input/block", (1, 8, 3, 4, 5)))
    recorded["vae/block"] = network.encoder.down_blocks[2](x)
    x = double(normal("wan/input/attention", (1, 32, 2, 3, 4)))
    recorded["vae/attention"] = network.decoder.mid_block.attentions[0](x)
    return recorded


def umt5() -> dict:
    """Return the embeddings of two texts."""
    config = transformers.UMT5Config(**cases.UMT5, feed_forward_proj="gated-gelu")
    network = transformers.UMT5EncoderModel._from_config(
        config, attn_implementation="eager"
    )
    network = fill("wan/text", network)
    recorded = description("text", network, config.to_dict())
    ids = np.random.default_rng(0).integers(2, 48, (2, max(cases.LENGTHS)))
    mask = np.arange(ids.shape[1]) < np.array(cases.LENGTHS)[:, None]
    output = network(torch.tensor(ids), torch.tensor(mask).long()).last_hidden_state
    recorded["text/tokens"] = output * torch.tensor(mask)[..., None]
    return recorded | {"text/ids": ids.astype(np.int32), "text/mask": mask}


def scheduler(kind: str, shift: float):
    """Return a scheduler of flow matching, as Wan's folders have it."""
    if kind == "FlowMatchEulerDiscreteScheduler":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def set_timesteps(scheduler, steps: int) -> None:
    """Choose the levels; Euler's own would have the shift of the last one twice."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)


def samplers() -> dict:
    """Return timesteps and results of runs with a linear stand-in for the network."""
    recorded = {}
    for name, (kind, shift, steps) in cases.RUNS.items():
        own = scheduler(kind, shift)
        set_timesteps(own, steps)
        z = double(cases.latents(cases.FEW))
        for t in own.timesteps:
            v = cases.stand_in(z, t.double(), lambda z: z.roll(1, -1))
            z = own.step(v, t, z, return_dict=False)[0].double()
        recorded[f"samplers/{name}"] = z
        recorded[f"samplers/{name}/timesteps"] = own.timesteps.double()
    return recorded


def main() -> None:
    """Write the file."""
    with torch.no_grad():
        recorded = samplers() | transformer() | autoencoder() | umt5()
    arrays = {}
    for name, value in recorded.items():
        if isinstance(value, torch.Tensor):
            print(name, tuple(value.shape), value.square().mean().sqrt().item())
            value = value.numpy().astype(np.float32)
        arrays[name] = value
    np.savez_compressed(cases.ARRAYS, **arrays)
    print(cases.ARRAYS.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
