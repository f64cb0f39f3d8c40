"""Write a model as a folder that diffusers reads: StableDiffusionPipeline.

    python -m vdm_jax.export --workdir=RUN --format=diffusers --out=DIR

Weights are in half precision. A part that the model does not have in diffusers' terms,
such as a text encoder that is no CLIP, is null there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import text
from vdm_jax.conditions.text import Text
from vdm_jax.errors import UserError
from vdm_jax.files import make_folder, write_bytes, write_json
from vdm_jax.model import Params
from vdm_jax.networks.clip import ClipText
from vdm_jax.pretrained import (
    name_maps,
    safetensors_io,
    sd_pipeline,
    sd_scheduler,
    sd_unet,
)
from vdm_jax.runs import TrainedModel
from vdm_jax.trees import named_leaves

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
LIBRARY = {"text_encoder": "transformers", "tokenizer": "transformers"}


def write(folder: Path, trained: TrainedModel, source: Path) -> tuple[str, ...]:
    """Write all parts of a model; return the names of those that are null.

    source: workdir of the model. Where it is a folder of diffusers its own configs are
      copied.

    Raises:
      UserError: the model is none of Stable Diffusion's kind, or a weight is not finite
        in half precision.
    """
    config, unet_names = trained.config, _unet_names(trained)
    model = trained.model
    network: Any = model.network
    schedule: Any = model.schedule  # a discrete one
    own = {name: part for name, part in trained.params.items() if name != "codec"}
    made = {
        "unet/config.json": sd_unet.config_fields(
            network.spec, model.text_dim, model.shape
        ),
        "scheduler/scheduler_config.json": sd_scheduler.config_fields(
            schedule, config.diffusion.prediction_type, config.sample
        ),
    }
    if sd_pipeline.is_pipeline(source):
        made = {path: json.loads((source / path).read_text()) for path in made}
    make_folder(folder)
    for path, fields in made.items():
        make_folder(folder / Path(path).parent)
        write_json(folder / path, fields, indent=2)
    _write_weights(folder / "unet", safetensors_io.DIFFUSERS, own, unet_names)
    _write_autoencoder(folder / "vae", trained)
    parts = {
        "unet": sd_unet.CLASS,
        "vae": "AutoencoderKL",
        "scheduler": made["scheduler/scheduler_config.json"]["_class_name"],
    }
    encoder = config.conditioning.text_encoder
    if encoder and isinstance((loaded := text.load_encoder(encoder)).network, ClipText):
        _write_text_encoder(folder, Path(encoder), loaded)
        parts |= {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    index = sd_pipeline.index_fields(
        {name: (LIBRARY.get(name, "diffusers"), kind) for name, kind in parts.items()}
    )
    write_json(folder / sd_pipeline.INDEX, index, indent=2)
    return tuple(name for name in sd_pipeline.PARTS if name not in parts)


def _unet_names(trained: TrainedModel) -> dict[str, str]:
    """Return diffusers' names of the network's parameters.

    Raises:
      UserError: diffusers has no such network.
    """
    model, config = trained.model, trained.config
    schedule: Any = model.schedule
    others = [name for name, _ in model.conditions if name != "text"]
    condition = model.condition("text")
    reason = ""
    if config.network.kind != "sd" or model.video_shape[0] != 1:
        reason = "it is no image model with network.kind='sd'"
    elif others or not isinstance(condition, Text) or condition.pooling:
        reason = "its conditions are not text alone, without pooling"
    elif config.codec.kind != "autoencoder":
        reason = "it does not diffuse the latents of an autoencoder"
    elif config.diffusion.schedule != "discrete" or config.diffusion.precondition:
        reason = "it has no discrete schedule, or it is preconditioned"
    elif config.network.get("patch_size", 1) > 1:
        reason = "its network.patch_size is above 1"
    elif schedule.timestep_spacing == "leading" and schedule.steps_offset != 1:
        reason = f"{sd_pipeline.CLASS} has discrete.steps_offset=1"
    if not reason:
        own = {name: p for name, p in trained.params.items() if name != "codec"}
        names = sd_unet.unet_names(config.network.to_dict())
        paths = {target.removeprefix(name_maps.KERNEL) for target in names.values()}
        if other := paths ^ named_leaves(own).keys():
            reason = f"{min(other)} is in one of both networks only"
    if reason:
        raise UserError(f"--format=diffusers: {reason}")
    return names


def _write_autoencoder(folder: Path, trained: TrainedModel) -> None:
    """Write the codec's autoencoder, with the config of its folder."""
    params = trained.params["codec"]
    names = name_maps.their_names(
        named_leaves(params), name_maps.AUTOENCODER_KL_WRITTEN
    )
    _write_weights(folder, safetensors_io.DIFFUSERS, params, names)
    config = Path(trained.config.codec.path) / "config.json"
    write_bytes(folder / config.name, config.read_bytes(), overwrite=True)


def _write_text_encoder(folder: Path, source: Path, encoder: text.TextEncoder) -> None:
    """Write text_encoder/ and tokenizer/ of a CLIP. source: folder of the encoder."""
    params = encoder.params
    names = name_maps.their_names(named_leaves(params), name_maps.CLIP_TEXT_WRITTEN)
    _write_weights(folder / "text_encoder", safetensors_io.MODEL, params, names)
    copied = {source / "config.json": "text_encoder"}
    tokenizer = text.tokenizer_folder(source)
    copied |= {tokenizer / name: "tokenizer" for name in TOKENIZER_FILES}
    for path, part in copied.items():
        if path.is_file():
            make_folder(folder / part)
            write_bytes(folder / part / path.name, path.read_bytes(), overwrite=True)


def _write_weights(
    folder: Path, stem: str, params: Params, names: Mapping[str, str]
) -> None:
    """Write parameters by their names in half precision."""
    arrays = safetensors_io.to_names(jax.device_get(params), names)
    for name, array in arrays.items():
        if not np.isfinite(array).all() or abs(array).max() > np.finfo("f2").max:
            raise UserError(f"{name} is not finite as float16: not written")
    make_folder(folder)
    safetensors_io.write(folder / f"{stem}.safetensors", arrays, np.float16)
