"""Others' safetensors, whole or in shards, into our parameters by a table of names.

Tensors are read one at a time and put where they stay, so that a network which fills
most of the memory can be loaded: there are never two copies of it.
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

UNKNOWN = ""
SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensor_files(folder: Path) -> tuple[Path, ...]:
    """The files with the tensors of a folder: one, or the shards that an index names.

    Raises:
      UserError: neither is there, the index is none, or a shard is missing.
    """
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX}; what is pickled "
            "(pytorch_model.bin) is not read: convert it with the safetensors package"
        )
    try:
        names = set(read_json(index)["weight_map"].values())
        if not names:
            raise ValueError("no tensors")
        paths = tuple(folder / Path(name).name for name in sorted(names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is no index of shards: it has no weight_map"
        ) from error
    for path in paths:
        if not path.is_file():
            raise UserError(f"{folder} lacks {path.name}, which {INDEX} names")
    return paths


def iter_tensors(
    paths: tuple[Path, ...], name_map: NameMap
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Their name, our path and the array of every tensor that the table reads."""
    for path in paths:
        kinds = params.tensor_dtypes(path)
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                places = {name: _place(name, name_map) for name in names}
                unknown = [name for name in names if places[name] is UNKNOWN]
                if unknown:
                    raise UserError(
                        f"{path} holds what the network does not: {_some(unknown)}"
                    )
                read = [name for name in names if places[name] is not None]
                params.check_floats(path, {name: kinds.get(name) for name in read})
                for name, place in places.items():
                    if place is not None:
                        array = file.get_tensor(name)
                        turned = place.startswith(TRANSPOSE)
                        place = place.removeprefix(TRANSPOSE)
                        yield name, place, array.T if turned else array
        except SafetensorError as error:
            raise UserError(
                f"{path} is not a whole safetensors file: {error}"
            ) from error


def _place(name: str, table: NameMap) -> str | None:
    """Our path for their name, None if it is not to be read; UNKNOWN to the table."""
    for pattern, place in table:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return None if place is None else match.expand(place)
    return UNKNOWN


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def read(paths: tuple[Path, ...], like, name_map: NameMap, dtype):
    """Parameters shaped as the tree `like`, in dtype.

    Raises:
      UserError: a tensor that the table does not know, one that is missing, not finite
        or of another shape, or two different ones for one place; each by its name.
    """
    wanted = params.flatten(like)
    found: dict[str, jax.Array] = {}
    folder = paths[0].parent
    surplus = []
    for name, place, array in iter_tensors(paths, name_map):
        if place not in wanted:
            surplus.append(name)
            continue
        if array.shape != wanted[place].shape:
            raise UserError(
                f"{folder}: {name} makes {place} {array.shape}, the network of "
                f"config.json has {wanted[place].shape}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{folder}: {name} is not finite")
        leaf = jnp.asarray(array, dtype)
        if place in found and not np.array_equal(found[place], leaf):
            raise UserError(f"{folder}: {name} is the second, other value of {place}")
        found[place] = leaf
    absent = [name for name in wanted if name not in found]
    if surplus:
        raise UserError(f"{folder} holds what the network does not: {_some(surplus)}")
    if absent:
        raise UserError(f"{folder} lacks what makes {_some(absent)}")
    return jax.tree.unflatten(
        jax.tree.structure(like), [found[name] for name in wanted]
    )
