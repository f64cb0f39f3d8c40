"""Our parameters in one safetensors file, each named by its path a/b/c."""

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
from vdm_jax.migration import migrate_path

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # weights are not scaled when read
MAX_HEADER_BYTES = 16 << 20  # 100 times what a large model needs


def flatten(tree) -> dict[str, np.ndarray]:
    """Return a tree of arrays as {path: array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def write(path: Path, params, dtype=np.float16) -> None:
    """Write parameters as `dtype`, atomically.

    Raises UserError if a value is not finite in that dtype.
    """
    # Contiguous row-major copies: safetensors writes the buffer as it is.
    with np.errstate(over="ignore"):  # an overflow raises below
        arrays = {
            name: np.ascontiguousarray(jax.device_get(leaf), dtype)
            for name, leaf in flatten(params).items()
        }
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is not finite as {np.dtype(dtype)}: not written")
    write_bytes(path, save(arrays), overwrite=True)


def tensor_dtypes(path: Path) -> dict[str, Any]:
    """Return the dtype, such as F32, of each tensor of a safetensors file.

    Raises UserError if the header is not valid or two tensors have the same name: the
    safetensors library would read the last of them.
    """

    def pairs(items):
        entries = dict(items)
        if len(entries) < len(items):
            duplicate = Counter(name for name, _ in items).most_common(1)[0][0]
            raise UserError(f"{path}: two tensors have the name {duplicate!r}")
        return entries

    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < size <= MAX_HEADER_BYTES:
            raise UserError(f"{path} is not a safetensors file: its header is damaged")
        header = file.read(size)
    try:
        entries = json.loads(header, object_pairs_hook=pairs)
        return {n: e["dtype"] for n, e in entries.items() if n != "__metadata__"}
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as bad:
        raise UserError(f"{path} is not a safetensors file: {bad}") from bad


def check_floats(path: Path, dtypes: dict[str, Any]) -> None:
    """Raise UserError for the first tensor whose dtype is not in FLOAT_DTYPES.

    Eight-bit and integer weights need scales, which these files do not have.
    """
    for name, dtype in dtypes.items():
        if dtype not in FLOAT_DTYPES:
            raise UserError(
                f"{path}: {name} is {dtype}: give weights in {', '.join(FLOAT_DTYPES)}"
            )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a safetensors file; raise UserError for any other file."""
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


def read(path: Path, like, init_new: Sequence[str] = ()):
    """Return parameters shaped as the tree `like` (arrays or shapes), in its dtypes.

    Names of version 0.1 are translated (vdm_jax/migration.py). A leaf that is absent
    from the file must match a pattern of `init_new` and keeps the value in `like`.

    Raises:
      UserError: a leaf is absent, left over, of another shape or not finite; it names
        the leaves.
    """
    stored = read_arrays(path)
    arrays = {migrate_path(name): array for name, array in stored.items()}
    if len(arrays) < len(stored):
        raise UserError(f"{path} has the same parameter under two names")
    expected = flatten(like)
    absent = [
        name
        for name in expected
        if name not in arrays and not any(re.fullmatch(p, name) for p in init_new)
    ]
    extra = [name for name in arrays if name not in expected]
    other_shape = [
        f"{name} {arrays[name].shape}, the model has {leaf.shape}"
        for name, leaf in expected.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    for problem, names in (
        ("lacks", absent),
        ("has parameters that the model does not have:", extra),
        ("differs in shape:", other_shape),
        ("is not finite:", [n for n, a in arrays.items() if not np.isfinite(a).all()]),
    ):
        if names:
            raise UserError(f"{path} {problem} {first_names(names)}")
    leaves = [
        arrays[name].astype(leaf.dtype) if name in arrays else leaf
        for name, leaf in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def first_names(names: Sequence[str]) -> str:
    """Return up to five names, and how many more there are, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
