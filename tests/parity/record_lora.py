"""Record what diffusers computes with LoRA files, fused and not.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2
    python -m tests.parity.record_lora

Writes tests/parity/lora.npz, float64: outputs of a small U-Net and of a small text
encoder with each file of lora_cases.py and with two of them with weights, fused, from
which those without fusing differ by 4e-15; and the names that diffusers writes.
"""

import tempfile
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from peft.utils import (  # pyright: ignore[reportMissingImports]
    get_peft_model_state_dict,
)
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import (  # pyright: ignore[reportMissingImports]
    CLIPTextConfig,
    CLIPTextModel,
)

from tests.parity import lora_cases
from tests.parity.drawn import weight
from tests.parity.record_clip_text import NETWORKS
from tests.parity.record_sd import Sinusoid
from tests.parity.sd_cases import FOLDER, TIMESTEPS, UNETS, unet_inputs


def pipeline() -> diffusers.StableDiffusionPipeline:
    """Return a pipeline of a U-Net and a text encoder with drawn weights."""
    unet = diffusers.UNet2DConditionModel(**UNETS["sd1"]).eval()
    config = CLIPTextConfig(**NETWORKS["quick_gelu"])
    text = CLIPTextModel._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for model, name in ((unet, "sd1"), (text, "clip_text/quick_gelu")):
            for key, tensor in model.named_parameters():
                tensor.copy_(torch.tensor(weight(name, key, tuple(tensor.shape))))
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(), text_encoder=text, tokenizer=None, unet=unet,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def outputs(pipe) -> dict[str, np.ndarray]:
    """Return the outputs of the U-Net and of the text encoder in float64."""
    unet, text = pipe.unet.double(), pipe.text_encoder.double()
    unet.time_proj = Sinusoid(unet.config.block_out_channels[0])
    sample, tokens = (torch.from_numpy(array).double() for array in unet_inputs("sd1"))
    with torch.no_grad():
        made = unet(sample, torch.tensor(TIMESTEPS), tokens).sample
        encoded = text(torch.tensor(lora_cases.IDS)).last_hidden_state
    return {"unet": made.numpy(), "text": encoded.numpy()}


def load(pipe, name: str) -> None:
    """Load a file as an adapter of its name."""
    tensors, metadata = lora_cases.files()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(tensors, path, metadata | {"format": "pt"})
        pipe.load_lora_weights(str(path), adapter_name=name)


def main() -> None:
    """Record all cases and print how far each is from the base."""
    base = outputs(pipeline())
    recorded = {"names": np.array(written_names())}
    cases = {name: {name: 1.0} for name in lora_cases.files()}
    for case, weights in (cases | {"several": lora_cases.SEVERAL}).items():
        pipe, fused = pipeline(), pipeline()
        for name, scale in weights.items():
            load(pipe, name)
            load(fused, name)
            fused.fuse_lora(lora_scale=scale, adapter_names=[name])
            fused.unload_lora_weights()
        pipe.set_adapters(list(weights), list(weights.values()))
        made, unmerged = outputs(fused), outputs(pipe)
        for part, array in made.items():
            recorded |= {f"{case}/{part}": array}
            print(
                case, part, "from the base", np.abs(array - base[part]).max(),
                "unmerged differs by", np.abs(array - unmerged[part]).max(),
            )  # fmt: skip
    np.savez_compressed(FOLDER / "lora.npz", **recorded)


def written_names() -> list[str]:
    """Return the names that diffusers writes for the file "kohya", without text."""
    pipe = pipeline()
    tensors, _ = lora_cases.files()["kohya"]
    unet = {name: torch.tensor(a) for name, a in tensors.items() if "_unet_" in name}
    pipe.load_lora_weights(unet, adapter_name="a")
    layers = get_peft_model_state_dict(pipe.unet, adapter_name="a")
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_lora_weights(folder, unet_lora_layers=layers)
        (path,) = Path(folder).iterdir()
        with safe_open(path, "numpy") as file:
            return sorted(file.keys())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
