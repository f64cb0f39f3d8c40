"""Old names: stored files are read under the new ones, command lines name them."""

import importlib
import json
import re
from pathlib import Path

import pytest
from absl import flags

from configs import clip_small, folder, shapes, sprites
from vdm_jax import config_files, migration, runs, settings
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError

ROOT = Path(__file__).parents[1]
CHANGED_NAMES = [row for row in migration.RENAMED if row.old != row.new]
NEW_CONFIGS = {"sd": sprites, "image_text": clip_small}  # by kind of network
VALUES = {"metric": "joint", "guidance_range": [0.0, 2.0]}
SHIPPED = sorted(
    path.parent
    for folder in ("models", "cascades")
    for path in (ROOT / folder).rglob("params.safetensors")
)


def present_fields(section: str) -> set[str]:
    """Names of a section in the present configs; of the levels, those of one level."""
    if section == "network.levels":
        return {"channels", "blocks", "layers", "layers_after_last_block_only"}
    configs = settings.TRAINING, settings.DISTILLATION
    return {
        n for c in configs if section in c for n in settings.settings_of(c[section])
    }


def ids(row: migration.RenamedField) -> str:
    return f"{row.section}.{row.old}"


@pytest.mark.parametrize("row", CHANGED_NAMES, ids=ids)
def test_the_new_name_is_a_field_and_the_old_one_is_none(row):
    assert row.new in present_fields(row.section)
    assert row.old not in present_fields(row.section)


def test_no_field_is_renamed_twice():
    """A second pass over a file changes nothing: no new name is another's old one."""
    rows = {(row.section, row.old) for row in CHANGED_NAMES}
    assert len(rows) == len(CHANGED_NAMES)
    assert not rows & {(row.section, row.new) for row in CHANGED_NAMES}


@pytest.mark.parametrize("row", migration.RENAMED, ids=ids)
def test_a_stored_field_is_read_under_its_new_name(row):
    value = VALUES.get(row.old, 0.25)
    if row.section == "network.levels":
        fields = {"levels": [{"channels": 8, row.old: value}]}
        (level,) = migration.migrate({"network": fields})["network"]["levels"]
        assert level == {"channels": 8, row.new: value}
        return
    stored = {row.section: {row.old: value, "other": 1}}
    if row.requires:
        stored[row.section][row.requires] = 0.0
    section = migration.rename(stored)[row.section]
    assert section[row.new] == row.convert(value) and section["other"] == 1
    assert row.old == row.new or row.old not in section
    assert row.old in stored[row.section]  # the caller's dict is left as it was


def without_conversion(value):
    """Return a value as version 0.1 would have stored it, for every kind of row."""
    if isinstance(value, list):
        return [without_conversion(each) for each in value]
    metrics = {"r2_to_teacher": "agreement", "shape_accuracy": "joint"}
    return metrics.get(value, value) if isinstance(value, str) else value


def as_stored_by_0_1(config) -> dict:
    """Return a config's fields under their old names, and old values of guidance."""
    fields = json.loads(json.dumps(config.to_dict()))
    for row in migration.RENAMED:
        sections = (
            fields["network"].get("levels", [])
            if row.section == "network.levels" and "network" in fields
            else [fields.get(row.section, {})]
        )
        for section in sections:
            if row.new not in section:
                continue
            value = without_conversion(section.pop(row.new))
            if row.convert is migration.scale:
                value = [s - 1 for s in value] if isinstance(value, list) else value - 1
            section[row.old] = value
    return fields


# Those of tuning are stored with the fields of another model, and are younger.
NOT_STORED = {"base", "control", "finetune_image", "tune_a_video"}
ALL_CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("name", sorted(ALL_CONFIGS - NOT_STORED))
def test_a_config_stored_by_0_1_equals_the_present_one(name):
    """So a run that was started then resumes without a change of its config."""
    module = importlib.import_module(f"configs.{name}")
    for variant in module.VARIANTS:
        config = module.get_config(*[variant] if variant else [])
        present = json.loads(json.dumps(config.to_dict()))
        old = as_stored_by_0_1(config)
        assert old != present
        read = migration.migrate(old) if "network" in old else migration.rename(old)
        if name == "vdm" and variant == "kinetics600":  # a weight that was the default
            assert read["sample"].pop("reconstruction_weight") is None
            assert present["sample"].pop("reconstruction_weight") == 9.0
        assert read == present


def test_a_fingerprint_stored_by_0_1_equals_the_present_one():
    class Source(list):
        name, names, sizes = "folder", ["a"], [1]

    config, source = folder.get_config(), Source("a")
    present = pipeline.fingerprint(config, source)
    assert present["joint_image_frames"] == 4
    old = dict(present)
    for former, name in migration.FINGERPRINT.items():
        old[former] = old.pop(name)
    assert migration.migrate_fingerprint(old) == present


def test_a_new_name_in_a_file_counts_more_than_the_old_one():
    fields = migration.rename({"train": {"ema": 0.5, "ema_decay": 0.9}})
    assert fields == {"train": {"ema_decay": 0.9}}


def test_reading_twice_changes_nothing():
    stored = json.loads((ROOT / "models/shapes/config.json").read_text())
    once = migration.migrate(stored)
    assert migration.migrate(once) == once != stored


@pytest.mark.parametrize("damaged", [None, [1], "x", {"levels": 3}, {"levels": [3]}])
def test_what_is_no_section_is_left_as_it_is(damaged):
    assert migration.rename({"network": damaged}) == {"network": damaged}


@pytest.mark.parametrize("row", CHANGED_NAMES, ids=ids)
def test_an_old_flag_is_refused_and_its_new_name_is_said(row, capsys):
    section = row.section.replace("levels", "levels[0]")
    name = "distill_shapes" if row.section == "distill" else "shapes"
    argv = ["", f"--config={ROOT}/configs/{name}.py", f"--config.{section}.{row.old}=1"]
    values = flags.FlagValues()
    config_files.define_config_flag(values, argv)
    expected = f"--config.{section}.{row.old} is --config.{section}.{row.new} now"
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        config_files.parse_flags(values, argv)
    assert caught.value.status == 2 and "\n" not in str(caught.value)


def test_a_flag_that_is_no_old_name_has_no_new_one():
    for flag in ("--config.train.steps=3", "--config.train.ema_decay=0.9", "--config"):
        assert migration.new_flag(flag) == ""


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_shipped_config_has_the_fields_of_a_new_one(folder):
    """Each is stored with old names; after reading, no field is unknown."""
    config = runs.read_config(folder)
    new = NEW_CONFIGS.get(config.network.get("kind"), shapes).get_config()
    if "stage" in config:
        assert {*config.stage} == {*settings.settings_of(settings.TRAINING["stage"])}
    for section in ("data", "network", "conditioning", "diffusion", "train", "sample"):
        assert {*config[section]} == {*new[section]}, section


def rows_of(section: str) -> list[tuple[str, str]]:
    """Return the first two cells of each row of a section of docs/migration.md."""
    text = (ROOT / "docs" / "migration.md").read_text()
    (body,) = (s for s in text.split("\n## ") if s.startswith(section + "\n"))
    return re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", body, re.M)


def test_every_renamed_field_is_documented():
    expected = set()
    for row in migration.RENAMED:
        section = row.section.replace("levels", "levels[]")
        expected.add((f"`{section}.{row.old}`", f"`{section}.{row.new}`"))
    assert set(rows_of("Config fields")) == expected


def test_every_retired_flag_is_documented():
    documented = dict(rows_of("Flags"))
    for name, (new, _) in migration.RETIRED_FLAGS.items():
        if not name.startswith("config."):
            expected = f"`--{new}`" if new else "gone"
            assert documented[f"`--{name}`"].startswith(expected)


def test_documented_modules_exist():
    for _, cell in rows_of("Modules"):
        package = ""
        for name in re.findall(r"`([\w/]+)`", cell):
            package = name.rpartition("/")[0] if "/" in name else package
            path = "/".join(filter(None, (package, name.rstrip("/").split("/")[-1])))
            folders = ROOT / "vdm_jax", ROOT
            assert any(
                (folder / f"{path}.py").is_file() or (folder / name).is_dir()
                for folder in folders
            ), path


def test_documented_functions_exist():
    source = "\n".join(p.read_text() for p in (ROOT / "vdm_jax").rglob("*.py"))
    for _, cell in rows_of("Functions and classes"):
        for name in re.findall(r"`([\w.]+)`", cell):
            *_, last = name.split(".")
            assert re.search(rf"(def|class) {last}\b|^ *{last}\b.* [:=]|^ *{last}:",
                             source, re.M), name  # fmt: skip
