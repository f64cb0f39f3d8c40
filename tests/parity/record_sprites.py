"""Record a sample of models/sprites by diffusers: see README.md in this folder.

    python -m vdm_jax.export --workdir=models/sprites --format=diffusers --out=DIR
    python -m tests.parity.record_sprites DIR

The second command runs in the environment of the references.
"""

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.parity.sprites_case import ARRAYS, SCALE, STEPS, embeddings, noise


def main() -> None:
    """Write the latents and the image."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        sys.argv[1], torch_dtype=torch.float32, text_encoder=None, tokenizer=None
    )
    text, empty = (torch.from_numpy(array) for array in embeddings())
    with torch.no_grad():
        latents = pipeline(
            prompt_embeds=text, negative_prompt_embeds=empty,
            latents=torch.from_numpy(noise()), num_inference_steps=STEPS,
            guidance_scale=SCALE, output_type="latent",
        ).images  # fmt: skip
        scaled = latents / pipeline.vae.config.scaling_factor
        image = (pipeline.vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
    print("latents", latents.std().item(), "written to", Path(ARRAYS).name)
    image = image.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(ARRAYS, latents=latents.numpy(), image=image)


if __name__ == "__main__":
    main()
