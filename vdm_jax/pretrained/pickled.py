"""Other people's pickles of numpy arrays, read so that nothing in them can run.

Three names may stand in such a file, those by which numpy writes an array, and they
stand for the small classes below: numpy's own would be handed whatever the file says,
and a dtype whose flags it sets makes bytes into pointers.
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
MAX_DEPTH = 16  # of dicts, lists and tuples within one another

# What a damaged or hostile pickle raises beside UnpicklingError, among it what the
# classes below raise where they are called with something else than numpy writes.
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
    """numpy.dtype("f4", False, True), and a state with its byte order."""

    def __init__(self, code: str, *_):
        # Types first: of a tree of tuples few bytes make a text or a hash without end.
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
    """_reconstruct(ndarray, (0,), b"b"), and a state with all that there is."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran, data = state
        if type(shape) is not tuple or any(type(n) is not int for n in shape):
            raise pickle.UnpicklingError("an array whose shape is not whole numbers")
        if type(data) is not bytes or not isinstance(kind, _Dtype):
            raise pickle.UnpicklingError("an array that is not bytes of a type")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(f"{len(data)} bytes for shape {shape[:8]}")
        order = "F" if fortran else "C"  # the rest is checked by numpy
        self.value = np.ndarray(shape, kind.dtype, data, order=order)


ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2
    ("numpy", "ndarray"): object(),  # what `_reconstruct` is given first
    ("numpy", "dtype"): _Dtype,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            asked = f"{module}.{name}"[:100]
            raise pickle.UnpicklingError(f"it asks for {asked!r}, which is no array")
        return ALLOWED_GLOBALS[module, name]


def read(path: Path) -> Any:
    """What a pickle holds: arrays, read-only, in dicts by strings, lists and tuples.

    Raises:
      UserError: there is no such file, it is damaged or goes on behind its end, or it
        holds anything else, of which the first is named. Nothing of it has run.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        # In memory, where reading what a length promises allocates what is there.
        stream = io.BytesIO(path.read_bytes())
        opcodes.check_pickle(stream)
        found = _plain(_Arrays(stream).load(), set())
        if stream.read(1):
            raise pickle.UnpicklingError("more follows behind its end")
        return found
    except PICKLE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a whole pickle of numpy arrays: {reason}"
        ) from error


def _plain(value: Any, seen: set[int], depth: int = 0) -> Any:
    """The tree with the arrays in their places.

    A dict, list or tuple stands in one place: one that holds itself has no end, and of
    such as hold others twice few bytes make a tree of any size.
    """
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, str):
        return value
    if id(value) in seen or depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"no tree, or one of more than {MAX_DEPTH} levels")
    if value != ():  # there is but one empty tuple
        seen.add(id(value))
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, seen, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, seen, depth + 1) for item in value)
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__.lstrip('_')}")
