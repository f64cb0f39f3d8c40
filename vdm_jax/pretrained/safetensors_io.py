"""Safetensors files, one or shards, to trees of our parameters.

Tensors are read one at a time and copied to the device, so there are never two copies
of a network: one that fills most of the memory can be loaded.
"""

import contextlib
import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vdm_jax.errors import UserError, printable
from vdm_jax.files import read_json, write_bytes
from vdm_jax.pretrained import name_maps
from vdm_jax.pretrained.name_maps import KERNEL, NameMap
from vdm_jax.trees import named_leaves

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # weights are not scaled when read
MODEL = "model"  # the stem of transformers' files
DIFFUSERS = "diffusion_pytorch_model"
LFS_POINTER = b"version https://git-lfs"  # how a file that git-lfs left out begins


def tensor_files(folder: Path, stem: str = "", variant: str = "") -> tuple[Path, ...]:
    """Return the safetensors files of a folder: one, or the shards of its index.

    Those of the variant where the folder has it, else the plain ones, which a line on
    stderr says, else those of variant fp16, else the only ones, as another line says.

    stem: of the files' names; "" is `MODEL`, else `DIFFUSERS`.

    Raises:
      UserError: the folder has none, the index is not valid, or a shard is missing.
    """
    stems = (stem,) if stem else (MODEL, DIFFUSERS)
    named = [variant, "", "fp16", *_only_variant(folder, stems)]
    for stem, suffix in itertools.product(stems, dict.fromkeys(named)):
        dot = f".{suffix}" if suffix else ""
        single = folder / f"{stem}{dot}.safetensors"
        index = folder / f"{stem}.safetensors.index{dot}.json"
        found = single if single.is_file() else index
        if not found.is_file():
            continue
        if suffix != variant and (variant or suffix != "fp16"):
            reason = f"{folder} has no variant {variant}" if variant else str(folder)
            print(printable(f"{reason}: {found.name} is read"), file=sys.stderr)
        return (single,) if found == single else _shards(index)
    for path in folder.glob("*"):
        if path.name.startswith(stems):
            _check_link(path)
    if variants := ", ".join(sorted(filter(None, _variants(folder, stems)))):
        raise UserError(
            f"{folder} has the variants {variants} and no other files of parameters: "
            "remove or rename the files of all but one, which is read then"
        )
    raise UserError(
        f"{folder} has neither {stems[0]}.safetensors nor "
        f"{stems[0]}.safetensors.index.json; pickled weights (.bin, .ckpt) are not "
        "read: convert them with the package that wrote them, as "
        "StableDiffusionPipeline.from_pretrained(DIR).save_pretrained(OUT)"
    )


def _check_link(path: Path) -> None:
    """Raise UserError for a link whose file is gone, as of a cache that was pruned."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {path.readlink()}, which does not exist: put that "
            "file back, or download the folder again"
        )


def _only_variant(folder: Path, stems: Sequence[str]) -> list[str]:
    """Return the variant of a folder that has one alone, else nothing."""
    found = _variants(folder, stems)
    return [v for v in found if v] if len(found) == 1 else []


def _variants(folder: Path, stems: Sequence[str]) -> set[str | None]:
    """Return the variants of the files in a folder, None for those without one."""
    single = rf"({'|'.join(stems)})(\.(?P<one>\w+))?\.safetensors"
    index = rf"({'|'.join(stems)})\.safetensors\.index(\.(?P<one>\w+))?\.json"
    names = [path.name for path in folder.glob("*")]
    return {
        match["one"]
        for pattern in (single, index)
        for match in (re.fullmatch(pattern, name) for name in names)
        if match
    }


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
        _check_link(path)
        if not path.is_file():
            raise UserError(f"{index.parent} lacks {path.name}, which {index} names")
    return paths


def count(paths: Sequence[Path]) -> int:
    """Return how many numbers files hold, read from their heads.

    Raises:
      UserError: a file is damaged.
    """
    total = 0
    for path in paths:
        with _errors_of(path), safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            total += sum(math.prod(file.get_slice(n).get_shape()) for n in names)
    return total


def stored_dtypes(paths: Sequence[Path]) -> set[str]:
    """Return the dtypes of the tensors in files, of their heads, such as "BF16".

    Raises:
      UserError: a file is damaged.
    """
    dtypes = set()
    for path in paths:
        with _errors_of(path), safe_open(path, framework="numpy") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in list(file.keys())}
    return dtypes


def read(paths: Sequence[Path], like, name_map: NameMap, dtype, written: NameMap = ()):
    """Return another library's parameters as `read_renamed` does, by a name map.

    written: the map of the other direction, for messages.
    """

    def their_name(path: str) -> str:
        return (name_maps.rename(written, path) or path).removeprefix(KERNEL)

    rename = functools.partial(name_maps.rename, name_map)
    convert = functools.partial(jnp.asarray, dtype=dtype)
    return read_renamed(paths, like, rename, convert, their_name=their_name)


def read_by_names(paths: Sequence[Path], like, names: Mapping[str, str], dtype):
    """Return another library's parameters as `read_renamed` does, by a table of names.

    names: their name -> our path, after `KERNEL` if it is of torch's layout.
    """
    convert = functools.partial(jnp.asarray, dtype=dtype)
    theirs = {target.removeprefix(KERNEL): name for name, target in names.items()}
    return read_renamed(
        paths, like, lambda name: names.get(name, name), convert,
        their_name=lambda path: theirs.get(path, path),
    )  # fmt: skip


def to_names(params, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return our parameters by another library's names: invert `read_by_names`.

    Raises:
      KeyError: the table has a path that is none of the parameters, or the other way.
    """
    leaves = named_leaves(params)
    arrays = {}
    for name, target in names.items():
        array = np.asarray(leaves[target.removeprefix(KERNEL)])
        is_kernel = target.startswith(KERNEL)
        arrays[name] = np.moveaxis(array, (-1, -2), (0, 1)) if is_kernel else array
    named = {target.removeprefix(KERNEL) for target in names.values()}
    if unnamed := [path for path in leaves if path not in named]:
        raise KeyError(f"no name for {', '.join(unnamed[:5])}")
    return arrays


def write(path: Path, arrays: Mapping[str, np.ndarray], dtype) -> None:
    """Write arrays of `to_names` as one file, atomically; errors: of `to_bytes`."""
    write_bytes(path, to_bytes(arrays, dtype), overwrite=True)


def to_bytes(arrays: Mapping[str, np.ndarray], dtype) -> bytes:
    """Return the bytes of a file with arrays of `to_names`.

    Raises:
      UserError: an array is not finite in that dtype.
    """
    stored = {name: cast(name, array, dtype) for name, array in arrays.items()}
    # Other programs refuse a file without this entry.
    return save(stored, {"format": "pt"})


def cast(name: str, array: np.ndarray, dtype) -> np.ndarray:
    """Return an array in a dtype, row-major: a file has the buffer as it is.

    Raises:
      UserError: it is not finite in that dtype.
    """
    with np.errstate(over="ignore"):  # an overflow raises below
        stored = np.array(array, dtype, order="C")
    if not np.isfinite(array).all():
        raise UserError(f"{name} is not finite: give a model whose weights are")
    if not np.isfinite(stored).all():
        raise UserError(
            f"{name} is not finite as {stored.dtype}: --dtype=float32 holds it"
        )
    return stored


def read_renamed(
    paths: Sequence[Path],
    like,
    rename: Callable[[str], str | None],
    convert: Callable[[np.ndarray], Any],
    others: Mapping[str, Any] | None = None,
    their_name: Callable[[str], str] = str,
):
    """Return parameters shaped as the tree `like` of arrays or shapes.

    Args:
      rename: our path of a tensor's name, after `KERNEL` if it is of torch's layout;
        None for a tensor that is not read.
      convert: called with each array before the next is read.
      others: arrays by our path. One that the files lack is taken if its shape fits.
      their_name: name in the files of our path, for the message on one they lack.

    Raises:
      UserError: a file is damaged, a tensor is unknown, missing, no float, not finite
        or of another shape, or two differ for one path; it names the tensor.
    """
    expected = named_leaves(like)
    leaves = {}
    extra = []
    where = paths[0] if len(paths) == 1 else paths[0].parent
    for path in paths:
        with _errors_of(path), safe_open(path, framework="numpy") as file:
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
    for name, leaf in (others or {}).items():
        if name in expected and leaf.shape == expected[name].shape:
            leaves.setdefault(name, leaf)
    for problem, names in (
        ("has tensors that the model does not have:", extra),
        ("lacks", [their_name(name) for name in expected if name not in leaves]),
    ):
        if names:  # at most five in the message
            raise UserError(f"{where} {problem} {', '.join(names[:5])}")
    ordered = [leaves[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), ordered)


def _tensor(file, name: str, target: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor of an open file, checked, in our layout."""
    array = _finite_array(file, name)
    if target.startswith(KERNEL):
        array = np.moveaxis(array, (0, 1), (-1, -2))
    # Axes of size 1 are stored or not: of a convolution of one pixel, which is a
    # product, and of the scale of a norm.
    if array.ndim > len(shape) and _longer_axes(array.shape) == _longer_axes(shape):
        array = array.reshape(shape)
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape}, the model has {shape}")
    return array


def _longer_axes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size > 1]


def _finite_array(file, name: str) -> np.ndarray:
    """Return a tensor of an open file, floats or one number, all finite."""
    stored = file.get_slice(name)
    dtype = stored.get_dtype()
    if dtype not in FLOAT_DTYPES and math.prod(stored.get_shape()) != 1:
        # Eight bits and integers need scales.
        raise UserError(f"{name} is {dtype}: give weights in {', '.join(FLOAT_DTYPES)}")
    array = file.get_tensor(name)
    if not np.isfinite(array).all():
        raise UserError(f"{name} is not finite")
    return array


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name the file in errors; a damaged file is one of the user."""
    try:
        yield
    except SafetensorError as error:
        reason = f"is not a whole safetensors file: {error}"
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                reason = "is a git-lfs pointer to its content: run git lfs pull there"
        raise UserError(f"{path} {reason}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a file by their names, and its metadata.

    Raises:
      UserError: the file is damaged, or a tensor is no float or not finite.
    """
    with _errors_of(path), safe_open(path, framework="numpy") as file:
        arrays = {name: _finite_array(file, name) for name in list(file.keys())}
        return arrays, dict(file.metadata() or {})
