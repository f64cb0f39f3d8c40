"""A folder of diffusers as a workdir, read in place.

    python sample.py --workdir=stable-diffusion-v1-5 --prompt="a cat" --out=OUT

What its files say becomes a config; nothing is written. Stable Diffusion 1 and 2 and
DiT are models of one frame, Latte and Wan 2.1 are of videos.
"""

import functools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm_jax import causal_latents, latents
from vdm_jax.errors import UserError, printable
from vdm_jax.memory import check_memory
from vdm_jax.model import Params
from vdm_jax.pretrained import (
    config_json,
    dit,
    flow_scheduler,
    safetensors_io,
    sd_pipeline,
    sd_scheduler,
    sd_unet,
    wan_transformer,
)
from vdm_jax.pretrained.safetensors_io import DIFFUSERS
from vdm_jax.settings import OPTIONAL, TRAINING, compose
from vdm_jax.text.encoder import weights_sha256

# How it is sampled where no flag says else; diffusers' defaults but for the numbers of
# pictures. x has no known range.
SAMPLE = {"steps": 50, "guidance_scale": 7.5, "clip_x": 0.0, "num": 4, "batch_size": 4}
OWN_SAMPLE = {
    "DiTPipeline": {"guidance_scale": 4.0},
    sd_pipeline.LATTE: {"num": 1, "batch_size": 1},
    sd_pipeline.WAN: {"guidance_scale": 5.0, "num": 1, "batch_size": 1},
}
WAN_VIDEO = {"frames": 81, "height": 480, "width": 832, "fps": 16.0}
WAN_LOGSNR = 30.0  # highest and, negated, lowest: flow's time is 1 to 3e-7 at the noise
# Class of a network, the first of its part -> its fields of a config.json, its table of
# names.
READERS = {
    sd_pipeline.PARTS["unet"][0]: (sd_unet.unet_fields, sd_unet.unet_names),
    dit.DIT: (dit.fields, dit.names),
    dit.LATTE: (dit.fields, dit.names),
    wan_transformer.CLASS: (wan_transformer.fields, wan_transformer.names),
}
DROPOUT = 0.1  # of text or label in training: "v1-5" model card, arXiv:2212.09748


def read_config(folder: Path) -> Any:
    """Return the complete config that the files of a folder make, as a ConfigDict.

    Raises:
      UserError: a part is missing or damaged, or of another network.
    """
    sd_pipeline.check(folder)
    if _pipeline(folder).values["_class_name"] == sd_pipeline.WAN:
        return _wan_config(folder)
    network, noise, _ = _network_and_noise(folder)
    spec = latents.read_config(folder / "vae").network.spec
    frames, height, width, channels = network["z_shape"]
    _check_channels(folder, channels, spec.latent_channels)
    config = _compose("discrete")
    config.video.update(
        frames=frames,
        height=height * spec.factor,
        width=width * spec.factor,
        channels=spec.in_channels,
    )
    config.data.label_vocabulary = _label_vocabulary(folder, network)
    config.codec.update(kind="autoencoder", path=str(folder / "vae"))
    del config.network
    config.network = ConfigDict(network["network"] | {"dtype": default_dtype()})
    config.conditioning.update(**network["conditioning"], text_pooling=False)
    if config.conditioning.text_dim:
        text_encoder = str(folder / "text_encoder")
        config.conditioning.update(text_encoder=text_encoder, text_dropout=DROPOUT)
    else:
        config.conditioning.label_dropout = DROPOUT
    prediction_type = noise["prediction_type"]
    weighting = "snr" if prediction_type == "eps" else "snr_plus_one"
    config.diffusion.update(
        schedule="discrete", prediction_type=prediction_type, loss_weighting=weighting
    )
    config.discrete.update(noise["schedule"])
    own = OWN_SAMPLE.get(_pipeline(folder).values["_class_name"], {})
    config.sample.update(SAMPLE | own | noise["sample"])
    return config


def _compose(section: str) -> Any:
    """Return all sections of a config, and of the optional ones that one."""
    absent = {*OPTIONAL} - {section}
    return compose({k: v for k, v in TRAINING.items() if k not in absent})


def _check_channels(folder: Path, channels: int, latent_channels: int) -> None:
    if channels != latent_channels:
        raise UserError(
            f"{folder}: its {network_part(folder)[0]} is for latents of {channels} "
            f"channels, its vae makes {latent_channels}: they do not belong together"
        )


def _wan_config(folder: Path) -> Any:
    """Return the config of a folder of Wan 2.1; errors are those of `read_config`."""
    network, noise, _ = _network_and_noise(folder)
    spec = causal_latents.read_config(folder / "vae").network.spec
    _check_channels(folder, network["channels"], spec.latent_channels)
    config = _compose("flow")
    config.video.update(WAN_VIDEO | {"channels": spec.in_channels})
    config.data.label_vocabulary = ()
    config.codec.update(kind="causal_autoencoder", path=str(folder / "vae"))
    del config.network
    # Else JAX keeps 8.4 GiB of each block for the backward pass of such a video.
    own = {"dtype": default_dtype(), "remat": "full"}
    config.network = ConfigDict(network["network"] | own)
    config.conditioning.update(
        **network["conditioning"],
        text_encoder=str(folder / "text_encoder"),
        text_dropout=DROPOUT,
        text_pooling=False,
    )
    config.diffusion.update(
        schedule="flow",
        prediction_type="flow",
        loss_weighting="flow",
        logsnr_min=-WAN_LOGSNR,
        logsnr_max=WAN_LOGSNR,
        logsnr_shift=-2 * math.log(noise["shift"]),
    )
    config.flow.update(noise["flow"] | {"timestep_dim": network["timestep_dim"]})
    config.sample.update(SAMPLE | OWN_SAMPLE[sd_pipeline.WAN] | noise["sample"])
    return config


def _pipeline(folder: Path) -> config_json.ConfigFile:
    """Return model_index.json."""
    return config_json.read(folder / sd_pipeline.INDEX)


def network_part(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return the name of the part that is the network, and its classes.

    The first of them is a row of READERS. The folder has been checked.
    """
    parts = sd_pipeline.PIPELINES[_pipeline(folder).values["_class_name"]]
    networks = (p for p in parts.items() if p[1] and p[1][0] in READERS)
    return next(networks)


def _label_vocabulary(folder: Path, network: dict) -> tuple[tuple[str, ...], ...]:
    """Return the names of the classes, as one attribute; () without labels."""
    index, count = _pipeline(folder), network.get("num_classes", 0)
    if not count:
        return ()
    names = index.values.get("id2label")
    if names is None:
        return (tuple(map(str, range(count))),)
    try:
        return (dit.labels(names, count),)
    except UserError as error:
        raise UserError(f"{index.path}: {error}") from error


def _network_and_noise(folder: Path) -> tuple[dict, dict, list[str]]:
    """Return the fields of network and scheduler, and lines on what is not as there."""
    part, classes = network_part(folder)
    config = sd_unet.read_config(folder / part, *classes)
    scheduler = config_json.read(folder / "scheduler" / "scheduler_config.json")
    if classes[0] == wan_transformer.CLASS:
        noise = flow_scheduler.fields(scheduler)
        return _network_fields(folder, part, classes[0], config), noise, []
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
    if part != "unet":
        noise["sample"] |= {"clip_x": sd_scheduler.clip_x(scheduler)}
    else:
        new = sd_pipeline.replaced(config, scheduler.values)
        for name, values in (("unet", config), ("scheduler", noise["schedule"])):
            for option, value in new[name].items():
                old = f"{folder / name} has {option}={values[option]}"
                lines.append(f"{old}: {value} is used, as by {sd_pipeline.CLASS}")
            values |= new[name]
    return _network_fields(folder, part, classes[0], config), noise, lines


def _network_fields(folder: Path, part: str, cls: str, config: dict) -> dict[str, Any]:
    try:
        return READERS[cls][0](config)
    except UserError as error:
        raise UserError(f"{folder / part / 'config.json'}: {error}") from error


def default_dtype() -> str:
    """Return the dtype of activations: bfloat16 where the hardware is made for it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def network_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the network's parameters, of which there may be several."""
    part, _ = network_part(folder)
    return safetensors_io.tensor_files(folder / part, DIFFUSERS)


def text_encoder_sha256(folder: Path) -> str:
    """Return the hash of the text encoder, by which embeddings of it are known.

    "" for a model of labels, which has none.
    """
    files = _text_encoder_files(folder)
    return weights_sha256(files) if files else ""


def _text_encoder_files(folder: Path) -> tuple[Path, ...]:
    parts = sd_pipeline.PIPELINES[_pipeline(folder).values["_class_name"]]
    if "text_encoder" not in parts:
        return ()
    return safetensors_io.tensor_files(folder / "text_encoder")


def announce(folder: Path) -> None:
    """Print lines on stderr: what is not read, and the memory for the whole model.

    Only the heads of its files are read.

    Raises:
      UserError: files are missing or damaged, or too large for the memory of this
        machine.
    """
    if skipped := sd_pipeline.check(folder):
        _say(f"{folder}: {', '.join(skipped)} not read")
    for line in _network_and_noise(folder)[2]:
        _say(line)
    vae = safetensors_io.tensor_files(folder / "vae", DIFFUSERS)
    text = _text_encoder_files(folder)
    text_count = safetensors_io.count(text)
    count = text_count + safetensors_io.count((*network_files(folder), *vae))
    is_half = bool(text) and safetensors_io.stored_dtypes(text) == {"BF16"}
    # The texts are encoded, and their encoder is gone, before the others are read.
    need = max((2 if is_half else 4) * text_count, 4 * (count - text_count))
    _say(
        f"{folder}: {count / 1e6:,.1f} million parameters, {need / 2**30:,.2f} GiB, "
        "and more while it samples"
    )
    check_memory(need, str(folder))


def read_params(folder: Path, config: Any, shapes: Params) -> Params:
    """Return the network's parameters, shaped as the tree `shapes`, in float32.

    Raises:
      UserError: as `announce`, or files are of another network.
    """
    announce(folder)
    _, classes = network_part(folder)
    names = READERS[classes[0]][1](config.network.to_dict())
    paths = network_files(folder)
    return safetensors_io.read_by_names(paths, shapes, names, jnp.float32)


@functools.cache  # a folder is announced before its prompts are encoded, and again
def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
