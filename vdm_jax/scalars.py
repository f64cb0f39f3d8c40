"""Scalars of a run, as training writes them to metrics.jsonl."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, parse_json

MAX_LINE_BYTES = 1 << 20  # of metrics.jsonl: far more than a row has
MAX_VALUE = 1e300  # larger numbers cannot be drawn
Scalars = dict[str, tuple[np.ndarray, np.ndarray]]


def read_scalars(workdir: str | Path) -> Scalars:
    """Return all scalars of a run: name -> (steps, values), float64, sorted by step.

    Reads ``metrics.jsonl``, one JSON object with ``step`` per line. A killed run leaves
    an incomplete line and, resumed, writes some steps again: lines that are no JSON
    object are skipped, and the last value of a step is taken.

    Raises:
      UserError: the file is missing.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing: give the workdir of a run of train.py")
    values: dict[str, dict[int, float]] = {}
    for _, row in read_rows(path):
        row = row or {}
        for name in [name for name in row if name != "step"]:
            values.setdefault(name, {})[int(row["step"])] = row[name]
    return {
        name: tuple(np.array(sorted(points.items()), np.float64).T)
        for name, points in values.items()
    }


def read_totals(workdir: Path) -> tuple[float, float]:
    """Return the newest loss and the seconds of all steps, as logged by all restarts.

    NaN and 0 before the first. The seconds are without compiling, saving and observing.
    """
    path = workdir / "metrics.jsonl"
    loss, seconds, before = math.nan, 0.0, 0.0
    for _, row in read_rows(path) if path.is_file() else ():
        row = row or {}
        loss = row.get("train/loss", loss)
        if "train/step_time" in row:
            seconds += (row["step"] - before) * row["train/step_time"]
            before = row["step"]
    return loss, seconds


def read_rows(path: Path) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """Yield the lines of a ``metrics.jsonl`` with their numbers, None if not a row.

    A row is a JSON object with an integer ``step``. Zero bytes, which a power failure
    leaves for bytes not yet on disk, are not part of a line.
    """
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            line = line.strip(b"\0\r\n")
            if line:
                yield line, _row(line)


def _row(line: bytes) -> dict[str, float] | None:
    """Return the numbers of a line; None if it is not a row."""
    try:
        row = parse_json(line)
    except CorruptFile:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if type(step) is not int or not 0 <= step < 1 << 53:
        return None
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and abs(value) < MAX_VALUE
    }
