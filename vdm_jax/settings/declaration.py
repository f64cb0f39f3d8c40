"""How a setting is declared, and what is made of the declaration.

A section of a config is a frozen dataclass, each field of which is one `setting`: its
type, default, meaning, and the range or the names that it may have. The config, the
flags of the commands, the checks with their messages and docs/settings.md are made of
it here.

A range or a table of names may be given as the path of an object of the library, such
as "vdm_jax.diffusion.samplers.SAMPLERS". It is imported where a value is checked or
printed, so that a row that is added to a table counts at once.
"""

import dataclasses
import functools
import importlib
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from vdm_jax.errors import UserError

Field = dataclasses.Field
Sections = Mapping[str, Any]  # name -> instance of its dataclass; "" is the top level


def setting(
    default: Any,
    meaning: str,
    low: float | str | None = None,
    high: float | str | None = None,
    *,
    choices: tuple | str = (),
    path: bool = False,
) -> Any:
    """Return a dataclass field that declares a setting.

    Args:
      default: always allowed. dataclasses.MISSING for a field that must be given; None
        for one that is filled in later.
      meaning: one line for messages, flags and docs.
      low, high: both included; of each number where the type is a tuple.
      choices: names, or the path of a table of them; of each text of a tuple.
      path: whether it names a file or a folder of this machine, "" for none.
    """
    rule = {"low": low, "high": high, "choices": choices, "path": path}
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rule})


def settings_of(declared: Any) -> dict[str, Field]:
    """Return the declared fields of a dataclass by their names."""
    fields = dataclasses.fields(declared)
    return {field.name: field for field in fields if "meaning" in field.metadata}


def section_dict(section: Any) -> ConfigDict:
    """Return a section of a config, not locked. A field of None is a placeholder.

    section: an instance of its dataclass, whose values are the defaults.
    """
    part = ConfigDict()
    for name, field in settings_of(section).items():
        value = getattr(section, name)
        part[name] = _empty(field) if value is None else value
    return part


def open_section(section: Any) -> ConfigDict:
    """Return a section whose fields are placeholders, filled in where none is set."""
    fields = settings_of(section).items()
    return ConfigDict({name: _empty(field) for name, field in fields})


def _empty(field: Field) -> FieldReference:
    """Return the placeholder of a field."""
    kind = value_type(field)
    return placeholder(typing.get_origin(kind) or kind)


def compose(sections: Sections) -> ConfigDict:
    """Return a config of these sections, not locked."""
    config = section_dict(sections[""])
    for name in sections.keys() - {""}:
        config[name] = section_dict(sections[name])
    return config


def value_type(field: Field) -> Any:
    """Return the type of a field's value; that of `float | None` is float."""
    first, *_ = _alternatives(field.type)
    return first


def _element(field: Field) -> Any:
    """Return the dataclass of which the field holds a tuple, else None."""
    arguments = typing.get_args(field.type)
    if arguments and dataclasses.is_dataclass(arguments[0]):
        return arguments[0]
    return None


def _alternatives(kind: Any) -> tuple:
    is_union = typing.get_origin(kind) is types.UnionType
    return typing.get_args(kind) if is_union else (kind,)


# --- checks --------------------------------------------------------------------------


def check_config(config: Any, sections: Sections) -> None:
    """Check the values of all sections that a config has.

    A section of the config that is not among `sections` is its owner's to check, and so
    are the fields of a network of another kind.

    Raises:
      UserError: a field is missing, or its value is not allowed.
    """
    for name, section in sections.items():
        if name and name not in config:
            continue
        values = config[name] if name else config
        prefix = f"{name}." if name else ""
        if not hasattr(values, "items"):
            raise UserError(f"config.{name}={values!r:.40}: a section")
        fields = settings_of(section)
        if name == "network" and values.get("kind") != section.kind:
            fields = {"kind": fields["kind"]}
        elif name and (unknown := set(values) - fields.keys()):
            raise UserError(f"config.{prefix}{min(unknown)}: there is no such setting")
        if missing := fields.keys() - set(values):
            raise UserError(f"config lacks {prefix}{min(missing)}")
        check(fields, values, f"config.{prefix}")


def check(fields: Mapping[str, Field], values: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError for the first value that is not allowed. prefix: of its name."""
    for name, field in fields.items():
        if name not in values:
            continue
        value = values[name]
        element = _element(field)
        if element and isinstance(value, list | tuple):
            for i, each in enumerate(value):
                _check_item(element, each, f"{prefix}{name}[{i}]")
        elif not _fits(field, field.type, value):
            rule = f"{allowed(field)} ({field.metadata['meaning']})"
            raise UserError(f"{prefix}{name}={value!r:.60}: {rule}")


def _check_item(declared: Any, item: Any, name: str) -> None:
    """Check one of several dicts, such as a level of the network."""
    fields = settings_of(declared)
    if not hasattr(item, "items") or set(item) - fields.keys():
        raise UserError(f"{name}={item!r:.60}: a dict of {', '.join(fields)}")
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in item:
            raise UserError(f"{name} lacks {field.name}: {allowed(field)}")
    check(fields, item, f"{name}.")


NUMBERS = {int: numbers.Integral, float: numbers.Real}  # of numpy too


def _fits(field: Field, kind: Any, value: Any) -> bool:
    """Whether a value, or an element of one, is of a type and within the field's rule.

    A tuple may be a list, as JSON has it. A float may be an integer, never NaN.
    """
    if len(kinds := _alternatives(kind)) > 1:
        return any(_fits(field, each, value) for each in kinds)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return False
        elements = typing.get_args(kind)
        if elements[1:] == (...,):
            elements = elements[:1] * len(value)
        fits = functools.partial(_fits, field)
        return len(value) == len(elements) and all(map(fits, elements, value))
    if not isinstance(value, NUMBERS.get(kind, kind)):
        return False
    if isinstance(value, bool) and kind is not bool:
        return False
    low, high = _resolve(field.metadata["low"]), _resolve(field.metadata["high"])
    if low is not None and kind in NUMBERS:
        return low <= value <= high
    # The default is compared first: most values need no import of the table.
    return value == field.default or not (names := choices(field)) or value in names


def choices(field: Field) -> tuple:
    """Return the names that a field may have, () for any."""
    names = tuple(_resolve(field.metadata["choices"]) or ())
    is_one_more = (
        names and isinstance(field.default, str) and field.default not in names
    )
    return (field.default, *names) if is_one_more else names


def _resolve(value: Any) -> Any:
    """Return the object of a path in the library; other values as they are."""
    if not isinstance(value, str):
        return value
    module, _, name = value.rpartition(".")
    return getattr(importlib.import_module(f"vdm_jax.{module}"), name)


# --- texts ---------------------------------------------------------------------------

TYPE_NAMES = {
    int: "an integer", float: "a number", bool: "True or False", str: "text",
    types.NoneType: "None",
}  # fmt: skip


def allowed(field: Field, kind: Any = None) -> str:
    """Return what a field may be, as "a number from 0 to 1". kind: of an element."""
    kind = field.type if kind is None else kind
    if len(kinds := _alternatives(kind)) > 1:
        return " or ".join(allowed(field, each) for each in kinds)
    if typing.get_origin(kind) is tuple:
        elements = typing.get_args(kind)
        texts = ("..." if e is ... else allowed(field, e) for e in elements)
        return f"({', '.join(texts)})"
    if kind in (str, int) and (names := choices(field)):
        return f"one of {', '.join(str(name) or repr(name) for name in names)}"
    if kind in NUMBERS and field.metadata["low"] is not None:
        low, high = _resolve(field.metadata["low"]), _resolve(field.metadata["high"])
        return f"{TYPE_NAMES[kind]} from {low} to {high}"
    return TYPE_NAMES.get(kind, "a dict")


def rows(section: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, default, allowed values, meaning) of every setting of a section."""
    for name, field in settings_of(section).items():
        default = repr(getattr(section, name)) if hasattr(section, name) else "required"
        yield f"{prefix}{name}", default, allowed(field), field.metadata["meaning"]
        if element := _element(field):
            yield from rows(element, f"{prefix}{name}[].")
