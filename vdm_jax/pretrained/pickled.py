"""Weights that numpy or torch pickled, for files whose hash is pinned.

An allow-list has the globals with which both describe arrays. They are replaced by the
functions and classes below, so nothing is imported and no code of the file is run. A
hostile file could still cost memory or time: `assets.Asset.verified_path` refuses it
before it is read here.
"""

import collections
import contextlib
import io
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from vdm_jax.errors import UserError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C, 1001  # number and version before torch 1.6
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "ByteStorage": "<u1",
}


class _Dtype:
    """Replacement of numpy.dtype("f4", False, True), whose state is a byte order."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: tuple):
        self.code = state[1] + self.code


class _Array:
    """Replacement of _reconstruct(ndarray, (0,), b"b"), whose state is its values."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran, data = state
        dtype = np.dtype(kind.code)
        if dtype.kind not in "biuf":  # of others, bytes could be pointers
            raise pickle.UnpicklingError("it has an array of other than numbers")
        self.value = np.ndarray(shape, dtype, data, order="F" if fortran else "C")


def _tensor(storage: np.ndarray, offset, shape, strides, *_) -> np.ndarray:
    """Replace torch._utils._rebuild_tensor_v2: a view, whose bounds numpy checks."""
    size = storage.itemsize
    strides = [size * stride for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * size, strides)


GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2
    ("numpy", "ndarray"): None,  # the first argument of `_reconstruct`
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows GLOBALS only; `storages` are those that a file names."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the replacement of a global; nothing is imported."""
        if (module_name, global_name) not in GLOBALS:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it names {name!r:.80}, which is not allowed")
        value = GLOBALS[module_name, global_name]
        # A function of its own: a pickle can set the attributes of what it names.
        return (lambda *args: _tensor(*args)) if value is _tensor else value

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return the storage of ("storage", type, key, device, count, None), of 0."""
        _, dtype, key, _, count, _ = pid
        if dtype not in STORAGES.values():
            raise pickle.UnpicklingError("it has a storage of other than numbers")
        return self.storages.setdefault(key, np.zeros(count, dtype))


def read(path: Path) -> Any:
    """Return a pickle's tree of numpy arrays in dictionaries, which are read-only.

    Raises:
      UserError: the file is damaged, or has anything else than arrays in it.
    """
    with _open(path, "a complete pickle of numpy arrays") as file:
        return jax.tree.map(lambda array: array.value, _Unpickler(file).load())


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by name, from a .pth file before torch 1.6.

    It has five pickles (magic, version, machine, state dict, keys) and the storages,
    each a count, int64, and its values, in the order of the keys.

    Raises:
      UserError: the file is damaged, or has anything else than tensors in it.
    """
    with _open(path, "a complete state dict of torch") as file:
        *magic, machine = (_Unpickler(file).load() for _ in range(3))
        if tuple(magic) != TORCH_MAGIC or machine["little_endian"] is not True:
            raise ValueError("it does not start with the magic number of torch")
        unpickler = _Unpickler(file)
        tensors = dict(unpickler.load())
        for key in _Unpickler(file).load():
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != len(storage) or file.readinto(storage.data) != storage.nbytes:
                raise ValueError(f"storage {key!r:.80} is truncated")
        if not all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            raise ValueError("it has other entries than tensors")
        return tensors


@contextlib.contextmanager
def _open(path: Path, what: str) -> Iterator[io.BufferedReader]:
    """Open a file; UserError for any error within the block: a pickle can cause all."""
    try:
        with path.open("rb") as file:
            yield file
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # in one line
        raise UserError(f"{path} is not {what}: {reason}") from error
