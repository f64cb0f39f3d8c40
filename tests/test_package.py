"""What our commands import: nothing from the current folder, where data may lie."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vdm_jax

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A current folder whose modules end whoever imports them."""
    for name in ("json", "tempfile", "numpy", "random", "jax"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def test_a_module_of_ours_run_from_a_folder_of_others(hostile, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}:.")
    done = subprocess.run(
        [sys.executable, "-m", "vdm_jax.conditions.low_resolution"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_our_commands_start_does_not_look_there_either(hostile, monkeypatch):
    """A worker of the loader is a python -c."""
    code = (
        "import sys; sys.argv = ['-m']; sys.orig_argv = ['python', '-m', 'vdm_jax.x'];"
        f"sys.path[:] = ['', {str(hostile)!r}, {str(ROOT)!r}, *sys.path[1:]];"
        "import vdm_jax, json, subprocess; subprocess.run([sys.executable, '-c',"
        "'import json, sys; print(sys.path)'], check=True)"
    )
    monkeypatch.setenv("PYTHONPATH", ":")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert repr(str(hostile)) not in done.stdout and "''" not in done.stdout


def test_programs_of_others_keep_their_import_path(hostile, monkeypatch):
    (hostile / "mine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")
    code = "import vdm_jax, mine; print(vdm_jax.import_path())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) in done.stdout and f"'{hostile}'" not in done.stdout


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    assert str(gone) not in vdm_jax.import_path()
