"""State dicts of torch (.pth) as numpy arrays, without torch and without running code.

A pickle describes the tensors and their values follow: in a zip archive (torch 1.6 and
later) or one after the other (before that). The pickle may name the globals that a
state dict needs and no others, so a malicious file cannot run code.
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

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C, 1001  # number and version before torch 1.6
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
# Exceptions that damaged pickles and archives raise, documented or found by tests.
TORCH_FILE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError,
    AttributeError, OverflowError, MemoryError, RecursionError, struct.error,
    zipfile.BadZipFile, NotImplementedError, OSError,
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by name, as read-only arrays.

    Arrays are views with the strides of the tensors, so they need not be contiguous.

    Raises:
      UserError: the file is not a complete torch file, has a global that no state dict
        needs (it is named in the message and not imported), or has an entry that is not
        a tensor.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .pth file")
    try:
        read_file = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        tensors, values = read_file(path)
        return {name: _array(name, x, values) for name, x in tensors.items()}
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except TORCH_FILE_ERRORS as error:
        reason = " ".join(str(error).split())  # in one line
        raise UserError(f"{path} is not a complete torch file: {reason}") from error


# Tuples, because a pickle can set the fields of any other instance that it creates.
class _Storage(NamedTuple):
    """A contiguous array of `count` numbers."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides are in numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Values = Callable[[_Storage], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensor descriptions that allows the globals of a state dict only."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement of a global; nothing is imported."""
        match module_name, global_name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda *args: _tensor(*args)  # a pickle can set its attributes
            case "torch", name if name in STORAGES:
                return STORAGES[name]
        name = f"{module_name}.{global_name}"
        raise UserError(f"names {name!r:.80}, which no state dict of numbers needs")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage of ("storage", type, key, device, count[, None])."""
        kind, dtype, key, _, count, *view = pid
        known = any(dtype is storage for storage in STORAGES.values())
        if type(kind) is not str or kind != "storage" or not known or any(view):
            raise ValueError("a storage is not described as torch does")
        if type(key) not in (str, int):
            raise ValueError(f"a storage's key is a {type(key).__name__}")
        return _Storage(str(key), dtype, _count(count))


def _load(stream: io.BytesIO) -> Any:
    opcodes.check_pickle(stream)
    return _Unpickler(stream).load()


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    """Replace torch._utils._rebuild_tensor_v2; gradients and hooks are ignored."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = tuple(map(_count, shape)), tuple(map(_count, strides))
    return _Tensor(storage, _count(offset), shape, strides)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        shown = f"{value:.3g}" if type(value) is int else type(value).__name__
        raise ValueError(f"{shown} is not a valid count")
    return value


def _describe_tensors(stream: io.BytesIO) -> dict[str, _Tensor]:
    """Read the pickle that describes the tensors."""
    tensors = _load(stream)
    if not isinstance(tensors, dict):
        raise UserError(f"has a {type(tensors).__name__}, not a state dict")
    for name, entry in tensors.items():
        if not isinstance(name, str) or not isinstance(entry, _Tensor):
            kind = type(entry).__name__
            shown = f"{name!r:.80}" if isinstance(name, str | int) else "an entry"
            raise UserError(f"has {shown}, a {kind}: give a state dict only")
    return tensors


def _array(name: str, tensor: _Tensor, values: Values) -> np.ndarray:
    """Return a tensor's view of its storage, after checking the bounds."""
    storage, offset, shape, strides = tensor
    array = values(storage)[offset:]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    # More numbers than are stored would be a broadcast, which a copy makes large.
    if size > len(array) or (size and last >= len(array)):
        raise UserError(f"lacks values of {name!r:.80}")
    strides = [s * array.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], Values]:
    """Read NAME/data.pkl, NAME/data/KEY, ...; the archive has their checksums."""
    with zipfile.ZipFile(path) as archive:
        # torch stores its entries uncompressed: compressed data could be a bomb.
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r:.80} is compressed or encrypted")
        names = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(names) != 1:
            raise ValueError("an archive without one NAME/data.pkl")
        folder = names[0].removesuffix("data.pkl")
        # Entries that overlap in the file could have more bytes than it has.
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("the entries have more bytes than the file")
        content = {
            name.removeprefix(folder): archive.read(name)
            for name in archive.namelist()
            if name.startswith(folder)
        }
    if content.get("byteorder", b"little") != b"little":
        raise UserError("was written on a machine of the other byte order")

    def values(storage: _Storage) -> np.ndarray:
        return _storage_values(content[f"data/{storage.key}"], storage)

    return _describe_tensors(io.BytesIO(content["data.pkl"])), values


def _read_legacy(path: Path) -> tuple[dict[str, _Tensor], Values]:
    """Read five pickles (magic, version, machine, state dict, keys) and the storages.

    A storage is a count, int64, and its values. They are in the order of the keys.
    """
    content = path.read_bytes()
    stream = io.BytesIO(content)
    if (_load(stream), _load(stream)) != LEGACY_MAGIC:
        raise ValueError("it does not start with the magic number")
    if _load(stream)["little_endian"] is not True:
        raise UserError("was written on a machine of the other byte order")
    tensors, keys = _describe_tensors(stream), _load(stream)
    types = {x.storage.key: x.storage.dtype for x in tensors.values()}
    parts: dict[str, bytes | memoryview] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", stream.read(8))
        length = _count(count) * np.dtype(types[key]).itemsize
        start = stream.tell()
        parts[key] = memoryview(content)[start : start + length]
        stream.seek(length, io.SEEK_CUR)
    if stream.tell() != len(content):
        raise ValueError("its length is not that of its storages")
    return tensors, lambda storage: _storage_values(parts[storage.key], storage)


def _storage_values(content: bytes | memoryview, storage: _Storage) -> np.ndarray:
    values = np.frombuffer(content, storage.dtype)
    if len(values) != storage.count:
        raise ValueError(f"storage {storage.key!r:.80} is truncated")
    return values
