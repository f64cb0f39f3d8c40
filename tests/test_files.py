"""Paths, atomic writes, JSON and text: vdm_jax/files.py."""

import errno
import os
import resource
import stat
import subprocess
import sys

import pytest

from vdm_jax import files
from vdm_jax.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/run",
        "s3://b",
        "hdfs://h/x",
        "S3:/b",
        "file:///tmp/x",
        "",
        "a\0b",
        "simplecache::s3://x/y",
        " gs://x",
        "./gs://x",
        "/data/gs://x",
    ],
)
def test_an_invalid_path_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="--workdir") as caught:
        files.user_path(text, "--workdir")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["take:1.mp4", "a[b]", "a\\b", "x/~/y", "a:b/c", "x/a:/b"]
)
def test_any_file_name_is_a_path(text):
    assert str(files.user_path(text, "--workdir")) == text


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/x", "--out") == tmp_path / "x"
    with pytest.raises(UserError, match="home"):
        files.user_path("~nobody-of-that-name/x", "--out")
    for home in ("gs://bucket/home", "relative/home"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UserError, match="home"):
            files.user_path("~/x", "--out")


def test_writes_are_atomic(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(KeyError), files.atomic_write(path, overwrite=True) as new:
        new.write_text("half")
        raise KeyError
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(UserError, match="exists"), files.atomic_write(path):
        pass


def test_a_new_file_has_the_mode_of_the_umask_and_replaces_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a").symlink_to(victim)
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"new", overwrite=True)
    finally:
        os.umask(before)
    assert victim.read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_name_of_the_maximal_length(tmp_path):
    files.write_bytes(tmp_path / ("n" * 255), b"x")


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_old_file(tmp_path):
    """RLIMIT_FSIZE gives EFBIG; a full disk gives ENOSPC."""
    path = tmp_path / "a.txt"
    files.write_bytes(path, b"old")
    code = (
        "import resource, signal, sys; from vdm_jax import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: files.write_bytes(sys.argv[1], b'x' * 100000, True)\n"
        "except files.UserError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True
    )
    assert "file too large" in done.stdout and "raise ulimit -f" in done.stdout, done
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on device, .* MB free"),
        (OSError(errno.EDQUOT, "x"), "disk quota exceeded, .* MB free"),
        (OSError(errno.EROFS, "x"), "read-only file system"),
        (OSError(errno.EIO, "x"), "input/output error"),
        (OSError("4096 requested and 512 written"), "4096 requested"),
        (RuntimeError("write() failed: No space left on device; at"), "no space left"),
        (ValueError("RESOURCE_EXHAUSTED [os_error_code='28']"), "no space left"),
    ],
)
def test_every_system_error_is_reported_in_one_line(tmp_path, error, words):
    with (
        pytest.raises(UserError, match=f"a.txt could not be written .{words}"),
        files.atomic_write(tmp_path / "a.txt"),
    ):
        raise error
    assert not os.listdir(tmp_path)


def test_a_bug_is_not_reported_as_a_system_error(tmp_path):
    with (
        pytest.raises(ValueError, match="a bug"),
        files.explain_write_errors(tmp_path / "a"),
    ):
        raise ValueError("a bug")


def test_a_folder_cannot_be_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        files.write_bytes(tmp_path / "a", b"x", overwrite=True)
    assert os.listdir(tmp_path) == ["a"]


def test_a_line_is_appended_completely_or_not_at_all(tmp_path):
    path = tmp_path / "log"
    files.append_bytes(path, b"one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match="log could not be written .file too large"):
            files.append_bytes(path, b"x" * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    files.append_bytes(path, b"two\n")
    assert path.read_text() == "one\ntwo\n"


def test_damaged_files_are_set_aside_under_new_names(tmp_path, capsys):
    for n in ("", ".2", ".3"):
        (tmp_path / "a.json").write_text(n)
        moved = files.set_aside(tmp_path / "a.json", "empty")
        assert moved == tmp_path / f"bad-a.json{n}" and moved.read_text() == n
        assert f"a.json: empty; set aside as bad-a.json{n}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff{}", b"[" * 100000, b"1" * 5000, b"\0"]
)
def test_bytes_that_are_not_json_are_corrupt(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile):
        files.read_json(path)


def test_json_above_the_limit_is_corrupt_and_a_missing_file_is_an_os_error(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert files.read_json(tmp_path / "a.json") == [1, 2, 3]
    with pytest.raises(files.CorruptFile, match="larger"):
        files.read_json(tmp_path / "a.json", limit=4)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b.json")


def test_lines_are_split_at_lf_cr_and_crlf_only():
    assert files.split_lines("a\u2028b\x85c\x0cd\r\ne\rf\n") == [
        "a\u2028b\x85c\x0cd",
        "e",
        "f",
    ]
    assert files.split_lines("") == []


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"]
)
def test_text_is_utf8_or_the_encoding_of_its_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "a.txt"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes(f"{mark}eine Katze\r\nspringt 猫\n".encode(encoding))
    assert files.read_text(path) == "eine Katze\r\nspringt 猫\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "not UTF-8"),
        (b"\xff\xfea", "not UTF-16"),
        (b"a\0b", "NUL"),
        ("a cat".encode("utf-16-le"), "NUL"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"x" * 99, "larger than 98"),
    ],
)
def test_bytes_that_are_not_text_are_corrupt(tmp_path, content, reason):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile, match=reason):
        files.read_text(path, limit=98)
    assert files.why_invalid_text("\ud83d") and not files.why_invalid_text("😀")


def test_without_a_home_folder_the_cache_is_a_private_folder(monkeypatch, tmp_path):
    """HOME=/ of another user, and no HOME with an unknown user id, both occur."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"vdm_jax-{os.geteuid()}"

    def unknown_home():
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "home", unknown_home)
        assert files.cache_folder() == mine
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    with monkeypatch.context() as patch:
        patch.setenv("HOME", "gs://bucket/home")
        assert files.cache_folder() == mine
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "access", lambda path, mode: False)
        assert files.cache_folder() == mine
        mine.rmdir()
        mine.symlink_to(tmp_path)  # made by another user
        with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
            files.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "~/c")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "c" / "vdm_jax"


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(files.CorruptFile, match="not a regular file"):
        files.read_json(tmp_path / "a.json")


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError, match="exists"), files.atomic_write(path):
        pass
    with pytest.raises(KeyError), files.atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with files.atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_killed_write_leaves_its_temporary_file_only(tmp_path):
    code = (
        "import os, sys; from vdm_jax import files\n"
        "with files.atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "a.txt"
    subprocess.run([sys.executable, "-c", code, path])
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp" and left.name.startswith(".")
    files.write_bytes(path, b"new")  # the other process might still be writing
    assert sorted(os.listdir(tmp_path)) == sorted([left.name, "a.txt"])
    assert path.read_bytes() == b"new"
