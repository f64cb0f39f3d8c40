"""A sharded state in safetensors files, one of each process.

Every piece of every array is written once, by one of the processes that hold it:

    state-00001-of-00004.safetensors   "params/in/kernel"         a whole array
                                       "params/out/kernel@0,256"  a piece, from [0, 256]

So each process writes and checksums about as much as any other, of a replicated state
too. Restoring reads the pieces that a sharding needs, whatever wrote them.
"""

import functools
import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from vdm_jax.files import CorruptFile
from vdm_jax.storage import Steps

READERS = 16  # arrays that are read at the same time

# https://github.com/huggingface/safetensors: 8 bytes length, a JSON header, the bytes.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64, "F32": np.float32, "F16": np.float16,
        "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32,
        "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
        "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    }.items()
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Position = tuple[int, ...]  # of the first element of a piece


def file_name(rank: int, count: int) -> str:
    """Return the name of the file of a process."""
    return f"state-{rank:05}-of-{count:05}.safetensors"


def own_pieces(named: Mapping[str, Any], rank: int) -> dict[str, np.ndarray]:
    """Return the pieces that a process writes, copied to the host, by their names.

    Of the processes that hold a piece, the one with the fewest bytes so far writes it;
    every process computes the same. Arrays of numpy are written by process 0.
    """
    sizes: Counter[int] = Counter()
    owned: dict[str, Any] = {}
    for name, array in named.items():
        if not isinstance(array, jax.Array):
            owned |= {} if rank else {name: array}
            continue
        shards = {_corner(s.index): s.data for s in array.addressable_shards}
        for corner, shape, holders in _layout(array.sharding, array.shape):
            writer = min(holders, key=lambda process: (sizes[process], process))
            sizes[writer] += int(np.prod(shape)) * array.dtype.itemsize
            if writer == rank:
                whole = shape == array.shape
                owned[name if whole else piece_name(name, corner)] = shards[corner]
    for data in owned.values():
        if isinstance(data, jax.Array):
            data.copy_to_host_async()
    return {name: _host_copy(data) for name, data in owned.items()}


def piece_name(name: str, corner: Position) -> str:
    """Return the name of a piece of an array."""
    return f"{name}@{','.join(map(str, corner))}"


@functools.lru_cache(4096)  # moments and average have the layout of the parameters
def _layout(
    sharding: Any, shape: Position
) -> list[tuple[Position, Position, Position]]:
    """Return corner, shape and processes of each distinct piece of an array."""
    pieces: dict[Position, tuple[Position, set[int]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        size = tuple(
            len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)
        )
        _, holders = pieces.setdefault(_corner(index), (size, set()))
        holders.add(device.process_index)
    return [(c, size, tuple(sorted(holders))) for c, (size, holders) in pieces.items()]


def _corner(index: tuple[slice, ...]) -> Position:
    return tuple(part.start or 0 for part in index)


def _host_copy(data: Any) -> np.ndarray:
    """Return the values of an array that may be donated or changed right after."""
    # In the memory of the host numpy would see the array itself.
    devices = data.devices() if isinstance(data, jax.Array) else ()
    is_elsewhere = any(device.platform != "cpu" for device in devices)
    return np.array(data, copy=None if is_elsewhere else True)


def encode(arrays: Mapping[str, np.ndarray]) -> Iterator[Any]:
    """Yield the buffers of a safetensors file of arrays."""
    # The largest elements first: each array then begins at a multiple of its elements.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header, end = {}, 0
    for name, array in ordered:
        offsets = [end, end := end + array.nbytes]
        dtype = NAMES[array.dtype]
        shape = list(array.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, array in ordered:
        if array.size:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Piece(NamedTuple):
    """Where a piece of an array is stored."""

    file: str
    offset: int
    corner: Position
    shape: Position


class StoredState:
    """The arrays of a committed step.

    Args:
      steps, folder: where it is.
      leaves: name -> [shape, dtype] of each array.
      names: the files of the step.

    Raises:
      CorruptFile: a file has no valid header.
    """

    def __init__(self, steps: Steps, folder: str, leaves: dict, names: list[str]):
        self._steps, self._folder, self._leaves = steps, folder, leaves
        self._pieces: dict[str, list[Piece]] = {}
        for name in names:
            for key, piece in self._header(name):
                self._pieces.setdefault(key, []).append(piece)

    def _header(self, file: str) -> Iterator[tuple[str, Piece]]:
        try:
            (size,) = struct.unpack("<Q", self._steps.read(self._folder, file, 0, 8))
            header = json.loads(self._steps.read(self._folder, file, 8, size))
            for key, stored in header.items():
                name, _, corner = (key, "", "") if key in self._leaves else (
                    key.rpartition("@")
                )  # fmt: skip
                shape = tuple(stored["shape"])
                start = (
                    tuple(map(int, corner.split(","))) if corner else (0,) * len(shape)
                )
                offset = 8 + size + stored["data_offsets"][0]
                yield name, Piece(file, offset, start, shape)
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise CorruptFile(f"{file} has no valid header: {error}") from error

    def read(self, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return arrays by name, each with the sharding that is wanted.

        wanted: jax.ShapeDtypeStruct with a sharding, by name.
        """
        with ThreadPoolExecutor(READERS, "restore") as readers:
            arrays = readers.map(self._read, wanted, wanted.values())
            return dict(zip(wanted, arrays, strict=True))

    def _read(self, name: str, like: Any) -> jax.Array:
        boxes: dict[tuple, np.ndarray] = {}  # replicas on several devices read once

        def box(index: tuple[slice, ...]) -> np.ndarray:
            bounds = tuple(
                part.indices(n)[:2] for part, n in zip(index, like.shape, strict=True)
            )
            if bounds not in boxes:
                boxes[bounds] = self._box(name, bounds)
            return boxes[bounds]

        callback: Any = box
        return jax.make_array_from_callback(like.shape, like.sharding, callback)

    def _box(self, name: str, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Return the part of an array between bounds (first, end) of each axis."""
        dtype = np.dtype(self._leaves[name][1])
        box = np.empty([end - first for first, end in bounds], dtype)
        missing = box.size
        for piece in self._pieces.get(name, ()):
            common = [
                (max(first, corner), min(end, corner + n))
                for (first, end), corner, n in zip(
                    bounds, piece.corner, piece.shape, strict=True
                )
            ]
            if any(first >= end for first, end in common):
                continue
            there = [
                slice(f - c, e - c)
                for (f, e), c in zip(common, piece.corner, strict=True)
            ]
            here = [
                slice(f - b, e - b)
                for (f, e), (b, _) in zip(common, bounds, strict=True)
            ]
            part = self._rows(piece, dtype, there)
            box[tuple(here)] = part
            missing -= part.size
        if missing:
            raise CorruptFile(f"{missing} values of {name} are in no file")
        return box

    def _rows(self, piece: Piece, dtype: np.dtype, there: list[slice]) -> np.ndarray:
        """Return a part of a piece; only the rows that it is in are read."""
        shape, rows = list(piece.shape), there[:1]
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        first = rows[0].start if rows else 0
        if rows:
            shape[0] = rows[0].stop - first
        start, size = (
            piece.offset + first * row_bytes,
            int(np.prod(shape)) * dtype.itemsize,
        )
        content = self._steps.read(self._folder, piece.file, start, size)
        array = np.frombuffer(content, dtype).reshape(shape)
        return array[tuple([slice(None)] * len(rows) + there[1:])]
