"""Safetensors of other libraries, in one file or shards, to our parameters.

Tensors are read one at a time and copied to the device, so there are never two copies
of a network: one that fills most of the memory can be loaded.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from vdm_jax.errors import UserError
from vdm_jax.files import read_json
from vdm_jax.pretrained import params
from vdm_jax.pretrained.name_maps import TRANSPOSE, NameMap

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensor_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a folder: one, or the shards of its index.

    Raises:
      UserError: the folder has neither, the index is not valid, or a shard is missing.
    """
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX}; pickled weights "
            "(pytorch_model.bin) are not read: convert them with the safetensors "
            "package"
        )
    try:
        names = set(read_json(index)["weight_map"].values())
        if not names:
            raise ValueError("no tensors")
        paths = tuple(folder / Path(name).name for name in sorted(names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not an index of shards: it has no weight_map"
        ) from error
    for path in paths:
        if not path.is_file():
            raise UserError(f"{folder} lacks {path.name}, which {INDEX} names")
    return paths


def iter_tensors(
    paths: tuple[Path, ...], name_map: NameMap
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, our path and array of every tensor that name_map does not skip."""
    for path in paths:
        dtypes = params.tensor_dtypes(path)
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                targets = {name: _targets(name, name_map) for name in names}
                unknown = [name for name in names if not targets[name]]
                if unknown:
                    raise UserError(
                        f"{path} has tensors that the network does not have: "
                        + params.first_names(unknown)
                    )
                mapped = {n: target[0] for n, target in targets.items() if target[0]}
                params.check_floats(path, {name: dtypes.get(name) for name in mapped})
                for name, target in mapped.items():
                    array = file.get_tensor(name)
                    if target.startswith(TRANSPOSE):
                        array = array.T
                    yield name, target.removeprefix(TRANSPOSE), array
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a whole safetensors file: {error}"
            ) from error


def _targets(name: str, name_map: NameMap) -> tuple[str | None, ...]:
    """Return our path, or None for a tensor to skip, in a tuple; () if unknown."""
    for pattern, target in name_map:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return (None if target is None else match.expand(target),)
    return ()


def read(paths: tuple[Path, ...], like, name_map: NameMap, dtype):
    """Return parameters shaped as the tree `like` (arrays or shapes), in dtype.

    Raises:
      UserError: a tensor is unknown to name_map, missing, not finite or of another
        shape, or two tensors have different values for one path; it names the tensor.
    """
    expected = params.flatten(like)
    leaves: dict[str, jax.Array] = {}
    folder = paths[0].parent
    extra = []
    for name, target, array in iter_tensors(paths, name_map):
        if target not in expected:
            extra.append(name)
            continue
        if array.shape != expected[target].shape:
            raise UserError(
                f"{folder}: {name} for {target} has shape {array.shape}, the network "
                f"of config.json has {expected[target].shape}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{folder}: {name} is not finite")
        leaf = jnp.asarray(array, dtype)
        if target in leaves and not np.array_equal(leaves[target], leaf):
            raise UserError(f"{folder}: {name} is a second, different {target}")
        leaves[target] = leaf
    absent = [name for name in expected if name not in leaves]
    if extra:
        raise UserError(
            f"{folder} has tensors that the network does not have: "
            + params.first_names(extra)
        )
    if absent:
        raise UserError(f"{folder} lacks the tensors of {params.first_names(absent)}")
    return jax.tree.unflatten(
        jax.tree.structure(like), [leaves[name] for name in expected]
    )
