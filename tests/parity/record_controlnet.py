"""Record what diffusers computes with small ControlNets and their U-Nets.

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate
    python -m tests.parity.record_controlnet

Writes tests/parity/controlnet.npz, float64: the output of a U-Net with the residuals of
two ControlNets, that of the middle of the first one, and a whole config.json.
diffusers' sinusoids, which are float32, are replaced by float64 ones.
"""

import json

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from tests.parity.control_cases import CONTROLS, NAMES, SCALES, hints
from tests.parity.drawn import weight
from tests.parity.record_sd import Sinusoid
from tests.parity.sd_cases import FOLDER, TIMESTEPS, UNETS, unet_inputs


def drawn(kind, config: dict, network: str) -> torch.nn.Module:
    """Return a network with drawn weights in float64."""
    made = kind(**config).eval()
    with torch.no_grad():
        for key, tensor in made.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(network, key, tuple(tensor.shape))))
    made.time_proj = Sinusoid(made.time_proj.num_channels)
    return made.double()


def record(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a U-Net and its ControlNets."""
    unet = drawn(diffusers.UNet2DConditionModel, UNETS[name], name)
    controls = [
        drawn(diffusers.ControlNetModel, CONTROLS[name], f"{name}/{which}")
        for which in NAMES
    ]
    both = diffusers.MultiControlNetModel(controls)
    given = [torch.from_numpy(array).double() for array in unet_inputs(name)]
    sample, text = given
    timesteps = torch.tensor(TIMESTEPS)
    conditions = [torch.from_numpy(hint).double() for hint in hints(name)]
    with torch.no_grad():
        skips, middle = both(
            sample, timesteps, text, conditions, list(SCALES), return_dict=False
        )
        _, first = controls[0](
            sample, timesteps, text, conditions[0], SCALES[0], return_dict=False
        )
        output, plain = (
            unet(sample, timesteps, text, **residuals).sample
            for residuals in (
                dict(
                    down_block_additional_residuals=skips,
                    mid_block_additional_residual=middle,
                ),
                {},
            )
        )
    print(name, output.std().item(), "effect", (output - plain).std().item())
    return {f"{name}/output": output.numpy(), f"{name}/middle": first.numpy()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded: dict = {}
    for name in CONTROLS:
        recorded |= record(name)
    with torch.device("meta"):
        whole = diffusers.ControlNetModel(**CONTROLS["sd1"]).to_json_string()
    recorded["config"] = np.array(json.dumps(json.loads(whole)))
    np.savez_compressed(FOLDER / "controlnet.npz", **recorded)
