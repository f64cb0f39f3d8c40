"""Rows that every JSON of perf/ has, and writing them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_row(
    name: str,
    result: float,
    *,
    better: str,
    machine: str,
    command: str,
    target: float | None = None,
    closed: str = "",
) -> dict[str, Any]:
    """Return a row.

    Args:
      name: what was measured, with its unit.
      result: the figure.
      better: "lower" or "higher".
      machine: what it was measured on.
      command: what measures it again.
      target: None where none was set.
      closed: why a target that is missed is out of reach, where that was shown.
    """
    row = {"name": name, "target": target, "result": result, "better": better}
    row |= {"machine": machine, "command": command}
    return row | ({"closed": closed} if closed else {})


def write(path: Path, rows: Sequence[dict[str, Any]], **detail: Any) -> None:
    """Write rows and further figures as JSON."""
    path.write_text(json.dumps({"rows": list(rows), **detail}, indent=1) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    target = "" if row["target"] is None else f", target {row['target']:g}"
    return f"{row['name']}: {row['result']:.4g}{target}"
