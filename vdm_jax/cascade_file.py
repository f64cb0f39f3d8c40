"""The TOML file of a cascade, or cascade.toml in the folder of one.

[[stage]]
name = "base"
workdir = "base"        # a run or a shipped model, relative to the file
steps = 64              # overrides config.sample.steps, as any sampling setting
guidance_scale = 2.0

[[stage]]
name = "tsr1"
workdir = "tsr1"
augmentation_snr = 5.0
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError

CASCADE_FILE = "cascade.toml"
MAX_FILE_BYTES = 1 << 15  # parsing a key of many dotted parts takes quadratic time


def read_tables(path: Path) -> list:
    """Return the [[stage]] tables of a cascade file.

    Raises:
      UserError: no such file, not TOML, another table, or no stage.
    """
    try:
        content = tomllib.loads(files.read_text(path, MAX_FILE_BYTES))
    except OSError as error:
        raise UserError(
            f"no cascade {path} ({error.strerror}): a TOML file, a folder that holds "
            f"{CASCADE_FILE}, or a model"
        ) from error
    except (files.CorruptFile, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    check_fields(path, content, ("stage",), "")
    tables = content.get("stage", [])
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{path} names no stage: one [[stage]] table for each")
    return tables


def check_fields(path: Path, fields: dict, known: Sequence[str], where: str) -> None:
    """Raise UserError for the first unknown field, with the nearest known one."""
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{path}: {where}unknown field {field!r}: {hint}")


def to_toml(stages: dict[str, dict[str, Any]]) -> str:
    """Return the text of a cascade file whose stages are in the folders of their names.

    stages: the sampling overrides of each stage, by its name.
    """
    tables = []
    for name, overrides in stages.items():
        table = ["[[stage]]"]
        for field, value in ({"name": name, "workdir": name} | overrides).items():
            # TOML's literals are those of JSON, except infinity.
            literal = str(value) if isinstance(value, float) else json.dumps(value)
            table.append(f"{field} = {literal}")
        tables.append("\n".join(table) + "\n")
    return "\n".join(tables)
