"""Write a model as a folder that diffusers reads: StableDiffusionPipeline.

    python -m vdm_jax.export --workdir=RUN --format=diffusers --out=DIR

Weights are in half precision, unless --dtype says else. A part that the model does not
have in diffusers' terms, such as a text encoder that is no CLIP, is null there.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from vdm_jax import text
from vdm_jax.conditions.text import Text
from vdm_jax.errors import UserError
from vdm_jax.files import explain_write_errors, make_folder, write_bytes
from vdm_jax.model import Params
from vdm_jax.networks.clip import ClipText
from vdm_jax.pretrained import (
    config_json,
    name_maps,
    safetensors_io,
    sd_pipeline,
    sd_scheduler,
    sd_unet,
)
from vdm_jax.pretrained.config_json import ConfigFile
from vdm_jax.runs import TrainedModel
from vdm_jax.trees import named_leaves

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
LIBRARY = {"text_encoder": "transformers", "tokenizer": "transformers"}
UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
# Endings of the files of weights that diffusers or transformers would read.
WEIGHTS = (".safetensors", ".bin", ".msgpack", ".h5")

Files = dict[str, bytes]  # by their path in the folder


def write(
    folder: Path, trained: TrainedModel, source: Path, dtype: str = "float16"
) -> tuple[str, ...]:
    """Write all parts of a model; return the names of those that are null.

    Args:
      source: workdir of the model. Where it is a folder of diffusers its own configs
        are copied.
      dtype: of the weights.

    Raises:
      UserError: the model is none of Stable Diffusion's kind, or a weight is not finite
        in that dtype. Nothing is written then.
    """
    unet_names, configs = _unet_names(trained), _configs(trained, source)
    own = {name: part for name, part in trained.params.items() if name != "codec"}
    made = {path: _to_json(fields) for path, fields in configs.items()}
    made |= _weights("unet", safetensors_io.DIFFUSERS, own, unet_names, dtype)
    made |= _autoencoder(trained, dtype)
    parts = {
        "unet": sd_unet.CLASS,
        "vae": "AutoencoderKL",
        "scheduler": configs[SCHEDULER]["_class_name"],
    }
    encoder = trained.config.conditioning.text_encoder
    if encoder and isinstance((loaded := text.load_encoder(encoder)).network, ClipText):
        made |= _text_encoder(Path(encoder), loaded, dtype)
        parts |= {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    index = sd_pipeline.index_fields(
        {name: (LIBRARY.get(name, "diffusers"), kind) for name, kind in parts.items()}
    )
    _replace(folder, made | {sd_pipeline.INDEX: _to_json(index)})
    return tuple(name for name in sd_pipeline.PARTS if name not in parts)


def _configs(trained: TrainedModel, source: Path) -> dict[str, dict[str, Any]]:
    """Return the configs of U-Net and scheduler by their paths."""
    if sd_pipeline.is_pipeline(source):
        return {p: config_json.read(source / p).values for p in (UNET, SCHEDULER)}
    config, model = trained.config, trained.model
    network: Any = model.network
    schedule: Any = model.schedule  # a discrete one
    unet = sd_unet.config_fields(network.spec, model.text_dim, model.shape)
    scheduler = sd_scheduler.config_fields(
        schedule, config.diffusion.prediction_type, config.sample
    )
    base = Path(config.get("init_from") or source)
    return {
        UNET: _of_base(base / UNET, unet, lambda c: sd_unet.unet_fields(c.values)),
        SCHEDULER: _of_base(base / SCHEDULER, scheduler, sd_scheduler.schedule_fields),
    }


def _of_base(
    path: Path, made: dict[str, Any], read: Callable[[ConfigFile], Any]
) -> dict[str, Any]:
    """Return the config of a model's base where it reads as the one that was made.

    It has more: options without effect here, and the scheduler's class.
    """
    with contextlib.suppress(UserError):  # the base may be gone, or no such folder
        theirs = config_json.read(path)
        if read(theirs) == read(ConfigFile(path, made)):
            return theirs.values
    return made


def _replace(folder: Path, made: Files) -> None:
    """Write the files of a folder; other weights and vocabularies of its parts go.

    All are on the disk before the first one is replaced. The last of them is the index,
    and the former index goes first: what an interrupt leaves is no model.
    """
    with (
        explain_write_errors(folder),
        tempfile.TemporaryDirectory(prefix=".", dir=make_folder(folder)) as staged,
    ):
        for path, content in made.items():
            write_bytes(Path(staged) / path, content)
        (folder / sd_pipeline.INDEX).unlink(missing_ok=True)
        for part in {Path(path).parts[0] for path in made} - {sd_pipeline.INDEX}:
            if (folder / part).is_symlink():  # to a folder of another model
                (folder / part).unlink()
            for path in _stale(make_folder(folder / part)):
                path.unlink()
        for path in made:
            os.replace(Path(staged) / path, folder / path)


def _stale(part: Path) -> Iterator[Path]:
    """Yield the files of a part that are read where they are: weights, vocabularies."""
    for path in [*part.iterdir()]:
        is_weights = path.name.endswith(WEIGHTS) or ".index." in path.name
        if is_weights or path.name in TOKENIZER_FILES:
            yield path


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


def _autoencoder(trained: TrainedModel, dtype: str) -> Files:
    """Return the files of the codec's autoencoder, with the config of its folder."""
    params = trained.params["codec"]
    names = name_maps.their_names(
        named_leaves(params), name_maps.AUTOENCODER_KL_WRITTEN
    )
    config = Path(trained.config.codec.path) / "config.json"
    weights = _weights("vae", safetensors_io.DIFFUSERS, params, names, dtype)
    return weights | {"vae/config.json": config.read_bytes()}


def _text_encoder(source: Path, encoder: text.TextEncoder, dtype: str) -> Files:
    """Return text_encoder/ and tokenizer/ of a CLIP. source: folder of the encoder."""
    params = encoder.params
    names = name_maps.their_names(named_leaves(params), name_maps.CLIP_TEXT_WRITTEN)
    made = _weights("text_encoder", safetensors_io.MODEL, params, names, dtype)
    config = config_json.read(source / "config.json").values
    stored = {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    made["text_encoder/config.json"] = _to_json(config | stored)
    files = (text.tokenizer_folder(source) / name for name in TOKENIZER_FILES)
    read = {f"tokenizer/{f.name}": f.read_bytes() for f in files if f.is_file()}
    return made | read


def _weights(
    part: str, stem: str, params: Params, names: Mapping[str, str], dtype: str
) -> Files:
    """Return the file of a part with parameters by their names."""
    arrays = safetensors_io.to_names(jax.device_get(params), names)
    try:
        content = safetensors_io.to_bytes(arrays, dtype)
    except UserError as error:
        raise UserError(f"{part}: {error}") from error
    return {f"{part}/{stem}.safetensors": content}


def _to_json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
