"""A finished run, and the flags of a command, for the tests of commands."""

import importlib

import pytest
from absl import flags

from tests import small_model
from tests.run_command import SMOKE, call

FLAGS = flags.FLAGS


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Return the workdir of a finished run of the smallest model, not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "shapes"
    done = call("train", SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    return workdir


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    """Return the workdir of a small text model of random parameters."""
    return small_model.write_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def given_model(tmp_path_factory):
    """Return the workdir of the smallest model of given frames, random parameters."""
    folder = tmp_path_factory.mktemp("given") / "model"
    config = small_model.smoke_config()
    config.conditioning.clean_frames = (("random", 1.0),)
    small_model.write_model(folder, config)
    return folder


@pytest.fixture
def flags_of(monkeypatch):
    """Return a function from a command to its flags, which replace those defined."""
    importlib.import_module("vdm_jax.commands.main")  # defines the flags of absl
    before = set(FLAGS)

    def remove():
        for name in set(FLAGS) - before:
            delattr(FLAGS, name)

    def define(command):
        remove()
        module = importlib.import_module(f"vdm_jax.commands.{command}")
        monkeypatch.setattr(module, "run", lambda *_: None)
        module.main()
        return {name: FLAGS[name] for name in set(FLAGS) - before}

    yield define
    remove()
