"""LoRA files applied to a trained model and to the text encoder of its prompts.

    trained = adapters.apply(trained, [("style.safetensors", 0.8)])

`pretrained/lora_files.py` reads files, `networks/lora.py` adds to kernels.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import text
from vdm_jax.errors import UserError
from vdm_jax.files import make_folder, user_path
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks import lora
from vdm_jax.pretrained import lora_files, sd_unet, wan_transformer
from vdm_jax.runs import TrainedModel
from vdm_jax.text import TextEncoder
from vdm_jax.trees import named_leaves

SCALE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Loras:
    """What files add to the kernels of a U-Net and of a text encoder.

    A LoRA that is applied changes no array of what it is applied to.
    """

    unet: tuple[lora_files.Deltas, ...] = ()
    text_encoder: tuple[lora_files.Deltas, ...] = ()

    def apply(self, trained: TrainedModel, merged: bool = True) -> TrainedModel:
        """Return a trained model with what the files add to its U-Net.

        merged: add to the kernels; else keep the small matrices next to those of the
          network, which computes the same. The checksum is that of the result.
        """
        if not self.unet:
            return trained
        params = functools.reduce(lora.attach, self.unet, trained.params)
        model = trained.model
        if merged:
            params = lora.merge(params)
        elif not isinstance(model.network, lora.WithLora):
            network = lora.WithLora(model.network)
            model = dataclasses.replace(model, network=network)
        encoder = lora.merge(params["conditioning_encoder"])
        checksum = zlib.crc32(trained.checksum.encode())
        for array in jax.tree.leaves(self.unet):
            checksum = zlib.crc32(np.asarray(array).tobytes(), checksum)
        return trained._replace(
            model=model,
            params={**params, "conditioning_encoder": encoder},
            checksum=f"{checksum:08x}",
        )

    def apply_to_text_encoder(self, encoder: TextEncoder) -> TextEncoder:
        """Return a text encoder with what the files add to it."""
        if not self.text_encoder:
            return encoder
        params = functools.reduce(lora.attach, self.text_encoder, encoder.params)
        return dataclasses.replace(encoder, params=lora.merge(params))


def apply(
    trained: TrainedModel,
    files: Sequence[tuple[str | Path, float]],
    merged: bool = True,
) -> TrainedModel:
    """Return a trained model with LoRAs, files and their scales; `read`, then apply."""
    return read(files, trained.model, trained.config).apply(trained, merged)


def merged(trained: TrainedModel) -> TrainedModel:
    """Return a model without LoRA leaves, which computes the same; others as they are.

    Its network is the one that the LoRA tuned.
    """
    network = trained.model.network
    if not isinstance(network, lora.WithLora):
        return trained
    model = dataclasses.replace(trained.model, network=network.network)
    return trained._replace(model=model, params=lora.merge(trained.params))


def parse(value: str) -> tuple[str, float]:
    """Return file and scale of FILE[:SCALE]; the scale is 1 by default.

    Raises:
      UserError: no file, or a scale that is no finite decimal number.
    """
    file, colon, number = value.rpartition(":")
    if not colon or "/" in number or number.endswith(".safetensors"):
        file, number = value, "1"  # any colon is in the name of the file
    if not file or not SCALE.fullmatch(number) or not math.isfinite(float(number)):
        raise UserError(
            f"--lora={value}: FILE or FILE:SCALE with a number, as "
            "style.safetensors:0.8"
        )
    return str(user_path(file, "--lora")), float(number)


def read(
    files: Sequence[tuple[str | Path, float]],
    model: DiffusionModel,
    config: Any,
    text_encoder: str = "",
) -> Loras:
    """Read LoRAs for a model: files and their scales.

    config: of the model. text_encoder: of the prompts, if it is not the config's.

    Raises:
      UserError: the network is neither Stable Diffusion's nor Wan's, or as
        `lora_files.read`.
    """
    if not files:
        return Loras()
    encoder = text_encoder or config.conditioning.text_encoder
    parts = {
        "unet": unet_modules(model, config),
        "text_encoder": text.clip_modules(encoder) if encoder else {},
    }
    absent = wan_transformer.IMAGE_MODULES if config.network.kind == "wan" else None
    deltas = [lora_files.read(Path(f), parts, scale, absent) for f, scale in files]
    return Loras(*(tuple(filter(None, (d[part] for d in deltas))) for part in parts))


def unet_modules(model: DiffusionModel, config: Any) -> lora_files.Modules:
    """Return the modules of a model that a LoRA can change, by diffusers' names.

    Those of Wan have their names in the original program, too.
    """
    kind = config.network.kind
    if kind not in ("sd", "wan"):
        raise UserError(f"a LoRA is for a network of kind 'sd' or 'wan', not {kind!r}")
    leaves = named_leaves(jax.eval_shape(model.init_params, jax.random.key(0)))
    network = config.network.to_dict()
    if kind == "sd":
        return lora_files.modules_of(sd_unet.unet_names(network), leaves)
    modules = lora_files.modules_of(wan_transformer.names(network), leaves)
    former = {wan_transformer.original_name(name): own for name, own in modules.items()}
    return modules | former


def write(path: Path, params: Params, model: DiffusionModel, config: Any) -> None:
    """Write the LoRA leaves of a model's parameters as diffusers does.

    Raises:
      UserError: there are none, or diffusers has no module for a path.
    """
    deltas = lora.deltas_of(params)
    if not deltas:
        raise UserError(f"{path}: the model has no LoRA: set config.network.lora_rank")
    modules = unet_modules(model, config)
    make_folder(path.parent)
    lora_files.write(path, deltas, modules)
