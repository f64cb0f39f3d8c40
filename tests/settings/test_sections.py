"""Every setting is declared once: in the config, refused out of range, in the docs."""

import ast
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import base, distill_shapes, shapes
from vdm_jax import codec, conditions, networks, sampling, settings
from vdm_jax.errors import UserError
from vdm_jax.settings import __main__ as page
from vdm_jax.settings.sections import Level
from vdm_jax.training import checks

ROOT = Path(__file__).parents[2]
KINDS = {"train": settings.TRAINING, "distill": settings.DISTILLATION}
EVERY = [
    pytest.param(kind, section, field, id=f"{kind}-{section}.{field.name}")
    for kind, sections in KINDS.items()
    for section in sections
    for field in settings.settings_of(sections[section]).values()
]
every_setting = pytest.mark.parametrize(("kind", "section", "field"), EVERY)


def config_of(kind: str) -> Any:
    """Return a config of all sections that a command takes, of values of any type."""
    module = shapes if kind == "train" else distill_shapes
    config = module.get_config("smoke").to_dict()
    if kind == "train":
        for name in settings.OPTIONAL:
            config[name] = settings.section_dict(settings.TRAINING[name]).to_dict()
    return ConfigDict(config, type_safe=False)


def refuse(kind: str, config: Any) -> str:
    """Return the one line by which a command refuses a config."""
    with pytest.raises(UserError) as refusal:
        if kind == "train":
            checks.check_config(config)
        settings.check_config(config, KINDS[kind])
    message = str(refusal.value)
    assert "\n" not in message and refusal.value.status == 2
    return message


def names_of(field: dataclasses.Field) -> tuple:
    """Return the names that a field may have, of the table that it declares."""
    table = field.metadata["choices"]
    if not isinstance(table, str):
        return tuple(table)
    module, _, name = table.rpartition(".")
    exec(f"from vdm_jax.{module} import {name}", found := {})
    return tuple(found[name])


def numbers_of(field: dataclasses.Field) -> tuple[float, float]:
    """Return the lowest and the highest value that a field declares."""
    low, high = field.metadata["low"], field.metadata["high"]
    if isinstance(high, str):
        from vdm_jax.diffusion.samplers import MAX_STEPS

        assert high == "diffusion.samplers.MAX_STEPS"
        high = MAX_STEPS
    return low, high


def wrong_values(field: dataclasses.Field) -> list:
    """Return values of another type, and of the type those that are not allowed."""
    wrong: list = [{"a": 1}]
    text = repr(field.type)
    if field.metadata["low"] is not None:
        low, high = numbers_of(field)
        numbers = [low - 1, math.nan] + [high * 2 + 1] * math.isfinite(high)
        if "tuple" not in text:
            return wrong + [*numbers, "x"] + [True] * (field.type is int)
        size = 3 if "..." in text else 2
        too_many = [] if "..." in text else [(low,) * 3]
        return wrong + [(number,) * size for number in numbers] + [*too_many, "x", low]
    if field.metadata["choices"]:
        if "tuple" in text:
            return wrong + [("nonsense",), "nonsense", (1,)]
        return wrong + ["nonsense", 12, None]
    if field.type is bool:
        return wrong + [1, "True"]
    if field.type is str:
        return wrong + [3, None, ("a",)]
    return wrong + [3, "x", (3,), ((3,),)]


@every_setting
def test_it_has_a_meaning_and_its_numbers_have_a_range(kind, section, field):
    meaning = field.metadata["meaning"]
    assert meaning and "\n" not in meaning and not meaning.endswith(".")
    if "int" in repr(field.type) or "float" in repr(field.type):
        assert field.metadata["choices"] or field.metadata["low"] is not None


@every_setting
def test_it_is_in_the_config_with_its_default(kind, section, field):
    config = base.base() if kind == "train" else base.distillation()
    if section in settings.OPTIONAL:
        assert section not in config
        return
    values = config[section] if section else config
    assert values[field.name] == getattr(KINDS[kind][section], field.name)
    assert not section or {*values} == {*settings.settings_of(KINDS[kind][section])}


@every_setting
def test_what_it_may_not_be_is_refused_with_what_would_be_right(kind, section, field):
    for value in wrong_values(field):
        config = config_of(kind)
        (config[section] if section else config)[field.name] = value
        message = refuse(kind, config)
        name = f"{section}.{field.name}".removeprefix(".")
        assert message.startswith(f"config.{name}")
        if name != "network.levels":
            assert field.metadata["meaning"] in message
        if field.metadata["low"] is not None:
            low, high = numbers_of(field)
            assert f"from {low} to {high}" in message
        for choice in names_of(field):
            assert str(choice) in message


@every_setting
def test_its_ends_and_its_names_are_allowed(kind, section, field):
    values = names_of(field)
    if field.metadata["low"] is not None:
        values = numbers_of(field)
    if "tuple" in repr(field.type):
        values = ()
    for value in values:
        config = config_of(kind)
        (config[section] if section else config)[field.name] = value
        settings.check_config(config, KINDS[kind])


@every_setting
def test_it_is_required(kind, section, field):
    config = config_of(kind)
    del (config[section] if section else config)[field.name]
    name = f"{section}.{field.name}".removeprefix(".")
    with pytest.raises(UserError, match=f"config lacks {name}$"):
        settings.check_config(config, KINDS[kind])


def test_the_docs_are_what_the_command_prints():
    text = (ROOT / "docs" / "settings.md").read_text()
    assert text == "\n".join(page.page()) + "\n"
    for kind, section, field in (each.values for each in EVERY):
        title = {"train": "## train.py", "distill": "## distill.py"}
        name = f"{section}.{field.name}".removeprefix(".")
        _, _, rest = text.partition(title[kind])
        assert f"\n| `{name}` | " in rest.split("\n## ")[0]


@pytest.mark.parametrize("section", settings.TRAINING)
def test_another_field_is_refused(section):
    config = config_of("train")
    if not section:  # sections of others stand there
        config.fps = {}
        return settings.check_config(config, settings.TRAINING)
    config[section].other = 1
    assert (
        refuse("train", config) == f"config.{section}.other: there is no such setting"
    )


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({}, r"levels\[0\] lacks channels: an integer from 1"),
        ({"channels": 0, "blocks": 1}, r"levels\[0\].channels=0: an integer from 1"),
        ({"channels": 8, "blocks": 1, "layers": ("x",)}, "one of spatial_attention"),
        (
            {"channels": 8, "blocks": 1, "layer": ()},
            "a dict of channels, blocks, layers",
        ),
        (3, "a dict of channels"),
    ],
)
def test_a_level_of_the_network_is_checked(level, message):
    config = config_of("train")
    config.network.levels = ({"channels": 8, "blocks": 1}, level)[::-1]
    with pytest.raises(UserError, match=message):
        settings.check_config(config, settings.TRAINING)


def test_values_of_json_and_of_numpy_are_allowed():
    np = pytest.importorskip("numpy")
    config = config_of("train")
    config.train.trainable = [[".*", True]]
    config.stage.augmentation_time = [0, 0.5]
    config.train.steps, config.train.learning_rate = np.int64(5), np.float32(0.1)
    settings.check_config(config, settings.TRAINING)


def test_a_row_that_is_added_to_a_table_counts_at_once(monkeypatch):
    config = config_of("train")
    config.codec.kind = "mine"
    assert "causal_autoencoder (" in refuse("train", config)
    monkeypatch.setitem(codec.CODECS, "mine", codec.Codec)
    settings.check_config(config, settings.TRAINING)


def test_a_network_of_another_kind_has_its_own_fields(monkeypatch):
    config = config_of("train")
    config.network = {"kind": "mine", "width": 3}
    refuse("train", config)
    monkeypatch.setitem(networks.NETWORKS, "mine", None)
    settings.check_config(config, settings.TRAINING)


def own_fields(cls: type) -> set[str]:
    """Return the fields that a class declares itself."""
    return set(vars(cls).get("__annotations__", {}))


def test_no_setting_stands_a_second_time():
    """configs/base.py has no values, and classes with settings inherit them."""
    tree = ast.parse((ROOT / "configs" / "base.py").read_text())
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name != "smoke":
            _, *code = function.body  # the first is the docstring
            nodes = itertools.chain.from_iterable(map(ast.walk, code))
            values = [n.value for n in nodes if isinstance(n, ast.Constant)]
            assert not values
    declared = {
        name
        for sections in (*KINDS.values(), {"": Level})
        for section in sections.values()
        for name in settings.settings_of(section)
    }
    assert own_fields(sampling.Settings) == set()
    assert own_fields(networks.unet3d.UNetSpec) == {"out_channels"}
    assert own_fields(conditions.LowResolution) & declared == set()
