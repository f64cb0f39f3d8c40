"""The folder of a whole pipeline of diffusers: which parts it has, and their classes.

model_index.json names the class of the pipeline and of every part, which has a folder
of its own. The parts are read by sd_unet.py, dit.py, wan_transformer.py and the files
of schedulers here, by `latents`, `causal_latents` and `text`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.pretrained import config_json, wan_transformer, wan_vae
from vdm_jax.pretrained.dit import DIT, FORMER_DIT
from vdm_jax.pretrained.dit import LATTE as LATTE_TRANSFORMER

INDEX = "model_index.json"
CLASS = "StableDiffusionPipeline"
# All of them have the same parts; the U-Net's channels tell inpainting networks.
CLASSES = CLASS, "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
PARTS = {  # and their classes; that of the scheduler is decided by its own config
    "unet": ("UNet2DConditionModel",),
    "scheduler": (),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
DIT_PARTS = {
    "transformer": (DIT, FORMER_DIT),
    "scheduler": (),
    "vae": ("AutoencoderKL",),
}
LATTE_PARTS = {
    "transformer": (LATTE_TRANSFORMER,),
    "scheduler": (),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
}
WAN_PARTS = {
    "transformer": (wan_transformer.CLASS,),
    "scheduler": (),
    "vae": (wan_vae.CLASS,),
    "text_encoder": ("UMT5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
}
LATTE, WAN = "LattePipeline", "WanPipeline"
PIPELINES: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(CLASSES, PARTS),
    "DiTPipeline": DIT_PARTS,
    LATTE: LATTE_PARTS,
    WAN: WAN_PARTS,
}
ALL_PARTS = {part for parts in PIPELINES.values() for part in parts}
NOT_READ = "safety_checker", "feature_extractor", "image_encoder"


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is that of a whole pipeline of diffusers."""
    return (folder / INDEX).is_file()


def class_of(folder: Path) -> str:
    """Return the class of the pipeline in a folder, "" where there is none."""
    if not is_pipeline(folder):
        return ""
    return str(config_json.read(folder / INDEX).values.get("_class_name"))


def check(folder: Path) -> tuple[str, ...]:
    """Check that a folder has the parts of its pipeline; return those not read.

    Raises:
      UserError: it is another pipeline, it has another part, or a part is missing.
    """
    index = config_json.read(folder / INDEX)
    kind = index.values.get("_class_name")
    if kind not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UserError(f"{index.path} is of {kind!r:.60}: one of {known}")
    parts = {
        name: value[1]
        for name, value in index.values.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    for name, classes in PIPELINES[kind].items():
        if name not in parts:
            raise UserError(f"{index.path} has no {name}")
        if classes and parts[name] not in classes:
            raise UserError(
                f"{index.path} has {name}={parts[name]!r:.60}: {' or '.join(classes)}"
            )
        if not (folder / name).is_dir():
            raise UserError(f"{folder} lacks the folder {name}, which {INDEX} names")
    known = (*PIPELINES[kind], *NOT_READ)
    if unknown := [name for name in parts if name not in known]:
        raise UserError(f"{index.path} has {unknown[0]}, a part that is not known")
    return tuple(name for name in NOT_READ if name in parts)


def replaced(
    unet: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the options of two parts that diffusers' pipeline replaces, by the part.

    They are of folders that are older than the options. Arguments: their configs.
    """
    found: dict[str, dict[str, Any]] = {"unet": {}, "scheduler": {}}
    size, version = unet.get("sample_size"), str(unet.get("_diffusers_version"))
    if type(size) is int and size < 64 and re.match(r"0\.[0-8]\b", version):
        found["unet"]["sample_size"] = 64
    if scheduler.get("steps_offset", 0) != 1:
        found["scheduler"]["steps_offset"] = 1
    return found


def index_fields(parts: dict[str, Any]) -> dict[str, Any]:
    """Return model_index.json of a pipeline that has these parts.

    parts: name -> (library, class), for those that a folder is written of.
    """
    absent = {name: [None, None] for name in (*PARTS, "safety_checker")}
    return {
        "_class_name": CLASS,
        **absent,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        **{name: list(value) for name, value in parts.items()},
    }
