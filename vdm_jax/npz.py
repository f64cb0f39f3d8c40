"""Reading of npz and npy files that may be corrupt or malicious."""

import errno
import os
import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

from vdm_jax.files import CorruptFile, check_regular
from vdm_jax.memory import memory_limit

NPZ_ERRORS = (
    EOFError, MemoryError, NotImplementedError, OverflowError, RecursionError,
    RuntimeError, SyntaxError, tokenize.TokenError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name.

    The uncompressed entries may take half of this machine's memory. Pickled objects are
    never read.

    Raises CorruptFile for bytes that are not an npz file, OSError if the file cannot
    be read.
    """
    check_regular(path)
    arrays: dict[str, np.ndarray] = {}
    limit = memory_limit() // 2
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > limit:
                raise CorruptFile(f"its arrays need more than {limit >> 30} GiB")
            for entry in entries:
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read_array(file)
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
            return _read_array(file)
        except NPZ_ERRORS as error:
            raise CorruptFile(f"not a whole npy file: {error}") from error


def _read_array(file: IO[bytes]) -> np.ndarray:
    """Read the array of a stream that holds nothing else."""
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):  # the checksum of an entry is verified at its end
        raise CorruptFile("there are bytes after its array")
    return array
