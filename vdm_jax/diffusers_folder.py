"""A folder of diffusers as a workdir, read in place: Stable Diffusion 1 and 2.

    python sample.py --workdir=stable-diffusion-v1-5 --prompt="a cat" --out=OUT

What its files say becomes a config; nothing is written. It is a model of one frame.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm_jax import latents
from vdm_jax.errors import UserError, printable
from vdm_jax.memory import check_memory
from vdm_jax.model import Params
from vdm_jax.pretrained import (
    config_json,
    safetensors_io,
    sd_pipeline,
    sd_scheduler,
    sd_unet,
)
from vdm_jax.pretrained.safetensors_io import DIFFUSERS
from vdm_jax.settings import OPTIONAL, TRAINING, compose
from vdm_jax.text.encoder import weights_sha256

# How it is sampled where no flag says else; diffusers' defaults but for the numbers of
# pictures. x has no known range.
SAMPLE = {"steps": 50, "guidance_scale": 7.5, "clip_x": 0.0, "num": 4, "batch_size": 4}
TEXT_DROPOUT = 0.1  # of the original's training (arXiv:2112.10752, "v1-5" model card)
ABSENT = {*OPTIONAL} - {"discrete"}  # sections that its config has not


def read_config(folder: Path) -> Any:
    """Return the complete config that the files of a folder make, as a ConfigDict.

    Raises:
      UserError: a part is missing or damaged, or of another network.
    """
    sd_pipeline.check(folder)
    unet, noise, _ = _unet_and_noise(folder)
    spec = latents.read_config(folder / "vae").network.spec
    _, height, width, channels = unet["z_shape"]
    if channels != spec.latent_channels:
        raise UserError(
            f"{folder}: its unet is for latents of {channels} channels, its vae makes "
            f"{spec.latent_channels}: they do not belong together"
        )
    config: Any = compose({k: v for k, v in TRAINING.items() if k not in ABSENT})
    config.video.update(
        frames=1,
        height=height * spec.factor,
        width=width * spec.factor,
        channels=spec.in_channels,
    )
    config.data.label_vocabulary = ()
    config.codec.update(kind="autoencoder", path=str(folder / "vae"))
    del config.network
    config.network = ConfigDict(unet["network"] | {"dtype": default_dtype()})
    config.conditioning.update(
        **unet["conditioning"],
        text_encoder=str(folder / "text_encoder"),
        text_dropout=TEXT_DROPOUT,
        text_pooling=False,
    )
    prediction_type = noise["prediction_type"]
    weighting = "snr" if prediction_type == "eps" else "snr_plus_one"
    config.diffusion.update(
        schedule="discrete", prediction_type=prediction_type, loss_weighting=weighting
    )
    config.discrete.update(noise["schedule"])
    config.sample.update(SAMPLE | noise["sample"])
    return config


def _unet_and_noise(folder: Path) -> tuple[dict, dict, list[str]]:
    """Return the fields of unet/ and scheduler/, and lines on what is not as there."""
    unet = sd_unet.read_config(folder / "unet")
    scheduler = config_json.read(folder / "scheduler" / "scheduler_config.json")
    noise = sd_scheduler.schedule_fields(scheduler)
    lines = [
        f"{scheduler.path}: {name}={value!r:.60} not read"
        for name, value in sd_scheduler.unread(scheduler.values).items()
    ]
    kind = scheduler.values["_class_name"]
    if method := sd_scheduler.OTHER_METHODS.get(kind):
        sampler = noise["sample"]["sampler"]
        lines.append(
            f"{scheduler.path}: {kind} is sampled by {sampler} on its timesteps, not "
            f"by {method}"
        )
    new = sd_pipeline.replaced(unet, scheduler.values)
    for part, values in (("unet", unet), ("scheduler", noise["schedule"])):
        for name, value in new[part].items():
            old = f"{folder / part} has {name}={values[name]}"
            lines.append(f"{old}: {value} is used, as by {sd_pipeline.CLASS}")
        values |= new[part]
    try:
        return sd_unet.unet_fields(unet), noise, lines
    except UserError as error:
        raise UserError(f"{folder / 'unet' / 'config.json'}: {error}") from error


def default_dtype() -> str:
    """Return the dtype of activations: bfloat16 where the hardware is made for it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def unet_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the U-Net's parameters, of which there may be several."""
    return safetensors_io.tensor_files(folder / "unet", DIFFUSERS)


def text_encoder_sha256(folder: Path) -> str:
    """Return the hash of the text encoder, by which embeddings of it are known."""
    return weights_sha256(safetensors_io.tensor_files(folder / "text_encoder"))


def announce(folder: Path) -> None:
    """Print lines on stderr: what is not read, and the memory for the whole model.

    Only the heads of its files are read.

    Raises:
      UserError: files are missing or damaged, or too large for the memory of this
        machine.
    """
    if skipped := sd_pipeline.check(folder):
        _say(f"{folder}: {', '.join(skipped)} not read")
    for line in _unet_and_noise(folder)[2]:
        _say(line)
    text_encoder = safetensors_io.tensor_files(folder / "text_encoder")
    vae = safetensors_io.tensor_files(folder / "vae", DIFFUSERS)
    count = safetensors_io.count((*text_encoder, *unet_files(folder), *vae))
    need = 4 * count
    _say(
        f"{folder}: {count / 1e6:,.1f} million parameters, {need / 2**30:,.2f} GiB, "
        "and more while it samples"
    )
    check_memory(need, f"{folder} in float32")


def read_params(folder: Path, config: Any, shapes: Params) -> Params:
    """Return the U-Net's parameters, shaped as the tree `shapes`, in float32.

    Raises:
      UserError: as `announce`, or files are of another network.
    """
    announce(folder)
    paths = unet_files(folder)
    names = sd_unet.unet_names(config.network.to_dict())
    return safetensors_io.read_by_names(paths, shapes, names, jnp.float32)


@functools.cache  # a folder is announced before its prompts are encoded, and again
def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
