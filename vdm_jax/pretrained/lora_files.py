"""LoRA files for Stable Diffusion and Wan, as diffusers and kohya-ss write them.

A file has two matrices for each module that it changes, `down` and `up`, and perhaps an
`alpha`; alpha / rank times up down is added to the module's weight. One module has many
names, depending on the program and its version. The table of them is made of the
model's own names: to replace "_" by "." would break conv_in and to_out_0.

A module that it changes is part of a network, "unet" or "text_encoder". The first is
Wan's transformer, too.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import UserError, printable
from vdm_jax.pretrained import safetensors_io
from vdm_jax.pretrained.name_maps import KERNEL

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name, in a folder
METADATA = "lora_adapter_metadata"  # peft's config, written by diffusers

# Part -> prefixes of names with dots, and of names with underscores.
PREFIXES = {
    "unet": (
        ("unet.", "transformer.", "diffusion_model.", "", "base_model.model."),
        ("lora_unet_",),
    ),
    "text_encoder": (("text_encoder.",), ("lora_te_", "lora_te1_")),
}
CONFIGS = {"unet": ("unet", "transformer"), "text_encoder": ("text_encoder",)}  # peft's
# What follows a module's name. Those of `down` and `up` end with ".weight".
ROLES = {
    "down": ("lora.down", "lora_down", "lora_A", "lora_linear_layer.down"),
    "up": ("lora.up", "lora_up", "lora_B", "lora_linear_layer.up"),
    "alpha": ("alpha",),
}
# Projections of an attention, and their names in diffusers before version 0.17.
FORMER = {
    "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out",
    "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out",
}  # fmt: skip


class Module(NamedTuple):
    """A linear map or convolution of ours, and the shape of its kernel."""

    path: str
    shape: tuple[int, ...]


Arrays = dict[str, np.ndarray]
# By the module's name in diffusers or transformers; one module may have several.
Modules = Mapping[str, Module]
# By the path of a module: lora_down [*window, in, rank] and lora_up [rank, out], whose
# product is added to its kernel.
Deltas = dict[str, tuple[np.ndarray, np.ndarray]]


def modules_of(
    names: Mapping[str, str], leaves: Mapping[str, Any]
) -> dict[str, Module]:
    """Return the modules of a network that a LoRA can change.

    Args:
      names: their names -> our paths, as `sd_unet.unet_names` returns them.
      leaves: arrays or shapes of the parameters by their paths; others of the table do
        not count.
    """
    kernels = {
        name.removesuffix(".weight"): target.removeprefix(KERNEL)
        for name, target in names.items()
        if target.startswith(KERNEL)
    }
    return {
        module: Module(path.removesuffix("/kernel"), tuple(leaves[path].shape))
        for module, path in kernels.items()
        if path in leaves
    }


def spellings(part: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (name of a tensor, role) of a module, in every way that files have."""
    dotted, underscored = PREFIXES[part]
    modules = [prefix + module for prefix in dotted]
    modules += [prefix + module.replace(".", "_") for prefix in underscored]
    for role, suffixes in ROLES.items():
        end = "" if role == "alpha" else ".weight"
        for suffix in suffixes:
            for each in modules:
                yield f"{each}.{suffix}{end}", role
        attention, leaf = _split_attention(module)
        if leaf:
            processor = "processor." if part == "unet" else ""
            for prefix in dotted:
                name = f"{prefix}{attention}{processor}{FORMER[leaf]}_lora.{role}{end}"
                yield name, role


def _split_attention(module: str) -> tuple[str, str]:
    """Return the attention of a projection and the projection, ("", "") of others."""
    for leaf in FORMER:
        if module.endswith(f".{leaf}") and "attn" in module:
            return module.removesuffix(leaf), leaf
    return "", ""


def read(
    path: Path,
    parts: Mapping[str, Modules],
    scale: float = 1.0,
    absent: re.Pattern | None = None,
) -> dict[str, Deltas]:
    """Return what a file adds to the kernels of each part, times a scale.

    path: of a .safetensors file, or of a folder that has it under diffusers' name.
    absent: what is in the names of modules that only a related model has. They are not
      read, and a line on stderr names them.

    Raises:
      UserError: the file is missing, damaged, not finite or not so when it is scaled; a
        name is of no module, or one of a pair is missing; a LoRA for another base.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a LoRA, or the folder of {FILE}")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: a LoRA is a .safetensors file; pickled ones are not read: "
            "convert them with the safetensors package"
        )
    arrays, metadata = safetensors_io.read_arrays(path)
    if absent and (unread := [name for name in arrays if absent.search(name)]):
        _say_unread(path, unread)
        arrays = {name: a for name, a in arrays.items() if name not in unread}
    table = {
        name: (part, module, role)
        for part, modules in parts.items()
        for module in modules
        for name, role in spellings(part, module)
    }
    _check_names(path, list(arrays), table)
    alphas = _peft_alphas(path, metadata)
    deltas: dict[str, Deltas] = {part: {} for part in parts}
    for part, modules in parts.items():
        for module, roles in _by_module(path, arrays, table, part).items():
            where, own = f"{path}: {part}.{module}", modules[module]
            if own.path in deltas[part]:
                raise UserError(f"{where} is there under two names")
            down, up = _in_our_layout(where, roles, own.shape)
            alpha = roles.get("alpha", _alpha_of(module, alphas[part]))
            deltas[part][own.path] = down, _scaled(where, down, up, alpha, scale)
    return deltas


def _say_unread(path: Path, names: list[str]) -> None:
    some = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    line = f"{path}: {len(names)} tensors of modules that this model has not: {some}"
    print(printable(line), file=sys.stderr)


def _scaled(where: str, down: Any, up: Any, alpha: Any, scale: float) -> np.ndarray:
    """Return lora_up times scale alpha / rank; alpha is the rank if it is None."""
    rank = down.shape[-1]
    if np.size(alpha) != 1:
        raise UserError(f"{where}: its alpha is of shape {np.shape(alpha)}")
    scale *= 1.0 if alpha is None else np.asarray(alpha).item() / rank
    # The largest that an element of their product can be.
    bound = max(1.0, rank * float(abs(down).max())) * float(abs(up).max()) * abs(scale)
    if max(bound, abs(scale)) > float(np.finfo(np.float32).max):
        raise UserError(f"{where} times {scale:g} is beyond float32: a smaller scale")
    return up * np.float32(scale)


def _by_module(
    path: Path, arrays: Arrays, table: Mapping[str, tuple[str, str, str]], part: str
) -> dict[str, Arrays]:
    """Return the tensors of a part by module and role, all of them in pairs."""
    tensors: dict[str, Arrays] = {}
    for name, array in arrays.items():
        own, module, role = table[name]
        if own != part:
            continue
        if role in tensors.setdefault(module, {}):
            raise UserError(f"{path}: {name} is a second {role} of {module}")
        tensors[module][role] = array
    for module, roles in tensors.items():
        if missing := {"down", "up"} - roles.keys():
            raise UserError(f"{path} lacks the {missing.pop()} of {part}.{module}")
    return tensors


def _check_names(path: Path, names: list[str], table: Mapping[str, Any]) -> None:
    """Raise UserError for names that are of no module: half a LoRA is not applied."""
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        some = "none" if len(unknown) == len(names) else len(names) - len(unknown)
        raise UserError(
            f"{path}: {some} of its {len(names)} tensors belong to modules of this "
            f"model; unknown are {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}"
        )


def _in_our_layout(
    where: str, roles: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return lora_down and lora_up in float32, for a kernel of this shape.

    A product and a convolution of one pixel are stored as either, in both tensors.
    """
    down, up = (np.asarray(roles[role], np.float32) for role in ("down", "up"))
    if min(down.ndim, up.ndim) < 2 or not 0 < down.shape[0] == up.shape[1]:
        raise UserError(f"{where} has a down of {down.shape} and an up of {up.shape}")
    window, channels = shape[:-2], (down.shape[1], up.shape[0])
    if channels != shape[-2:]:
        raise UserError(
            f"{where} is for another base: from {channels[0]} to {channels[1]} "
            f"channels, in this model from {shape[-2]} to {shape[-1]}"
        )
    windows = [[n for n in each if n != 1] for each in (down.shape[2:], window)]
    if windows[0] != windows[1] or math.prod(up.shape[2:]) != 1:
        raise UserError(f"{where} has a down of {down.shape} and an up of {up.shape}")
    down = down.reshape(*down.shape[:2], *window)
    return np.moveaxis(down, (0, 1), (-1, -2)), up.reshape(up.shape[:2]).T


Alphas = tuple[tuple[re.Pattern, float], ...]  # the first match decides


def _peft_alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, Alphas]:
    """Return alphas by patterns of modules, for each part.

    They are those of peft's configs, which diffusers writes as metadata. Raises
    UserError for metadata of that name that are not such configs.
    """
    try:
        config = dict(json.loads(metadata.get(METADATA, "{}")))
        alphas = {}
        for part, keys in CONFIGS.items():
            patterns = {}
            for key in keys:
                patterns |= dict(config.get(f"{key}.alpha_pattern") or {})
                if (alpha := config.get(f"{key}.lora_alpha")) is not None:
                    patterns[".*"] = alpha
            alphas[part] = tuple(
                (re.compile(rf"(.*\.)?({pattern})"), float(alpha))
                for pattern, alpha in patterns.items()
            )
            if not all(math.isfinite(alpha) for _, alpha in alphas[part]):
                raise ValueError("an alpha is not finite")
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"{path}: its {METADATA} is not peft's config") from error
    keys = (key for keys in CONFIGS.values() for key in keys)
    if any(config.get(f"{key}.use_rslora") for key in keys):
        raise UserError(f"{path}: rank-stabilised LoRA is not read")
    return alphas


def _alpha_of(module: str, alphas: Alphas) -> float | None:
    """Return the alpha of a module, None where there is none."""
    return next((alpha for pattern, alpha in alphas if pattern.fullmatch(module)), None)


def write(path: Path, deltas: Deltas, modules: Modules) -> None:
    """Write the deltas of a U-Net as diffusers does, in float32, without alphas.

    Raises:
      UserError: diffusers has no module for a path.
    """
    theirs = {module.path: name for name, module in modules.items()}
    arrays = {}
    for own, (down, up) in deltas.items():
        if own not in theirs:
            raise UserError(f"{own} is no module of Stable Diffusion's U-Net")
        down, up = np.asarray(down), np.asarray(up).T
        ones = (1,) * (down.ndim - 2)
        prefix = f"unet.{theirs[own]}"
        arrays[f"{prefix}.lora_A.weight"] = np.moveaxis(down, (-1, -2), (0, 1))
        arrays[f"{prefix}.lora_B.weight"] = up.reshape(*up.shape, *ones)
    safetensors_io.write(path, arrays, np.float32)
