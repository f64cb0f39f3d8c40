"""State dicts of torch (.pth) as numpy arrays, with neither torch nor foreign code.

The tensors are described in a pickle, their values lie beside it: in a zip archive
(torch 1.6 and later) or one after the other (before that). The pickle may name what a
state dict needs and nothing else, so a hostile file runs no code of its author's.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.pretrained import opcodes

LEGACY = 0x1950A86A20F9469CFC6C, 1001  # magic number and version before the zip
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
}
# What broken pickles and archives raise: as documented, and as found by trying.
TORCH_FILE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError,
    AttributeError, OverflowError, MemoryError, RecursionError, struct.error,
    zipfile.BadZipFile, NotImplementedError, OSError,
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, as read-only arrays.

    Arrays are views with the tensors' own strides, so few are contiguous.

    Raises:
      UserError: not a whole torch file; a global that no state dict needs (it is named,
        not imported); an entry that is not a tensor.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .pth file")
    try:
        described, values = (_zip if zipfile.is_zipfile(path) else _legacy)(path)
        return {name: _array(name, x, values) for name, x in described.items()}
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except TORCH_FILE_ERRORS as error:
        said = " ".join(str(error).split())  # in one line
        raise UserError(f"{path} is not a whole torch file: {said}") from error


# Tuples, since a pickle can change the fields of any other instance that it has made.
class _Storage(NamedTuple):
    """`count` numbers that lie together."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Values = Callable[[_Storage], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors; admits the globals of a state dict only."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Our stand-in for a global: nothing is imported."""
        match module_name, global_name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda *given: _tensor(*given)  # a pickle may set its attributes
            case "torch", name if name in STORAGES:
                return STORAGES[name]
        name = f"{module_name}.{global_name}"
        raise UserError(f"names {name!r:.80}, which no state dict of numbers needs")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", type, key, device, count[, None])."""
        kind, dtype, key, _, count, *view = pid
        known = any(dtype is storage for storage in STORAGES.values())
        if type(kind) is not str or kind != "storage" or not known or any(view):
            raise ValueError("a storage is not described as torch does")
        if type(key) not in (str, int):
            raise ValueError(f"a {type(key).__name__} where a storage's key is due")
        return _Storage(str(key), dtype, _whole(count))


def _load(stream: io.BytesIO) -> Any:
    opcodes.check_pickle(stream)
    return _Unpickler(stream).load()


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    """torch._utils._rebuild_tensor_v2; gradients and hooks are left out."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = tuple(map(_whole, shape)), tuple(map(_whole, strides))
    return _Tensor(storage, _whole(offset), shape, strides)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        shown = f"{value:.3g}" if type(value) is int else type(value).__name__
        raise ValueError(f"{shown} where a count is due")
    return value


def _described(stream: io.BytesIO) -> dict[str, _Tensor]:
    """The pickle that describes the tensors."""
    found = _load(stream)
    if not isinstance(found, dict):
        raise UserError(f"holds a {type(found).__name__}, not a state dict")
    for name, entry in found.items():
        if not isinstance(name, str) or not isinstance(entry, _Tensor):
            kind = type(entry).__name__
            shown = f"{name!r:.80}" if isinstance(name, str | int) else "an entry"
            raise UserError(f"holds {shown}, a {kind}: give a state dict alone")
    return found


def _array(name: str, tensor: _Tensor, values: Values) -> np.ndarray:
    """The view of a storage that a tensor is, within its bounds."""
    storage, offset, shape, strides = tensor
    found = values(storage)[offset:]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    # More numbers than are stored: torch's broadcasts, which a copy would make large.
    if size > len(found) or (size and last >= len(found)):
        raise UserError(f"lacks values of {name!r:.80}")
    strides = [s * found.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(found, shape, strides, writeable=False)


def _zip(path: Path) -> tuple[dict[str, _Tensor], Values]:
    """Of NAME/data.pkl, NAME/data/KEY, ..., whose checksums the archive holds."""
    with zipfile.ZipFile(path) as archive:
        # torch stores its entries as they are: what is packed could be a bomb.
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r:.80} is compressed or encrypted")
        names = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(names) != 1:
            raise ValueError("an archive without one NAME/data.pkl")
        folder = names[0].removesuffix("data.pkl")
        # Entries may overlap in the file, and then hold more than it does.
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("the entries hold more than the file does")
        content = {
            name.removeprefix(folder): archive.read(name)
            for name in archive.namelist()
            if name.startswith(folder)
        }
    if content.get("byteorder", b"little") != b"little":
        raise UserError("was written on a machine of the other byte order")

    def values(storage: _Storage) -> np.ndarray:
        return _exactly(content[f"data/{storage.key}"], storage)

    return _described(io.BytesIO(content["data.pkl"])), values


def _legacy(path: Path) -> tuple[dict[str, _Tensor], Values]:
    """Of five pickles (magic, version, machine, state dict, keys), then the storages.

    A storage is its count, int64, and its values, in the order of the keys.
    """
    content = path.read_bytes()
    stream = io.BytesIO(content)
    if (_load(stream), _load(stream)) != LEGACY:
        raise ValueError("it begins with another number")
    if _load(stream)["little_endian"] is not True:
        raise UserError("was written on a machine of the other byte order")
    described, keys = _described(stream), _load(stream)
    types = {x.storage.key: x.storage.dtype for x in described.values()}
    parts: dict[str, bytes | memoryview] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", stream.read(8))
        length = _whole(count) * np.dtype(types[key]).itemsize
        start = stream.tell()
        parts[key] = memoryview(content)[start : start + length]
        stream.seek(length, io.SEEK_CUR)
    if stream.tell() != len(content):
        raise ValueError("it is longer or shorter than its storages")
    return described, lambda storage: _exactly(parts[storage.key], storage)


def _exactly(content: bytes | memoryview, storage: _Storage) -> np.ndarray:
    values = np.frombuffer(content, storage.dtype)
    if len(values) != storage.count:
        raise ValueError(f"storage {storage.key!r:.80} is cut short")
    return values
