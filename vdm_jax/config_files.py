"""Config files on a command line: --config=configs/NAME.py[:variant] and fields."""

import contextlib
import difflib
import itertools
import re
import runpy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm_jax import migration
from vdm_jax.errors import UserError
from vdm_jax.files import user_path


def load_module(path: str, flag: str) -> dict[str, Any]:
    """Run a config file, return its names; UserError if it is no config.

    flag: name of the flag, for messages.
    """
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path("configs").glob("*.py")))
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--{flag}={path}: no such file{hint}")
    names = runpy.run_path(path)
    if "get_config" not in names:
        raise UserError(f"{path} is not a config: it defines no get_config()")
    return names


def check_config_file(value: str) -> None:
    """Raise UserError unless the file exists and has the variant.

    It runs here once, so that a bug in it keeps its traceback. value: of --config.
    """
    path, _, variant = value.partition(":")
    module = load_module(path, "config")
    variants = module.get("VARIANTS", ("",))
    if variant not in variants:
        known = ", ".join(repr(v) for v in variants if v) or "none"
        raise UserError(f"{path} has no variant {variant!r}; it has: {known}")
    if variant:
        module["get_config"](variant)
    else:
        module["get_config"]()


def define_config_flag(
    values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> None:
    """Define the flag --config; its fields are read from argv, by default sys.argv."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "configs/NAME.py[:variant]; --config.a.b=value changes a field",
        flag_values=values,
        sys_argv=argv,
    )


def parse_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse a command line as absl does; return the words that are no flags.

    Raises:
      UserError: a retired or unknown flag, a wrong value, or a wrong config file.
    """
    argv = list(argv)
    command = Path(argv[0]).stem
    for word in argv[1:]:
        if word.startswith("-") and (renaming := migration.new_flag(word, command)):
            raise UserError(renaming)
    for at, flag in enumerate(argv[1:], 1):
        name, equals, value = flag.partition("=")
        if name not in ("--config", "-config"):
            continue
        if not equals:  # the value is the next argument
            at += 1
            value = argv[at] if at < len(argv) else ""
        value = str(user_path(value, "--config"))
        check_config_file(value)
        argv[at : at + 1] = [name + equals + value if equals else value]
    with _explain_errors():
        return values(argv)


@contextlib.contextmanager
def _explain_errors() -> Iterator[None]:
    """Turn the errors of absl and ml_collections for a wrong flag into a UserError."""
    try:
        yield
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        inner: object = error
        while isinstance(inner, Exception) and inner.args:  # the first message
            inner = inner.args[0]
        message = " ".join(str(inner).split())
        if isinstance(error, AttributeError | KeyError):
            message = f"the config has no field {message}"
        raise UserError(message) from error


def take_config_flags(
    arguments: Iterable[str], default: ConfigDict | None = None
) -> tuple[Any, list[str]]:
    """Split a command line into its config and the other arguments.

    Without --config=FILE the config is the default, with the fields that are given.
    """
    own = []
    rest = []
    words = iter(arguments)
    for word in words:
        if re.match("--?config([.=]|$)", word):
            own += [word, *itertools.islice(words, "=" not in word)]
        else:
            rest.append(word)
    values = flags.FlagValues()
    argv = ["", *own]
    if default is None or any(re.match("--?config(=|$)", word) for word in own):
        define_config_flag(values, argv)
    else:
        with _explain_errors():
            config_flags.DEFINE_config_dict(
                "config", default, flag_values=values, sys_argv=argv
            )
    parse_flags(values, argv)
    return values["config"].value, rest
