"""Paths and small files: validation of paths, atomic writes, and checked reads.

Every path that a user passes is parsed by `user_path`. Every file is written by
`atomic_write`. JSON is read by `read_json`, a user's text by `read_text`, and npz files
by `npz.read_npz_arrays`.
"""

import codecs
import contextlib
import errno
import json
import os
import re
import secrets
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError

StrPath = str | os.PathLike[str]
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALE_SECONDS = 3600.0  # older temporary files were left by killed processes
MAX_JSON = 64 << 20  # bytes; the log of a long run, our largest file, is far smaller


class CorruptFile(ValueError):
    """A file whose bytes are not what was written. The message is one plain clause."""


def user_path(text: StrPath, what: str) -> Path:
    """Return the path that a user passed; a leading ``~`` is the home folder.

    what: the flag or field in messages: ``--workdir``, ``config.data.path``.

    Raises UserError for an address with a scheme (``gs://...``), an empty path, a NUL,
    and an unknown home folder.
    """
    text = os.fspath(text)
    if not text:
        raise UserError(f"{what}= is empty: give a path")
    if "\0" in text:
        raise UserError(f"{what}={text!r}: a path cannot contain a NUL")
    # "gs:/" at the start, or "gs://" anywhere: simplecache::s3://b, ./gs://b.
    if scheme := re.search(r"^[a-z][a-z0-9+.-]*(?=:/)|[a-z0-9+.-]+(?=://)", text, re.I):
        rule = f"{scheme[0]}:// is not supported: give a path of a mounted file system"
        raise UserError(f"{what}={text}: {rule}")
    if not text.startswith("~"):
        return Path(text)
    with contextlib.suppress(RuntimeError):  # unknown home folder
        path = Path(text).expanduser()
        if path.is_absolute():  # HOME may hold anything, even an address
            return path
    raise UserError(f"{what}={text}: no such home folder: use an absolute path")


def cache_folder() -> Path:
    """Return this user's cache folder. It may not exist yet.

    The folder is $XDG_CACHE_HOME/vdm_jax, else ~/.cache/vdm_jax, else (if the home
    folder is missing or read-only) a private folder in the system's temporary folder.

    Raises UserError that names XDG_CACHE_HOME if none of these can be used.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return user_path(base, "XDG_CACHE_HOME") / "vdm_jax"
    with contextlib.suppress(RuntimeError):  # no HOME, and an unknown user
        folder = Path.home() / ".cache" / "vdm_jax"
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if writable and folder.is_absolute():
            return folder
    try:
        folder = Path(tempfile.gettempdir()) / f"vdm_jax-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
    except OSError as error:
        reason = f"the home folder is missing or read-only, and {error}"
        rule = "set XDG_CACHE_HOME to a writable folder"
        raise UserError(f"no folder for caches: {reason}: {rule}") from error
    return folder


def make_folder(path: StrPath, advice: str = "") -> Path:
    """Make a folder for output. Raises UserError with the reason if that fails.

    advice: as for `explain_write_errors`.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be an output folder ({error.strerror}): {advice}use another"
        raise UserError(f"{path} {reason}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} is not writable: {advice}use another folder")
    return path


@contextlib.contextmanager
def removed_if_empty(path: StrPath) -> Iterator[None]:
    """Remove a folder that the block made and left empty, and its new parents."""
    absent = [p for p in (Path(path), *Path(path).parents) if not os.path.exists(p)]
    try:
        yield
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # it was not made, or it holds files
                folder.rmdir()


@contextlib.contextmanager
def atomic_write(path: StrPath, overwrite=False, advice: str = "") -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends.

    After a kill or a power cut ``path`` is the old file or the complete new one: the
    bytes are on disk before the rename. The block must only write. advice: that of
    `explain_write_errors`.

    Raises UserError if ``path`` exists and ``overwrite`` is False, and if the system
    cannot write.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path} exists already: use another name or --overwrite")
    make_folder(path.parent, advice)
    with explain_write_errors(path, advice):
        # The final name may have the maximal length.
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        temporary.touch(exist_ok=False)  # new, so that no link is followed
        try:
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
        except BaseException:  # an interrupt too must leave no file
            temporary.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def checksum(paths: Iterable[Path]) -> str:
    """Return the CRC-32 of files, one after the other, in hexadecimal."""
    crc32 = 0
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                crc32 = zlib.crc32(part, crc32)
    return f"{crc32:08x}"


def write_bytes(
    path: StrPath, content: bytes, overwrite: bool = False, advice: str = ""
) -> None:
    """Write a file atomically. advice: as for `explain_write_errors`."""
    with atomic_write(path, overwrite, advice) as temporary:
        temporary.write_bytes(content)


def write_json(path: StrPath, value: Any, indent: int | None = 1) -> None:
    """Write a value as a JSON file atomically."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode(), True)


def append_bytes(path: StrPath, content: bytes) -> None:
    """Append bytes to a file: all of them, or none and a UserError."""
    with explain_write_errors(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(before)
            raise


def fsync(path: StrPath) -> None:
    """Flush the bytes of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_write_errors(path: StrPath, advice: str = "") -> Iterator[None]:
    """Turn a system error inside the block into a UserError.

    The block must only write, so that each system error is about ``path``: a full disk,
    a quota, a failing or read-only disk. advice: an addition to the message, such as
    "steps [100] are as they were; ".
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        code = find_errno(error)
        if code is None and not isinstance(error, OSError):
            raise
        reason = os.strerror(code).lower() if code else str(error)
        todo = "fix that"
        if code in NO_SPACE:
            reason = f"{reason}, {_free_space(Path(path))}"
            todo = "free some space"
        if code == errno.EFBIG:
            todo = "raise ulimit -f, or use another file system,"
        rule = f"{advice}{todo} and run again"
        raise UserError(f"{path} could not be written ({reason}): {rule}") from error


def find_errno(error: Exception) -> int | None:
    """Return the errno of an exception, also if a library has wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    if match := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore
        return int(match[1])
    codes = (*NO_SPACE, errno.EROFS, errno.EIO)  # ArrayRecord: only the words
    return next((code for code in codes if os.strerror(code) in str(error)), None)


def _free_space(path: Path) -> str:
    """Describe the free space on the disk of a path."""
    folder = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    disk = os.statvfs(folder)
    inodes = " and no inode" if disk.f_files and not disk.f_favail else ""
    return f"{disk.f_bavail * disk.f_frsize / 1e6:.1f} MB{inodes} free"


def set_aside(path: StrPath, damage: str) -> Path:
    """Rename a damaged file or folder to bad-NAME; return the new path.

    Prints one line on standard error.
    """
    path = Path(path)
    target = path.with_name(f"bad-{path.name}")
    number = 2
    while os.path.lexists(target):
        target = path.with_name(f"bad-{path.name}.{number}")
        number += 1
    with explain_write_errors(target):
        path.rename(target)
    print(f"{path}: {damage}; set aside as {target.name}", file=sys.stderr, flush=True)
    return target


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises CorruptFile if it is not JSON."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise CorruptFile(f"not JSON: {error}") from error


def read_json(path: StrPath, limit: int = MAX_JSON) -> Any:
    """Return the value of a JSON file.

    Raises CorruptFile for bytes that are not JSON and for more than ``limit`` bytes.
    Raises OSError if the file cannot be read, which says nothing about its bytes.
    """
    check_regular(path)
    return parse_json(_read_bytes(path, limit))


def check_regular(path: StrPath) -> None:
    """Raise CorruptFile if a path is not a regular file: a pipe would block."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CorruptFile("not a regular file")


def _read_bytes(path: StrPath, limit: int) -> bytes:
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CorruptFile(f"larger than {limit} bytes")
    return content


def split_lines(text: str) -> list[str]:
    """Split a text at LF, CR LF and CR only.

    ``str.splitlines`` also splits at U+2028, U+2029, U+0085 and others, which occur
    inside captions and JSON strings.
    """
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return rows[:-1] if rows[-1] == "" else rows


BYTE_ORDER_MARKS = {  # UTF-32's before UTF-16's, which are their prefixes
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def read_text(path: StrPath, limit: int = MAX_JSON) -> str:
    """Return the text of a user's file: UTF-8, or the encoding of its byte order mark.

    Raises CorruptFile for another encoding, a NUL and more than ``limit`` bytes.
    Raises OSError if the file cannot be read.
    """
    content = _read_bytes(path, limit)
    encodings = (e for e, m in BYTE_ORDER_MARKS.items() if content.startswith(m))
    encoding = next(encodings, "utf-8")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"not {encoding.upper()} text") from error
    if reason := why_invalid_text(text):
        raise CorruptFile(reason)
    return text


def why_invalid_text(text: str) -> str:
    """Return why a string cannot be stored or encoded; "" if it is valid.

    Half of a surrogate pair cannot be written as UTF-8, and tokenizers reject it. A NUL
    ends the text for some readers and not for others.
    """
    if "\0" in text:
        return "contains a NUL, so it is not plain text"
    if re.search("[\ud800-\udfff]", text):
        return "contains half of a surrogate pair, which is not a character"
    return ""
