"""The scalars of a run: what training wrote in its metrics.jsonl."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, parse_json

MAX_LINE_BYTES = 1 << 20  # bytes of a line of metrics.jsonl: far more than a row has
MAX_VALUE = 1e300  # of a number that can be drawn
Scalars = dict[str, tuple[np.ndarray, np.ndarray]]


def read_scalars(workdir: str | Path) -> Scalars:
    """All scalars of a run: name -> (steps, values), float64, in order of steps.

    Reads ``metrics.jsonl``, a JSON object a line with ``step``. A run that was killed
    leaves half a line and, resumed, writes some steps again: a line that is no JSON
    object is passed over, and of one step the last value counts. Raises UserError
    where there is no such file.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: give the workdir of a run of train.py")
    found: dict[str, dict[int, float]] = {}
    for _, row in read_rows(path):
        row = row or {}
        for name in [name for name in row if name != "step"]:
            found.setdefault(name, {})[int(row["step"])] = row[name]
    return {
        name: tuple(np.array(sorted(points.items()), np.float64).T)
        for name, points in found.items()
    }


def read_rows(path: Path) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """The lines of a ``metrics.jsonl``, and the numbers of each; None if it is no row.

    A row is a JSON object with a whole ``step``. Zeros, which a power cut leaves for
    bytes that were not on disk yet, are no line.
    """
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            line = line.strip(b"\0\r\n")
            if line:
                yield line, _row(line)


def _row(line: bytes) -> dict[str, float] | None:
    try:
        found = parse_json(line)
    except CorruptFile:
        return None
    step = found.get("step") if isinstance(found, dict) else None
    if type(step) is not int or not 0 <= step < 1 << 53:
        return None
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and abs(value) < MAX_VALUE
    }
