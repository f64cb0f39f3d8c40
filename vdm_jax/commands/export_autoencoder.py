"""Export of a run of the task "autoencoder", as a folder that diffusers reads too.

FOLDER/config.json, diffusion_pytorch_model.safetensors    an AutoencoderKL
FOLDER/training_config.json, metrics.jsonl                 how it was trained
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import data
from vdm_jax.data import pipeline
from vdm_jax.files import write_bytes, write_json
from vdm_jax.latents import Autoencoder
from vdm_jax.pretrained import name_maps, safetensors_io
from vdm_jax.training.autoencoder import load_run
from vdm_jax.trees import named_leaves

NUM_CLIPS = 1024  # of the training part, from which the scale is measured
TRAINING_CONFIG = "training_config.json"
WEIGHTS = f"{safetensors_io.DIFFUSERS}.safetensors"
FILES = WEIGHTS, TRAINING_CONFIG


def export_autoencoder(
    workdir: Path, config: Any, out: Path, dtype: str = "float16"
) -> None:
    """Write the averaged autoencoder of a run, with the scale of its latents.

    Raises:
      UserError: the run holds no checkpoint, its data are missing, or a file cannot be
        written.
    """
    network, trained, step = load_run(workdir)
    params = trained["network"]
    source = data.open_source(config).split(False)
    clips = pipeline.fixed_clips(config, source, min(NUM_CLIPS, len(source)))
    scale = measured_scale(Autoencoder(network, scale=1.0), params, clips)
    file = write(out, Autoencoder(network, scale), params, dtype)
    text = config.to_json_best_effort(indent=1) + "\n"
    write_bytes(out / TRAINING_CONFIG, text.encode(), overwrite=True)
    size = file.stat().st_size / 1e6
    print(f"step {step}, {size:.2f} MB in {file}, scaling factor {scale:.4f}")


def measured_scale(
    autoencoder: Autoencoder, params: Any, clips: Iterable[pipeline.Batch]
) -> float:
    """Return 1 / standard deviation of the mean latents of clips."""
    frames = np.concatenate([clip["video"][0] for clip in clips]) / 127.5 - 1
    stream = autoencoder.stream_encode(params, frames.astype(np.float32))
    return float(1 / np.concatenate(list(stream)).astype(np.float64).std())


def write(
    folder: Path, autoencoder: Autoencoder, params: Any, dtype: str = "float16"
) -> Path:
    """Write config.json and the weights; return the weights' path.

    Files of these names are overwritten.

    Raises:
      UserError: a parameter is not finite in that dtype.
    """
    names = name_maps.their_names(
        named_leaves(params), name_maps.AUTOENCODER_KL_WRITTEN
    )
    arrays = safetensors_io.to_names(params, names)
    safetensors_io.write(folder / WEIGHTS, arrays, dtype)
    write_json(folder / "config.json", config_fields(autoencoder))
    return folder / WEIGHTS


def config_fields(autoencoder: Autoencoder) -> dict[str, Any]:
    """Return the config.json that `latents.read_config` reads as this autoencoder."""
    spec = autoencoder.network.spec
    levels = len(spec.channels)
    return {
        "_class_name": "AutoencoderKL", "act_fn": "silu",
        "in_channels": spec.in_channels, "out_channels": spec.out_channels,
        "latent_channels": spec.latent_channels,
        "block_out_channels": list(spec.channels), "layers_per_block": spec.blocks,
        "norm_num_groups": spec.num_groups,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": spec.mid_attention,
        "use_quant_conv": spec.quant_conv, "use_post_quant_conv": spec.post_quant_conv,
        "scaling_factor": autoencoder.scale, "shift_factor": autoencoder.shift or None,
        "force_upcast": True,
    }  # fmt: skip
