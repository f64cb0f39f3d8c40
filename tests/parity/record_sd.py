"""Record what diffusers computes with small U-Nets and Stable Diffusion's samplers.

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate
    python -m tests.parity.record_sd

Writes tests/parity/sd_unet.npz and sd_samplers.npz, float64, and the configs, names and
shapes of the published U-Nets. The sinusoids and the
samplers' tables, which diffusers computes in float32, are replaced by float64 ones. The
steps of its Euler and DPM-Solver remain float32.
"""

import gzip
import json
import math

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from tests.parity.drawn import weight
from tests.parity.sd_cases import (
    FOLDER,
    PREDICTION_TYPES,
    PUBLISHED,
    RUNS,
    TIMESTEPS,
    UNETS,
    noise,
    stand_in,
    unet_inputs,
)

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Sinusoid(torch.nn.Module):
    """diffusers' `Timesteps` in float64."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        exponent = torch.arange(self.half, dtype=torch.float64) / self.half
        angle = timesteps.double()[:, None] * torch.exp(-math.log(1e4) * exponent)
        return torch.cat([angle.cos(), angle.sin()], -1)


def unet_output(name: str) -> np.ndarray:
    """Return the output of a U-Net with drawn weights, [2, 4, 8, 8]."""
    unet = diffusers.UNet2DConditionModel(**UNETS[name]).eval()
    with torch.no_grad():
        for key, tensor in unet.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(name, key, tuple(tensor.shape))))
    timesteps = torch.tensor(TIMESTEPS)
    sample, text = (torch.from_numpy(array) for array in unet_inputs(name))
    single = unet(sample, timesteps, text).sample.detach().numpy()
    theirs, unet.time_proj = unet.time_proj, Sinusoid(unet.time_proj.num_channels)
    assert (theirs(timesteps) - unet.time_proj(timesteps)).abs().max() < 2e-4
    unet = unet.double()
    output = unet(sample.double(), timesteps, text.double()).sample.detach().numpy()
    print(name, output.std(), "float32 differs by", np.abs(output - single).max())
    return output


def sampler_output(name: str, prediction_type: str) -> np.ndarray:
    """Return the result of a sampler's run with the stand-in, [1, 4, 6, 8]."""
    kind, steps, settings = RUNS[name]
    defaults = {"DDIMScheduler": dict(clip_sample=False, set_alpha_to_one=False)}
    scheduler = getattr(diffusers, kind)(
        **BETAS, **{"steps_offset": 1, **defaults.get(kind, {}), **settings},
        prediction_type=PREDICTION_TYPES[prediction_type],
    )  # fmt: skip
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    assert (products - scheduler.alphas_cumprod).abs().max() < 1e-5
    scheduler.alphas_cumprod = products
    if kind == "DDIMScheduler" and not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = products[0]
    scheduler.set_timesteps(steps)
    sigmas = torch.sqrt((1 - products) / products)
    z = torch.from_numpy(noise()).double()
    is_edm = hasattr(scheduler, "sigmas")
    if is_edm:  # rounded to float32 by set_timesteps
        between = np.interp(scheduler.timesteps.double(), np.arange(1000), sigmas)
        exact = torch.cat([torch.from_numpy(between), torch.zeros(1)])
        assert (exact - scheduler.sigmas).abs().max() < 1e-4
        scheduler.sigmas = exact
    if kind == "EulerDiscreteScheduler":  # its z is ours over alpha
        z = z * torch.sqrt(1 + scheduler.sigmas[0] ** 2)
    for t in scheduler.timesteps:
        output = stand_in(
            scheduler.scale_model_input(z, t), float(t), lambda x: x.roll(1, -1)
        )
        z = scheduler.step(output, t, z).prev_sample
        z = z.double()
    print(name, prediction_type, scheduler.timesteps[:2].tolist(), z.std().item())
    return z.numpy()


def published_unets() -> tuple[dict, str]:
    """Return config, count, names and shapes of all, and the whole config of one."""
    listed, whole = {}, ""
    for name, config in PUBLISHED.items():
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**config)
        shapes = {key: list(t.shape) for key, t in unet.state_dict().items()}
        parameters = sum(parameter.numel() for parameter in unet.parameters())
        listed[name] = {"config": config, "parameters": parameters, "shapes": shapes}
        whole = unet.to_json_string()
    return listed, whole


if __name__ == "__main__":
    torch.set_num_threads(1)
    listed, whole = published_unets()
    (FOLDER / "sd_unet_config.json").write_text(whole)
    compressed = gzip.compress(json.dumps(listed).encode(), mtime=0)
    (FOLDER / "sd_unet_shapes.json.gz").write_bytes(compressed)
    outputs: dict = {name: unet_output(name) for name in UNETS}
    np.savez_compressed(FOLDER / "sd_unet.npz", **outputs)
    runs: dict = {
        f"{name}_{kind}": sampler_output(name, kind)
        for name in RUNS
        for kind in PREDICTION_TYPES
    }
    np.savez_compressed(FOLDER / "sd_samplers.npz", **runs)
