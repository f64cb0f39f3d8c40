"""Reading of npz and npy files that may be corrupt or malicious."""

import errno
import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from vdm_jax.files import CorruptFile
from vdm_jax.memory import memory_limit

NPZ_ERRORS = (
    EOFError, MemoryError, NotImplementedError, OverflowError, RecursionError,
    RuntimeError, SyntaxError, tokenize.TokenError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz_arrays(
    path: str | os.PathLike, rows: int | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name, or the first ``rows`` rows of each.

    At most the uncompressed size of the archive's entries is allocated, and at most
    half of this machine's memory. Pickled objects are never read.

    Raises CorruptFile for bytes that are not an npz file, OSError if the file cannot
    be read.
    """
    arrays: dict[str, np.ndarray] = {}
    if Path(path).is_fifo():
        raise CorruptFile("not a regular file")  # reading from a pipe would block
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            limit = memory_limit() // 2
            if not rows and sum(entry.file_size for entry in entries) > limit:
                raise CorruptFile(f"its arrays need more than {limit >> 30} GiB")
            for entry in entries:
                with archive.open(entry) as file:
                    name = entry.filename.removesuffix(".npy")
                    arrays[name] = _read_npy_stream(file, entry.file_size, rows, limit)
    except CorruptFile:
        raise
    except (*NPZ_ERRORS, OSError) as error:
        # EINVAL is a seek before the start of the file: the archive names that offset.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise CorruptFile(f"not a whole npz file: {error}") from error
    return arrays


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Return the array of an npy file. Raises the errors of `read_npz_arrays`."""
    with open(path, "rb") as file:
        try:
            return _read_npy_stream(
                file, os.path.getsize(path), None, memory_limit() // 2
            )
        except NPZ_ERRORS as error:
            if isinstance(error, CorruptFile):
                raise
            raise CorruptFile(f"not a whole npy file: {error}") from error


def _read_npy_stream(
    file: IO[bytes], size: int, rows: int | None, limit: int
) -> np.ndarray:
    """Read the array of a stream of ``size`` bytes, which it must fill exactly.

    limit: the largest number of bytes to allocate.
    """
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise CorruptFile(f"an array in format {version}")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise CorruptFile("an array of objects, which could run code")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise CorruptFile(f"{size} bytes for an array {shape} of {dtype}")
    if rows is not None and shape and not fortran:
        shape = (min(rows, shape[0]), *shape[1:])
    length = math.prod(shape) * dtype.itemsize
    if length > limit:
        raise CorruptFile(f"an array needs more than {limit >> 30} GiB")
    content = bytearray(file.read(length))  # so that the array is writable
    if len(content) != length:
        raise CorruptFile("truncated")
    while file.read(1 << 20):  # the checksum of an entry is verified at its end
        pass
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
