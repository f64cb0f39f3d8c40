"""Flags of all commands: paths, numbers, texts, retired names, combinations."""

import pytest
from absl import flags
from absl.flags import BooleanParser, FloatParser
from absl.flags._argument_parser import NumericParser

from tests.run_command import refused
from vdm_jax import migration, runs, settings
from vdm_jax.commands.flags import SAMPLER_SETTINGS, check_text, present_values
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS
WORDS = {  # text flags that are no paths
    "coordinator", "sampler", "sampling_schedule", "guidance_schedule", "cfg_mode",
    "label", "reconstruction_schedule", "tiles", "negative_label", "negative_prompt",
    "prompt", "last_stage", "size", "guidance_scale", "compare_steps", "strength",
    "report_commands", "format", "dtype", "lora", "system", "set", "control_from",
    "mesh", "profile",
}  # fmt: skip


COMMANDS = ("train", "distill", "sample", "edit", "evaluate", "export")


@pytest.mark.parametrize("command", ["train", "sample", "edit", "evaluate", "distill"])
def test_a_command_without_flags_says_what_it_needs(command):
    assert "--workdir" in refused(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_is_a_path_refuses_an_object_store(flags_of, command):
    """A flag of text is a path, or is in WORDS: none can be forgotten.

    A run may be in a bucket, except for the folder of a distillation.
    """
    paths = 0
    runs_in_buckets = {"teacher"} if command == "distill" else {"workdir"}
    for name, flag in flags_of(command).items():
        if isinstance(flag.parser, NumericParser | BooleanParser) or name == "config":
            continue
        if name in WORDS or name.startswith("config."):
            continue
        paths += 1
        answer = "gs:// is not supported"
        if name in runs_in_buckets:
            answer = "give gs://BUCKET/PATH or s3://BUCKET/PATH"
        with pytest.raises(UserError, match=f"--{name}=gs://b: {answer}"):
            flag.parser.parse("gs://b")
        assert "~" not in str(flag.parser.parse("~/x"))
    assert paths


def test_every_field_of_a_config_that_is_a_path_refuses_an_object_store():
    """A field of text is one of some names, a path, or is listed here."""
    words = {
        "caption", "edited_caption", "guidance_schedule", "init_checksum", "label",
        "mesh", "text_encoder_sha256", "tfds_name",
    }  # fmt: skip
    for sections in (settings.TRAINING, settings.DISTILLATION):
        for section, declared in sections.items():
            for name, field in settings.settings_of(declared).items():
                if field.type is not str or field.metadata["choices"] or name in words:
                    continue
                path = f"{section}.{name}".removeprefix(".")
                assert path in runs.PATH_FIELDS
                changed = settings.compose(sections)
                changed.update_from_flattened_dict({path: "s3://b/x"})
                with pytest.raises(UserError, match=f"config.{path}=s3://b/x"):
                    runs.resolve_paths(changed)


@pytest.mark.parametrize("command", ["sample", "edit", "evaluate"])
def test_flags_of_settings_come_from_their_declarations(flags_of, command):
    """Kind, help and default; the value is checked by the name of the flag."""
    declared = settings.settings_of(settings.TRAINING["sample"])
    parsers = {
        int: flags.IntegerParser, float: FloatParser, str: flags.ArgumentParser,
    }  # fmt: skip
    defined = flags_of(command)
    FLAGS.mark_as_parsed()
    assert {*SAMPLER_SETTINGS} <= defined.keys() & declared.keys()
    for name in SAMPLER_SETTINGS:
        field, flag = declared[name], defined[name]
        assert isinstance(flag.parser, parsers[field.type]) and flag.value is None
        assert field.metadata["meaning"] in flag.help
        assert present_values([name]) == {}
        flag.parse({int: "-1", float: "-1.0", str: "nonsense"}[field.type])
        if name in ("guidance_schedule", "mesh"):  # a form that is read later
            continue
        with pytest.raises(UserError, match=rf"^--{name}=.*: (one of|an? \w+ from)"):
            present_values([name])


@pytest.mark.parametrize("value", ["nan", "-NaN"])
def test_no_number_is_no_number(flags_of, value):
    for flag in flags_of("sample").values():
        if isinstance(flag.parser, FloatParser):
            with pytest.raises(ValueError):
                flag.parser.parse(value)


def test_bytes_that_are_not_utf8_are_paths_only(flags_of):
    flags_of("sample")
    FLAGS.mark_as_parsed()
    for name, value in (("label", "caf\udce9"), ("prompt", "a\0b"), ("out", "\udce9")):
        FLAGS[name].parse(value)
        if name == "out":
            check_text(name)
            continue
        with pytest.raises(UserError, match=f"--{name}="):
            check_text(name)
        FLAGS[name].unparse()


OLD_FLAGS = sorted(name for name in migration.RETIRED_FLAGS if "." not in name)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_new_name_of_a_retired_flag_is_a_flag_and_the_old_one_is_none(
    flags_of, command
):
    assert not flags_of(command).keys() & set(OLD_FLAGS)


def test_every_new_name_is_a_flag_of_some_command(flags_of):
    known = {*flags_of("sample"), *flags_of("edit"), *flags_of("evaluate")}
    assert {migration.RETIRED_FLAGS[old][0] for old in OLD_FLAGS} <= known | {""}


@pytest.mark.parametrize("old", OLD_FLAGS)
def test_a_retired_flag_answers_with_one_line(old):
    new, note = migration.RETIRED_FLAGS[old]
    line = migration.new_flag(f"--{old}")
    assert line.startswith(f"--{old} is ") and "\n" not in line
    assert (f"--{new} now" if new else "gone") in line and note in line


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--guidance=1", "--guidance is --guidance_scale now; it is the scale s of"),
        ("-fvd", "--fvd is --network_metrics now"),
        ("--nowindows", "--nowindows is --nomultidiffusion now"),
    ],
)
def test_the_line_names_the_new_flag(flag, line):
    assert migration.new_flag(flag).startswith(line)


@pytest.mark.parametrize(
    "flag", ["--guidance_scale=2", "--num=3", "--prompt", "frames"]
)
def test_a_flag_of_today_is_not_retired(flag):
    assert migration.new_flag(flag) == ""


def test_a_flag_that_moved_is_one_of_the_other_command(flags_of):
    moved = set(migration.MOVED_FLAGS)
    assert flags_of("edit").keys() >= moved
    assert not flags_of("sample").keys() & moved
    for flag in moved:
        line = f"--{flag} is edit.py --{flag} now"
        assert migration.new_flag(f"--{flag}=x", "sample") == line
        assert migration.new_flag(f"--{flag}=x", "edit") == ""


def test_a_retired_flag_that_moved_names_both():
    assert migration.new_flag("--between", "edit") == "--between is --interpolate now"
    line = "--between is edit.py --interpolate now"
    assert migration.new_flag("--between", "sample") == line


def test_a_command_refuses_a_retired_flag():
    assert "edit.py --inpaint now" in refused("sample", "--inpaint=a.mp4")
    line = refused("sample", "--workdir=models/shapes", "--out=/absent", "--guidance=1")
    assert line == f"error: {migration.new_flag('--guidance=1')}"
    assert "gone" in refused("sample", "--intermediate")
