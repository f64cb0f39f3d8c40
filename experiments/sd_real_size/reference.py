"""Write a folder of Stable Diffusion 1.5's size by diffusers, and sample it there.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate
    python -m experiments.sd_real_size.reference --folder=DIR

Weights are drawn by their names, in half precision and in shards.
DIR.npz gets the noise, the latents and the image of two steps in float32.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from experiments.sd_real_size.case import PROMPT, STEPS
from tests.parity.clip_vocabulary import END, write_padding, write_vocabulary
from tests.parity.drawn import weight
from tests.parity.sd_cases import PUBLISHED
from vdm_jax.runtime import path_type

BETAS = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)


def build():
    """Return a pipeline with the sizes of version 1.5 and drawn weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vocabulary(folder, ["c a", "ca t</w>"])
        write_padding(folder, END)
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        words = transformers.CLIPTokenizer.from_pretrained(name)
    parts = dict(
        unet=diffusers.UNet2DConditionModel(**PUBLISHED["sd15_unet"]),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, sample_size=512,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12,
            )
        ),
    )  # fmt: skip
    for part, network in parts.items():
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                drawn = weight(part, name, tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn))
    return diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=words,
        scheduler=diffusers.DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def main() -> None:
    """Write the folder and DIR.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=path_type, required=True)
    folder = parser.parse_args().folder
    build().to(torch.float16).save_pretrained(
        folder, variant="fp16", max_shard_size="500MB"
    )
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder), variant="fp16", torch_dtype=torch.float32, safety_checker=None
    )
    noise = np.random.default_rng(0).standard_normal((1, 4, 64, 64), np.float32)
    started = time.perf_counter()
    with torch.no_grad():
        latents = pipeline(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            latents=torch.from_numpy(noise),
            output_type="latent",
        ).images
        scale = pipeline.vae.config.scaling_factor
        image = pipeline.vae.decode(latents / scale).sample / 2 + 0.5
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.0f} s, {peak:.1f} GiB", file=sys.stderr)
    image = image.clamp(0, 1).permute(0, 2, 3, 1)
    np.savez(
        folder.with_suffix(".npz"), noise=noise, latents=latents.numpy(),
        image=image.numpy(), seconds=seconds, peak=peak,
    )  # fmt: skip


if __name__ == "__main__":
    main()
