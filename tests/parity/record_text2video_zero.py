"""Record what diffusers makes of a small folder by Text2Video-Zero.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate
    python -m tests.parity.record_text2video_zero

Writes tests/parity/text2video_zero_diffusers.npz: the latents of both runs of
zero_cases.py, float32, [frames, 4, 8, 8].
"""

import tempfile
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from diffusers.pipelines.deprecated.text_to_video_synthesis import (  # pyright: ignore[reportMissingImports]
    pipeline_text_to_video_zero as zero,
)

from tests.parity.drawn import weight
from tests.parity.pipeline_cases import PROMPT, noise, write_pipeline
from tests.parity.zero_cases import (
    ARRAYS,
    CONTROL,
    FRAMES,
    MOTION,
    SCALE,
    STEPS,
    control_config,
    eps,
    hints,
)


def parts(folder: Path) -> dict:
    """Return the parts of a pipeline of the folder."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder), variant="fp16", torch_dtype=torch.float32, safety_checker=None
    )
    return pipeline.components | {"requires_safety_checker": False}


def options(run: str) -> dict:
    """Return the settings of a run that both pipelines have."""
    return dict(
        num_inference_steps=STEPS[run], guidance_scale=SCALE, output_type="latent"
    )


def by_text(folder: Path) -> torch.Tensor:
    """Return the latents of a run of TextToVideoZeroPipeline."""
    given = parts(folder)
    given.pop("image_encoder")
    pipeline = zero.TextToVideoZeroPipeline(**given)
    zero.randn_tensor = lambda *args, **kwargs: torch.from_numpy(eps())
    x, y = MOTION
    return pipeline(
        PROMPT, FRAMES["text"], latents=torch.from_numpy(noise()),
        motion_field_strength_x=x, motion_field_strength_y=y, **options("text"),
    ).images  # fmt: skip


def by_controls(folder: Path) -> torch.Tensor:
    """Return the latents of a run with a ControlNet."""
    control = diffusers.ControlNetModel(**control_config())
    with torch.no_grad():
        for key, tensor in control.state_dict().items():
            drawn = weight(CONTROL, key, tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(drawn))
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        **parts(folder), controlnet=control
    )
    for network in (pipeline.unet, control):
        network.set_attn_processor(zero.CrossFrameAttnProcessor(2))
    count = FRAMES["controls"]
    return pipeline(
        [PROMPT] * count, image=torch.from_numpy(hints()),
        latents=torch.from_numpy(noise()).repeat(count, 1, 1, 1),
        **options("controls"),
    ).images  # fmt: skip


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = write_pipeline(Path(name) / "pipeline")
        arrays = {"text": by_text(folder), "controls": by_controls(folder)}
    for run, latents in arrays.items():
        print(run, tuple(latents.shape), latents.std().item())
    np.savez_compressed(ARRAYS, **{run: z.numpy() for run, z in arrays.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
