"""Parameters to and from one safetensors file, named by their path a/b/c."""

import json
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes

FLOATS = ("F64", "F32", "F16", "BF16")  # what weights are read from; nothing is scaled
HEADER_LIMIT = 16 << 20  # bytes of JSON: 100 times what a large model needs


def flatten(tree) -> dict[str, np.ndarray]:
    """A tree of arrays as {path: array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def write(path: Path, params, dtype=np.float16) -> None:
    """Write parameters as `dtype`, whole or not at all."""
    # Contiguous row-major copies: safetensors writes the buffer as it lies.
    with np.errstate(over="ignore"):  # what overflows is found and named below
        arrays = {
            name: np.ascontiguousarray(jax.device_get(leaf), dtype)
            for name, leaf in flatten(params).items()
        }
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite as {np.dtype(dtype)}: not written")
    write_bytes(path, save(arrays), overwrite=True)


def tensor_dtypes(path: Path) -> dict[str, Any]:
    """The type of each tensor of a safetensors file, as F32.

    The library lets the last of two tensors of one name win: such a file is refused.
    """

    def pairs(items):
        found = dict(items)
        if len(found) < len(items):
            twice = Counter(name for name, _ in items).most_common(1)[0][0]
            raise UserError(f"{path}: tensor {twice!r} stands there twice")
        return found

    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < size <= HEADER_LIMIT:
            raise UserError(f"{path} is not a safetensors file: its header is broken")
        header = file.read(size)
    try:
        entries = json.loads(header, object_pairs_hook=pairs)
        return {n: e["dtype"] for n, e in entries.items() if n != "__metadata__"}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as bad:
        raise UserError(f"{path} is not a safetensors file: {bad}") from bad


def check_floats(path: Path, dtypes: dict[str, Any]) -> None:
    """Raise UserError for the first tensor that is no plain floating-point one.

    Eight-bit and integer weights mean something only with scales, which we know not.
    """
    for name, kind in dtypes.items():
        if kind not in FLOATS:
            raise UserError(
                f"{path}: {name} is {kind}: give weights in {', '.join(FLOATS)}"
            )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; UserError for anything else."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: only .safetensors is read, since pickled weights can run code; "
            "convert it with the safetensors package"
        )
    check_floats(path, tensor_dtypes(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


def read(path: Path, like, new: Sequence[str] = ()):
    """Parameters shaped as the tree `like` (arrays or shapes), cast to its dtypes.

    Every leaf must be there with its shape and be finite; a leaf that is absent must
    match a pattern of `new` and keeps the value in `like`. Anything else raises
    UserError with the names.
    """
    arrays = read_arrays(path)
    wanted = flatten(like)
    absent = [
        name
        for name in wanted
        if name not in arrays and not any(re.fullmatch(p, name) for p in new)
    ]
    surplus = [name for name in arrays if name not in wanted]
    shaped = [
        f"{name} {arrays[name].shape}, the model has {leaf.shape}"
        for name, leaf in wanted.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    for problem, names in (
        ("lacks", absent),
        ("holds what the model does not", surplus),
        ("differs in shape", shaped),
        ("is not finite", [n for n, a in arrays.items() if not np.isfinite(a).all()]),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{path} {problem}: {', '.join(names[:5])}{more}")
    leaves = [
        arrays[name].astype(leaf.dtype) if name in arrays else leaf
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
