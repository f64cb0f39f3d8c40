"""Record what diffusers samples with small folders of DiT and Latte that it wrote.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate
    python -m tests.parity.record_transformers

Writes tests/parity/transformers.json.gz, the texts of the folders with the names and
shapes of their weights, and transformers.npz: latents and pixels, float32.

DiT is run with the frequencies of its original program, 10^(-4 i / 128), which made the
published weights; diffusers divides by 127. The difference is printed.
"""

import gzip
import json
import tempfile
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from diffusers.pipelines.dit import (  # pyright: ignore[reportMissingImports]
    pipeline_dit,
)

from tests.parity.record_pipeline import texts, weights
from tests.parity.transformer_cases import (
    ARRAYS,
    FILES,
    LABEL,
    NEGATIVE,
    PROMPT,
    SCALE,
    STEPS,
    noise,
    part_weight,
)

SIZES = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8,
    num_layers=2, sample_size=8, patch_size=2, attention_bias=True,
    activation_fn="gelu-approximate",
)  # fmt: skip
PIECES = (
    "<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁cat", "▁dog", "▁on", "e", "d",
)  # fmt: skip


def parts(pipeline: str) -> dict:
    """Return the networks of a pipeline, with drawn weights."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    if pipeline == "dit":
        networks = {"transformer": diffusers.DiTTransformer2DModel(**SIZES)}
    else:
        text = transformers.T5Config(
            vocab_size=len(PIECES), d_model=20, d_kv=10, d_ff=32, num_layers=2,
            num_heads=2, feed_forward_proj="gated-gelu",
        )  # fmt: skip
        networks = {
            "transformer": diffusers.LatteTransformer3DModel(
                **SIZES, video_length=3, caption_channels=20, cross_attention_dim=24,
                norm_type="ada_norm_single", norm_elementwise_affine=False,
                norm_eps=1e-6, num_embeds_ada_norm=1000,
            ),
            "text_encoder": transformers.T5EncoderModel(text),
        }  # fmt: skip
    networks["vae"] = vae
    for part, network in networks.items():
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                drawn = part_weight(f"{pipeline}/{part}/{name}", tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn))
    return networks


def build(pipeline: str):
    """Return a pipeline of small networks."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    if pipeline == "dit":
        return diffusers.DiTPipeline(**parts(pipeline), scheduler=scheduler)
    words = transformers.T5Tokenizer(
        vocab=[(piece, -float(i)) for i, piece in enumerate(PIECES)], extra_ids=0
    )
    return diffusers.LattePipeline(
        **parts(pipeline), tokenizer=words, scheduler=scheduler
    )


def sample(pipeline: str, model) -> dict[str, np.ndarray]:
    """Return the latents of a run, and its pixels in [0, 1], frames first."""
    eps = torch.from_numpy(noise(pipeline))
    decoded = []
    decode = model.vae.decode
    model.vae.decode = lambda z, **kwargs: (decoded.append(z), decode(z, **kwargs))[1]
    options = dict(num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np")
    if pipeline == "dit":
        pipeline_dit.randn_tensor = lambda *args, **kwargs: eps
        pixels = model([LABEL], **options).images
    else:
        words = model.tokenizer([PROMPT, NEGATIVE])
        print(words)
        assert len({len(ids) for ids in words["input_ids"]}) == 1
        pixels = model(
            PROMPT, NEGATIVE, video_length=3, height=16, width=16, latents=eps,
            clean_caption=False, **options,
        ).frames[0]  # fmt: skip
    latents = torch.cat(decoded) * model.vae.config.scaling_factor
    print(pipeline, latents.shape, pixels.shape, latents.std().item())
    return {f"{pipeline}/latents": latents.numpy(), f"{pipeline}/pixels": pixels}


def original_frequencies(model) -> None:
    """Divide the exponents of DiT's timesteps by 128."""
    for block in model.transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0


def main() -> None:
    """Write both files."""
    arrays, files = {}, {}
    for pipeline in ("dit", "latte"):
        with tempfile.TemporaryDirectory() as name, torch.no_grad():
            folder = Path(name)
            build(pipeline).to(torch.float16).save_pretrained(
                folder, variant="fp16", max_shard_size="60KB"
            )
            # Read back, so that what is recorded is what the files hold.
            model = diffusers.DiffusionPipeline.from_pretrained(
                name, variant="fp16", torch_dtype=torch.float32
            )
            if pipeline == "dit":
                shipped = sample(pipeline, model)["dit/latents"]
                original_frequencies(model)
            arrays |= sample(pipeline, model)
            if pipeline == "dit":
                print("frequencies move", abs(shipped - arrays["dit/latents"]).max())
            files[pipeline] = {"texts": texts(folder), "weights": weights(folder)}
            print(*files[pipeline]["texts"], *files[pipeline]["weights"], sep="\n")
    FILES.write_bytes(gzip.compress(json.dumps(files).encode(), mtime=0))
    np.savez_compressed(ARRAYS, **arrays)
    print(FILES.stat().st_size, ARRAYS.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
