"""Paths, whole files and JSON: vdm_jax/files.py."""

import errno
import os
import resource
import stat
import subprocess
import sys
import zipfile

import numpy as np
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
def test_what_is_no_path_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="--workdir") as caught:
        files.user_path(text, "--workdir")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["take:1.mp4", "a[b]", "a\\b", "x/~/y", "a:b/c", "x/a:/b"]
)
def test_any_name_of_a_file_system_is_a_path(text):
    assert str(files.user_path(text, "--workdir")) == text


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/x", "--out") == tmp_path / "x"
    with pytest.raises(UserError, match="home"):
        files.user_path("~nobody-of-that-name/x", "--out")
    for home in ("gs://bucket/home", "relative/home"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UserError, match="home"):
            files.user_path("~/x", "--out")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(KeyError), files.atomic_write(path, overwrite=True) as new:
        new.write_text("half")
        raise KeyError
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(UserError, match="exists"), files.atomic_write(path):
        pass


def test_a_new_file_has_the_rights_of_the_umask_and_follows_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a").symlink_to(victim)
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "new")
    finally:
        os.umask(before)
    assert victim.read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_name_as_long_as_a_name_can_be(tmp_path):
    files.write_text(tmp_path / ("n" * 255), "x")


def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(tmp_path):
    """RLIMIT_FSIZE answers EFBIG where a full disk answers ENOSPC."""
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    code = (
        "import resource, signal, sys; from vdm_jax import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: files.write_text(sys.argv[1], 'x' * 100000)\n"
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
def test_every_refusal_of_the_system_is_one_line(tmp_path, error, words):
    with (
        pytest.raises(UserError, match=f"a.txt could not be written .{words}"),
        files.atomic_write(tmp_path / "a.txt"),
    ):
        raise error
    assert not os.listdir(tmp_path)


def test_an_error_of_the_program_is_not_the_system_s(tmp_path):
    with (
        pytest.raises(ValueError, match="a bug"),
        files.explain_write_errors(tmp_path / "a"),
    ):
        raise ValueError("a bug")


def test_what_is_no_file_cannot_be_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        files.write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_a_line_that_does_not_fit_is_not_begun(tmp_path):
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


def test_what_is_damaged_is_set_aside_beside_what_was_before(tmp_path, capsys):
    for n in ("", ".2", ".3"):
        (tmp_path / "a.json").write_text(n)
        kept = files.set_aside(tmp_path / "a.json", "empty")
        assert kept == tmp_path / f"bad-a.json{n}" and kept.read_text() == n
        assert f"a.json: empty; set aside as bad-a.json{n}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff{}", b"[" * 100000, b"1" * 5000, b"\0"]
)
def test_bytes_that_are_not_json_are_damage(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile):
        files.read_json(path)


def test_json_above_the_limit_is_damage_and_no_file_is_not(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert files.read_json(tmp_path / "a.json") == [1, 2, 3]
    with pytest.raises(files.CorruptFile, match="larger"):
        files.read_json(tmp_path / "a.json", limit=4)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b.json")


def test_a_line_ends_at_lf_cr_and_both_only():
    assert files.split_lines("a\u2028b\x85c\x0cd\r\ne\rf\n") == [
        "a\u2028b\x85c\x0cd",
        "e",
        "f",
    ]
    assert files.split_lines("") == []


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"]
)
def test_a_text_is_utf8_or_what_its_mark_says(tmp_path, encoding):
    path = tmp_path / "a.txt"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes(f"{mark}eine Katze\r\nspringt 猫\n".encode(encoding))
    assert files.read_text(path) == "eine Katze\r\nspringt 猫\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "not UTF-8"),
        (b"\xff\xfea", "not UTF-16-LE"),
        (b"a\0b", "NUL"),
        ("a cat".encode("utf-16-le"), "NUL"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"x" * 99, "larger than 98"),
    ],
)
def test_bytes_that_are_no_text_are_damage(tmp_path, content, reason):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile, match=reason):
        files.read_text(path, limit=98)
    assert files.why_invalid_text("\ud83d") and not files.why_invalid_text("😀")


def test_arrays_come_back_and_the_first_rows_alone(tmp_path):
    path = tmp_path / "a.npz"
    video = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
    np.savez_compressed(
        path, video=video, one=np.float32(2), f=np.asfortranarray(video)
    )
    found = files.read_npz_arrays(path)
    assert sorted(found) == ["f", "one", "video"] and found["one"] == 2
    assert (found["video"] == video).all() and (found["f"] == video).all()
    found["video"][0] = 0  # may be written to
    assert (files.read_npz_arrays(path, rows=2)["video"] == video[:2]).all()
    with pytest.raises(FileNotFoundError):
        files.read_npz_arrays(tmp_path / "b.npz")


def array_bytes(shape, content=b"", descr="'|u1'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_bytes("(1099511627776,)"), "for an array"),  # a terabyte
        (array_bytes("(1099511627776,)", b"x" * 9), "for an array"),
        (array_bytes("(4,)", b"abc"), "for an array"),
        (array_bytes("(-3,)", b"abc"), "for an array"),
        (array_bytes("(1,)", b"x" * 8, "'|O'"), "objects"),
        (array_bytes("(" * 4000), "not a whole npz"),
        (array_bytes("-" * 9000 + "1"), "not a whole npz"),
        (b"", "not a whole npz"),
        (b"nonsense", "not a whole npz"),
    ],
)
def test_an_array_takes_what_its_entry_holds(tmp_path, content, reason):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("videos.npy", content)
    with pytest.raises(files.CorruptFile, match=reason):
        files.read_npz_arrays(path)


def test_what_is_packed_small_is_measured_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1 << 20, np.uint8))
    assert path.stat().st_size < 1 << 12
    monkeypatch.setattr(files, "memory", lambda: 1 << 20)
    with pytest.raises(files.CorruptFile, match="need more than"):
        files.read_npz_arrays(path)


@pytest.mark.parametrize("keep", [0, 1, 40, 200, -1])
def test_a_cut_or_changed_npz_is_damage(tmp_path, keep):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(99))
    content = bytearray(path.read_bytes())
    if keep == -1:
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:keep] if keep >= 0 else content)
    for rows in (None, 1):  # of the first rows alone the checksum is that of all
        with pytest.raises(files.CorruptFile):
            files.read_npz_arrays(path, rows)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(files.CorruptFile, match="not a regular file"):
        files.read_npz_arrays(tmp_path / "a.npz")


def test_an_npz_whose_directory_names_a_place_before_it_is_damage(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(99))
    content = bytearray(path.read_bytes())
    content[-6:-2] = (1 << 20).to_bytes(4, "little")  # where the directory begins
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile):
        files.read_npz_arrays(path)


def test_caches_without_a_home_are_in_a_private_folder(monkeypatch, tmp_path):
    """HOME=/ of another user, no HOME and nobody of that number: both are met."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"vdm_jax-{os.geteuid()}"

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "home", nobody)
        assert files.cache_folder() == mine
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    with monkeypatch.context() as patch:
        patch.setenv("HOME", "gs://bucket/home")
        assert files.cache_folder() == mine
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "access", lambda path, mode: False)
        assert files.cache_folder() == mine
        mine.rmdir()
        mine.symlink_to(tmp_path)  # somebody was there before
        with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
            files.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "~/c")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "c" / "vdm_jax"


def test_what_does_not_fit_into_memory_is_refused_by_both_numbers(monkeypatch):
    limits = (3 << 30, resource.RLIM_INFINITY)
    monkeypatch.setattr(files.resource, "getrlimit", lambda which: limits)
    assert files.memory_limit() <= 3 << 30
    monkeypatch.setattr(files, "memory", lambda: 1 << 30)
    files.check_memory(1 << 30, "num=1")
    with pytest.raises(UserError, match="num=9: 4.0 GiB of memory needed, 1.0 here"):
        files.check_memory(4 << 30, "num=9")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(files.CorruptFile, match="no plain file"):
        files.read_json(tmp_path / "a.json")
