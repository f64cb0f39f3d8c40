"""Record what diffusers' pipelines sample with a small folder that they wrote.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate
    python -m tests.parity.record_pipeline

Writes tests/parity/pipeline.json.gz, the texts of the folder with the names and shapes
of its weights, and pipeline.npz: latents and images of every run, float32.

    python -m tests.parity.written_pipeline DIR   # in the library's own environment
    python -m tests.parity.record_pipeline DIR

The second command writes pipeline_written.npz: what diffusers samples with the folders
that the first one has written, by their own schedulers, and checksums of their files.
"""

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from diffusers.pipelines.stable_diffusion import (  # pyright: ignore[reportMissingImports]
    pipeline_stable_diffusion_img2img as img2img,
)
from safetensors import safe_open

from tests.parity.clip_vocabulary import END, write_padding, write_vocabulary
from tests.parity.pipeline_cases import (
    ARRAYS,
    FILES,
    MERGES,
    PROMPT,
    RUNS,
    SCALE,
    STEPS,
    noise,
    part_weight,
    picture,
)
from tests.parity.written_pipeline import WRITTEN, WRITTEN_ARRAYS, checksums

BETAS = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)
OWN = {  # settings of a class; Euler's default has timesteps between two integers
    "DDIMScheduler": dict(clip_sample=False, set_alpha_to_one=False),
    "EulerDiscreteScheduler": dict(timestep_spacing="leading"),
}


def tokenizer(folder: Path):
    """Return CLIP's tokenizer with few merges."""
    write_vocabulary(folder, list(MERGES))
    write_padding(folder, END)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.CLIPTokenizer.from_pretrained(str(folder))


def scheduler(kind: str, prediction_type: str):
    """Return a scheduler with Stable Diffusion's betas."""
    settings = BETAS | OWN.get(kind, {}) | {"prediction_type": prediction_type}
    return getattr(diffusers, kind)(**settings)


def build(folder: Path):
    """Return a pipeline of small networks with drawn weights."""
    words = tokenizer(folder)
    parts = {
        "unet": diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
            attention_head_dim=4, sample_size=8,
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(words), hidden_size=24, intermediate_size=40,
                num_hidden_layers=2, num_attention_heads=3,
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        ),
    }  # fmt: skip
    for part, network in parts.items():
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                drawn = part_weight(part, name, tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn))
    return diffusers.StableDiffusionPipeline(
        **parts, tokenizer=words, scheduler=scheduler("DDIMScheduler", "epsilon"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sample(pipeline, run: str) -> dict[str, np.ndarray]:
    """Return latents [1, 4, 8, 8] and an image [1, 16, 16, 3] in [0, 1] of a run."""
    negative, strength = RUNS[run][2:]
    eps = torch.from_numpy(noise())
    options = dict(
        prompt=PROMPT, negative_prompt=negative, num_inference_steps=STEPS,
        guidance_scale=SCALE, output_type="latent",
    )  # fmt: skip
    if strength:
        pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None] / 127.5 - 1
        mean = pipeline.vae.encode(pixels).latent_dist.mode()
        start = mean * pipeline.vae.config.scaling_factor
        img2img.randn_tensor = lambda *args, **kwargs: eps
        edit = diffusers.StableDiffusionImg2ImgPipeline(
            **pipeline.components, requires_safety_checker=False
        )
        latents = edit(image=start, strength=strength, **options).images
    else:
        latents = pipeline(latents=eps, **options).images
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    image = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    print(
        run, "latents", latents.std().item(), "clipped", (image % 1 == 0).float().mean()
    )
    return {f"{run}/latents": latents.numpy(), f"{run}/image": image.numpy()}


def texts(folder: Path) -> dict[str, str]:
    """Return the text of every file of a folder that is no weights."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors"
    }


def weights(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Return the names and shapes of every file of weights."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            shapes = {n: file.get_slice(n).get_shape() for n in list(file.keys())}
        found[str(path.relative_to(folder))] = shapes
    return found


def main() -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        root, folder = Path(name), Path(name) / "pipeline"
        pipeline = build(root / "words")
        pipeline.to(torch.float16).save_pretrained(
            folder, variant="fp16", max_shard_size="400KB"
        )
        # Read back, so that what is recorded is what the files hold.
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            str(folder), variant="fp16", torch_dtype=torch.float32, safety_checker=None
        )
        arrays = {}
        for run in RUNS:
            pipeline.scheduler = scheduler(*RUNS[run][:2])
            arrays |= sample(pipeline, run)
            pipeline.scheduler.save_pretrained(folder / run)
        shutil.rmtree(folder / "scheduler")  # each run has its own
        recorded = {"texts": texts(folder), "weights": weights(folder)}
    print(*recorded["texts"], *recorded["weights"], sep="\n")
    FILES.write_bytes(gzip.compress(json.dumps(recorded).encode(), mtime=0))
    np.savez_compressed(ARRAYS, **arrays)
    print(FILES.stat().st_size, ARRAYS.stat().st_size, "bytes")


def record_written(root: Path) -> None:
    """Write what diffusers samples with each of the folders of `WRITTEN`."""
    arrays = {"checksums": np.array(checksums(root))}
    for name, run in WRITTEN.items():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            str(root / name), torch_dtype=torch.float32
        )
        print(name, type(pipeline.scheduler).__name__)
        with torch.no_grad():
            sampled = sample(pipeline, run)
        arrays |= {f"{name}/{k.partition('/')[2]}": v for k, v in sampled.items()}
    np.savez_compressed(WRITTEN_ARRAYS, **arrays)
    print(WRITTEN_ARRAYS.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        record_written(Path(sys.argv[1]))
    else:
        main()
