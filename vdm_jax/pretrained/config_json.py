"""Values of a config.json of another library, checked: it may declare anything."""

import dataclasses
from pathlib import Path
from typing import Any

from vdm_jax import files
from vdm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The values of a file; errors name it."""

    path: Path
    values: dict[str, Any]

    def number(
        self, key: str, default: Any = None, least: float = 1, most: float = 1 << 24
    ) -> Any:
        """Return a number of the type of its bounds.

        Raises UserError for another type, and for a number beyond the bounds.
        """
        value = self.values.get(key, default)
        if type(least) is float and type(value) is int:
            value = float(value)
        self._check_number(key, value, value, least, most)
        return value

    def numbers(self, key: str, default: Any, most: float = 1 << 24) -> tuple[int, ...]:
        """Return a list of positive integers, at least one."""
        value = self.values.get(key, default)
        for item in value if isinstance(value, list | tuple) and value else [None]:
            self._check_number(key, value, item, 1, most)
        return tuple(value)

    def one_of(self, key: str, choices: tuple[Any, ...]) -> Any:
        """Return a value with supported choices; the first is the default."""
        value = self.values.get(key, choices[0])
        if value not in choices:
            supported = " or ".join(map(str, choices))
            raise UserError(f"{self.path}: {key}={value!r:.40}: {supported}")
        return value

    def _check_number(self, key, value, item, least, most) -> None:
        if type(item) is not type(least) or not least <= item <= most:
            raise UserError(
                f"{self.path}: {key}={value!r:.40}: a number from {least} to {most}"
            )


def read(path: Path) -> ConfigFile:
    """Read a JSON object. Raises UserError for a missing or invalid file."""
    try:
        values, reason = files.read_json(path), "not a JSON object"
    except (OSError, files.CorruptFile) as error:
        values, reason = None, getattr(error, "strerror", None) or error
    if not isinstance(values, dict):
        raise UserError(f"{path} cannot be read: {reason}")
    return ConfigFile(path, values)
