"""Commands import nothing from the current folder, which may hold data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vdm_jax

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Change to a folder with modules that end the importing process."""
    for name in ("json", "tempfile", "numpy", "random", "jax"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def test_a_command_imports_nothing_from_the_current_folder(hostile, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f":{ROOT}:.")
    done = subprocess.run(
        [sys.executable, "-m", "vdm_jax.scalars"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_child_processes_import_nothing_from_there_either(hostile, monkeypatch):
    """Data workers are started with python -c."""
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


def test_other_programs_keep_their_import_path(hostile, monkeypatch):
    (hostile / "mine.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")
    code = "import vdm_jax, mine; print(vdm_jax.import_path())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) in done.stdout and f"'{hostile}'" not in done.stdout


def test_a_deleted_current_folder(tmp_path, monkeypatch):
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    os.rmdir(deleted)
    assert str(deleted) not in vdm_jax.import_path()
