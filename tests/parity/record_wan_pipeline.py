"""Record what diffusers' WanPipeline samples with a small folder that it wrote.

    pip install torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate ftfy
    python -m tests.parity.record_wan_pipeline

Writes tests/parity/wan_pipeline.json.gz, the texts of the folder with the names and
shapes of its weights, and wan_pipeline.npz: latents and videos of every run, float32.
"""

import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import diffusers  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from safetensors import safe_open

from tests.parity import wan_cases
from tests.parity import wan_pipeline_cases as cases


def scheduler(kind: str, shift: float):
    """Return a scheduler of flow matching, as Wan's folders have it."""
    if kind == "UniPCMultistepScheduler":
        return diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


def build():
    """Return a pipeline of small networks with drawn weights."""
    words = transformers.T5Tokenizer(
        vocab=[(piece, -float(i)) for i, piece in enumerate(cases.PIECES)], extra_ids=0
    )
    sizes = wan_cases.UMT5 | {"vocab_size": len(words)}
    parts = {
        "transformer": diffusers.WanTransformer3DModel(**wan_cases.TRANSFORMER),
        "vae": diffusers.AutoencoderKLWan(**wan_cases.VAE),
        "text_encoder": transformers.UMT5EncoderModel(
            transformers.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
        ),
    }
    for part, network in parts.items():
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                drawn = cases.part_weight(part, name, tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn))
    own = scheduler(*cases.RUNS["unipc"][:2])
    return diffusers.WanPipeline(**parts, tokenizer=words, scheduler=own)


def sample(pipeline, run: str) -> dict[str, np.ndarray]:
    """Return latents [1, 4, 3, 4, 6] and frames [3, 32, 48, 3] in [0, 1] of a run."""
    kind, shift, negative = cases.RUNS[run]
    own = pipeline.scheduler = scheduler(kind, shift)
    if kind != "UniPCMultistepScheduler":
        # By itself it would have the shift of the lowest level twice.
        levels = np.linspace(1, 1 / cases.STEPS, cases.STEPS)
        choose = functools.partial(own.set_timesteps, sigmas=levels)
        own.set_timesteps = lambda steps, device: choose(device=device)
    options = dict(
        prompt=cases.PROMPT, negative_prompt=negative, height=cases.HEIGHT,
        width=cases.WIDTH, num_frames=cases.FRAMES, num_inference_steps=cases.STEPS,
        guidance_scale=cases.SCALE, latents=torch.from_numpy(cases.noise()),
    )  # fmt: skip
    latents = pipeline(**options, output_type="latent").frames
    video = pipeline(**options, output_type="np").frames[0]
    assert len(video) == cases.FRAMES
    print(run, "latents", latents.std().item(), "clipped", (video % 1 == 0).mean())
    return {
        f"{run}/latents": latents.numpy(),
        f"{run}/frames": video[cases.RECORDED_FRAMES],
    }


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
        folder = Path(name)
        build().save_pretrained(folder, max_shard_size="120KB")
        # Read back, so that what is recorded is what the files hold.
        pipeline = diffusers.WanPipeline.from_pretrained(str(folder))
        arrays = {}
        for run in cases.RUNS:
            arrays |= sample(pipeline, run)
            pipeline.scheduler.save_pretrained(folder / run)
        shutil.rmtree(folder / "scheduler")  # each run has its own
        recorded = {"texts": texts(folder), "weights": weights(folder)}
    print(*recorded["texts"], *recorded["weights"], sep="\n")
    data = json.dumps(recorded).encode()
    cases.FILES.write_bytes(gzip.compress(data, mtime=0))
    np.savez_compressed(cases.ARRAYS, **arrays)
    print(cases.FILES.stat().st_size, cases.ARRAYS.stat().st_size, "bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
