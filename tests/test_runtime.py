"""How commands start and end: vdm_jax/runtime.py."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vdm_jax import runtime
from vdm_jax.data import __main__ as data_command
from vdm_jax.errors import UserError
from vdm_jax.text import __main__ as text_command

ROOT = Path(__file__).parents[1]


def end_of(main, capfd):
    """Return (status, standard error) of a command."""
    left = []
    streams, handler = (sys.stdout, sys.stderr), signal.getsignal(signal.SIGINT)
    try:
        runtime.run(main, left.append)
    finally:
        sys.stdout, sys.stderr = streams
        signal.signal(signal.SIGINT, handler)
    return left[0], capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("this is wrong", 4), 4, "error: this is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError("Unable to allocate 3 TiB"), 2, "Unable to allocate 3 TiB"),
        (OSError(errno.ENOMEM, "no"), 2, "out of memory"),
        (PermissionError(errno.EACCES, "no", "/a/b"), 2, "/a/b cannot be used (perm"),
        (OSError(errno.ESTALE, "no", b"/a\n"), 2, "/a\\n cannot be used (stale"),
        (RuntimeError("can't start new thread"), 2, "out of memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\n"), 2, "9 GiB"),
    ],
)
def test_an_error_is_one_line_and_a_status(capfd, error, status, line):
    def main():
        raise error

    ended, said = end_of(main, capfd)
    assert ended == status and line in said and said.count("\n") == 1


@pytest.mark.parametrize("kind", [RuntimeError, KeyError])
def test_ctrl_c_is_ctrl_c_where_a_library_raises_another_error(capfd, kind):
    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise kind("of a callback") from error

    assert end_of(main, capfd) == (130, "interrupted\n")


@pytest.mark.parametrize("kind", [RuntimeError, OSError, FileNotFoundError])
def test_a_bug_keeps_its_traceback(capfd, kind):
    def main():
        raise kind("a bug")

    with pytest.raises(kind, match="a bug"):
        end_of(main, capfd)


def test_a_current_folder_that_is_gone_is_one_line(capfd, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status, said = end_of(lambda: Path("a").absolute(), capfd)
    assert status == 2 and "current folder was deleted" in said


BEGUN = """
import os, signal, sys
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", "vdm_jax.doctor"]
class Jax:
    def find_spec(self, name, path=None, target=None):
        if name == "jax" and sys.argv[1:]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Jax())
import vdm_jax, tqdm
"""


@pytest.mark.parametrize(
    ("variable", "status", "line"),
    [
        (
            "JAX_ENABLE_X64=maybe",
            2,
            "error: JAX does not start: .*JAX_ENABLE_X64=maybe",
        ),
        ("JAX_NUM_CPU_DEVICES=x", 2, "error: JAX does not start: .*=x"),
        ("TQDM_ASCII=x", 0, ""),
        ("TQDM_MININTERVAL=x", 0, ""),
        ("ctrl-c=1", 130, "interrupted"),
    ],
)
def test_what_ends_the_imports_of_a_command_is_one_line(variable, status, line):
    name, _, value = variable.partition("=")
    code = BEGUN.replace('["-m"]', '["-m", "x"]') if name == "ctrl-c" else BEGUN
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
    )  # fmt: skip
    assert done.returncode == status
    assert re.fullmatch(line, done.stderr.strip()), done.stderr


STREAMS = """
import os, sys
from vdm_jax import runtime
def main():
    handle = os.open(os.devnull, os.O_RDONLY)
    for line in range(20000):
        print("a line, and what is not ASCII: \\u2028 \\udce9 \\U0001f600")
    print("and an error", file=sys.stderr)
    return 7 if handle > 2 else 8
runtime.run(main)
"""


@pytest.mark.parametrize(
    ("shell", "encoding"),
    [
        ("| head -n 1 >&2", "utf-8"),
        (">&- 2>&- <&-", "utf-8"),
        (">/dev/full 2>/dev/full", "utf-8"),
        (">/dev/null", "ascii:strict"),
    ],
    ids=["no reader", "closed", "full", "ascii"],
)
def test_output_that_cannot_be_written_does_not_end_a_command(shell, encoding):
    line = f'"$1" -c "$2" {shell}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, STREAMS],
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr[-500:]
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("name", list(runtime.PINNED_JAX_SETTINGS))
def test_a_setting_that_changes_numbers_is_reset_with_a_warning(
    monkeypatch, capsys, name
):
    """JAX must have each of them, with these values where no variable is set."""
    monkeypatch.setenv(name.upper(), "other")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    put = {}
    monkeypatch.setattr(jax.config, "update", put.__setitem__)
    pinned = runtime.PINNED_JAX_SETTINGS[name]
    assert runtime.jax_setting(name) == pinned or "rank" in name  # the tests set it
    monkeypatch.setattr(runtime, "jax_setting", {name: "other"}.get)
    runtime.configure_jax()
    assert put[name] == pinned
    assert f"{name.upper()}=other" in capsys.readouterr().err


def test_platforms_that_do_not_start(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize\nbackend 'tpu'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(UserError, match="starts: Unable to .*JAX_PLATFORMS=tpu") as end:
        runtime.start_devices()
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("setting", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_variable_that_names_a_path_names_one_of_this_machine(monkeypatch, setting):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(setting, "gs://b")
    with pytest.raises(UserError, match=f"{setting}=gs://b"):
        runtime.compilation_cache_dir()


def test_a_cache_that_cannot_be_made_costs_a_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "xla"))
    put = {}
    monkeypatch.setattr(jax.config, "update", put.__setitem__)
    runtime.configure_jax()
    assert put["jax_compilation_cache_dir"] == ""
    assert "JAX_COMPILATION_CACHE_DIR" in capsys.readouterr().err


def test_every_path_of_an_argparse_command_refuses_an_object_store(capsys):
    """No command of the library, perf, experiments or reliability takes a bare Path."""
    for main, flags in (
        (data_command.main, ["check", "gs://b"]),
        (data_command.main, ["check", "a", "--cache_dir=gs://b"]),
        (data_command.main, ["check", "a", "--sheet=gs://b/s.png"]),
        (text_command.main, ["--captions=gs://b", "--out=a"]),
        (text_command.main, ["--captions=a", "--out=gs://b"]),
        (text_command.main, ["--captions=a", "--out=b", "--text_encoder=gs://b"]),
    ):
        try:
            status = main(flags)
        except SystemExit as end:  # of argparse
            status = end.code
        said = capsys.readouterr().err
        assert status == 2 and "gs:// is not supported" in said
    for folder in ("vdm_jax", "perf", "experiments", "reliability"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "gate.py":  # it runs other checkouts, without this library
                continue
            assert "type=Path" not in path.read_text("utf-8"), path


def test_hits_and_misses_of_the_compilation_cache_are_counted():
    programs = runtime.Programs()
    compiled = "/jax/core/compile/backend_compile_duration"
    programs.on_event("/jax/compilation_cache/compile_requests_use_cache")
    programs.on_event("/jax/compilation_cache/cache_hits")
    programs.on_duration(compiled, 3.0)  # of reading it
    assert (programs.hits, programs.misses) == (1, 0)
    programs.on_duration(compiled, 3.0)
    programs.on_duration(compiled, 0.1)  # too short to be kept
    programs.on_duration("/jax/core/compile/other", 3.0)
    assert (programs.hits, programs.misses) == (1, 1)
