"""Safetensors files, one or shards, to trees of our parameters.

Tensors are read one at a time and copied to the device, so there are never two copies
of a network: one that fills most of the memory can be loaded.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from vdm_jax.errors import UserError
from vdm_jax.files import read_json
from vdm_jax.pretrained.name_maps import KERNEL, NameMap
from vdm_jax.trees import named_leaves

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # weights are not scaled when read
# Names in the folders of Hugging Face: of one file, and of the index of its shards.
FILES = tuple(
    (f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json")
    for stem in ("model", "diffusion_pytorch_model")
    for variant in ("", ".fp16")
)


def tensor_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a folder: one, or the shards of its index.

    Raises:
      UserError: the folder has neither, the index is not valid, or a shard is missing.
    """
    for single, index in FILES:
        if (folder / single).is_file():
            return (folder / single,)
        if (folder / index).is_file():
            return _shards(folder / index)
    raise UserError(
        f"{folder} has neither {' nor '.join(FILES[0])}; pickled weights "
        "(pytorch_model.bin) are not read: convert them with the safetensors package"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names, all of them in its folder."""
    try:
        names = {Path(name).name for name in read_json(index)["weight_map"].values()}
        if not names:
            raise ValueError("no tensors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "is not an index of shards: it has no weight_map"
        raise UserError(f"{index} {reason}") from error
    paths = tuple(index.parent / name for name in sorted(names))
    for path in paths:
        if not path.is_file():
            raise UserError(f"{index.parent} lacks {path.name}, which {index} names")
    return paths


def read(paths: Sequence[Path], like, name_map: NameMap, dtype):
    """Return another library's parameters as `read_renamed` does, by a name map."""

    def rename(name: str) -> str | None:
        for pattern, target in name_map:
            if match := re.fullmatch(pattern, name):
                return None if target is None else match.expand(target)
        return name  # of no parameter of ours

    convert = functools.partial(jnp.asarray, dtype=dtype)
    return read_renamed(paths, like, rename, convert)


def read_renamed(
    paths: Sequence[Path],
    like,
    rename: Callable[[str], str | None],
    convert: Callable[[np.ndarray], Any],
):
    """Return parameters shaped as the tree `like` of arrays or shapes.

    Args:
      rename: our path of a tensor's name, after `KERNEL` if it is of torch's layout;
        None for a tensor that is not read.
      convert: called with each array before the next is read.

    Raises:
      UserError: a file is damaged, a tensor is unknown, missing, no float, not finite
        or of another shape, or two differ for one path; it names the tensor.
    """
    expected = named_leaves(like)
    leaves = {}
    extra = []
    where = paths[0] if len(paths) == 1 else paths[0].parent
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in list(file.keys()):
                    target = rename(name)
                    if target is None:
                        continue
                    if (own := target.removeprefix(KERNEL)) not in expected:
                        extra.append(name)
                        continue
                    leaf = convert(_tensor(file, name, target, expected[own].shape))
                    if own in leaves and not np.array_equal(leaves[own], leaf):
                        raise UserError(f"{name} is a second, different {own}")
                    leaves[own] = leaf
        except SafetensorError as error:
            reason = f"is not a whole safetensors file: {error}"
            raise UserError(f"{path} {reason}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    for problem, names in (
        ("has tensors that the model does not have:", extra),
        ("lacks", [name for name in expected if name not in leaves]),
    ):
        if names:  # at most five in the message
            raise UserError(f"{where} {problem} {', '.join(names[:5])}")
    ordered = [leaves[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)


def _tensor(file, name: str, target: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor of an open file, checked, in our layout."""
    dtype = file.get_slice(name).get_dtype()
    if dtype not in FLOAT_DTYPES:  # eight bits and integers need scales
        raise UserError(f"{name} is {dtype}: give weights in {', '.join(FLOAT_DTYPES)}")
    array = file.get_tensor(name)
    if target.startswith(KERNEL):
        array = np.moveaxis(array, (0, 1), (-1, -2))
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}, the model has {shape}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} is not finite")
    return array
