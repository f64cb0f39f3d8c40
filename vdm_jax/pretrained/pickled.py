"""Pickles of numpy arrays from other libraries, read without running any of their code.

Only the globals with which numpy pickles an array are allowed. They are replaced by the
small classes below, because numpy's own accept any state: a dtype whose flags a file
sets turns bytes into pointers.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.pretrained import opcodes

DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
MAX_DEPTH = 16  # of nested dicts, lists and tuples

# Exceptions that a damaged or malicious pickle can raise, also in the classes below
# when they are called with arguments that numpy does not write.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Dtype:
    """Replacement of numpy.dtype("f4", False, True), whose state is a byte order."""

    def __init__(self, code: str, *_):
        # Types first: hashing or printing a small tree of tuples can take forever.
        if type(code) is not str or code not in DTYPES:
            shown = code[:20] if type(code) is str else type(code).__name__
            raise pickle.UnpicklingError(f"an array of type {shown!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple):
        _, order, subarray, names, fields, *_ = state
        plain = subarray is names is fields is None
        if type(order) is not str or order not in ("<", ">", "|") or not plain:
            raise pickle.UnpicklingError("an array of a compound type")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Replacement of _reconstruct(ndarray, (0,), b"b"), whose state is its values."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran, data = state
        if type(shape) is not tuple or any(type(n) is not int for n in shape):
            raise pickle.UnpicklingError("an array whose shape is not integers")
        if type(data) is not bytes or not isinstance(kind, _Dtype):
            raise pickle.UnpicklingError("an array that is not bytes of a dtype")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"{len(data)} bytes for shape {shape[:8]}")
        order = "F" if fortran else "C"  # numpy checks the rest
        self.value = np.ndarray(shape, kind.dtype, data, order=order)


ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2
    ("numpy", "ndarray"): object(),  # the first argument of `_reconstruct`
    ("numpy", "dtype"): _Dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            name = f"{module}.{name}"[:100]
            raise pickle.UnpicklingError(f"it names {name!r}, which is not an array")
        return ALLOWED_GLOBALS[module, name]


def read(path: Path) -> Any:
    """Return a pickle's tree of dicts, lists and tuples with read-only arrays.

    Raises:
      UserError: the file does not exist, is damaged, has bytes after its end, or has
        anything else than arrays and strings in it. None of its code is run.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        # In memory: reading a length from it allocates no more than the file has.
        stream = io.BytesIO(path.read_bytes())
        opcodes.check_pickle(stream)
        tree = _replace_arrays(_ArrayUnpickler(stream).load(), set())
        if stream.read(1):
            raise pickle.UnpicklingError("it has bytes after its end")
        return tree
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a complete pickle of numpy arrays: {reason}"
        ) from error


def _replace_arrays(value: Any, seen: set[int], depth: int = 0) -> Any:
    """Return the tree with numpy arrays for each `_Array`.

    A dict, list or tuple may occur once: one that contains itself is endless, and a few
    bytes that contain others twice make a tree of any size.
    """
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, str):
        return value
    if id(value) in seen or depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"not a tree of up to {MAX_DEPTH} levels")
    if value != ():  # all empty tuples are one object
        seen.add(id(value))
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {
            key: _replace_arrays(item, seen, depth + 1) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_arrays(item, seen, depth + 1) for item in value)
    raise pickle.UnpicklingError(f"it has a {type(value).__name__.lstrip('_')}")
