"""Paths and small files: what a path may be, whole files or none, bytes gone bad.

Every path that a user gives goes through `user_path`, every file that is written
through `replacing`, every JSON that is read through `read_json`, every text of a user
through `read_text` and every npz through `read_arrays`.
"""

import codecs
import contextlib
import errno
import json
import math
import os
import re
import resource
import stat
import sys
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from vdm_jax.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_JSON = 64 << 20  # bytes; the largest of our own, a long run's log, is far below


class CorruptFile(ValueError):
    """A file whose bytes are not what was written: one clause of plain words."""


def user_path(text: str | os.PathLike, what: str) -> Path:
    """Return a path that a user gave, with a leading ``~`` replaced by the home.

    what: how the message names it, as ``--workdir`` or ``config.data.path``.

    Raises UserError for an address with a scheme (``gs://...``), an empty path, a NUL,
    and a home that is not known.
    """
    text = os.fspath(text)
    if not text:
        raise UserError(f"{what}= is empty: give a path")
    if "\0" in text:
        raise UserError(f"{what}={text!r}: a path holds no NUL")
    # At the beginning, or with both slashes anywhere: as simplecache::s3://b, ./gs://b.
    if scheme := re.search(
        r"(^[a-z][a-z0-9+.-]*(?=:/)|[a-z0-9+.-]+(?=://))", text, re.I
    ):
        raise UserError(
            f"{what}={text}: {scheme[1]}:// is not supported: give a path of a mounted "
            "file system"
        )
    if not text.startswith("~"):
        return Path(text)
    with contextlib.suppress(RuntimeError):  # nobody knows that home
        path = Path(text).expanduser()
        if path.is_absolute():  # HOME may be anything, an address too
            return path
    raise UserError(f"{what}={text}: there is no such home folder; give the whole path")


def cache_folder() -> Path:
    """Return this user's folder for caches, which may not be there yet.

    $XDG_CACHE_HOME/vdm_jax, else ~/.cache/vdm_jax; where there is no home that can be
    written, a private folder under the system's temporary one.

    Raises UserError, naming XDG_CACHE_HOME, where there is none of all these.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return user_path(base, "XDG_CACHE_HOME") / "vdm_jax"
    with contextlib.suppress(RuntimeError):  # no HOME, and nobody knows this user
        folder = Path.home() / ".cache" / "vdm_jax"
        there = next(p for p in (folder, *folder.parents) if p.exists())
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        if writable and folder.is_absolute():
            return folder
    try:
        folder = Path(tempfile.gettempdir()) / f"vdm_jax-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
    except OSError as error:
        raise UserError(
            f"no folder for caches: there is no home that can be written, and {error}: "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error
    return folder


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder for output, or say in a UserError why it cannot be had."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be a folder for output ({error.strerror}): give another"
        ) from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written to: give another folder")
    return path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends.

    A kill or a power cut at any moment leaves the old file or the new one under the
    final name, never half of one: the bytes are on disk before the name is. The
    temporary file is new and nobody else's, so a link that stands in its way is not
    followed. Raises UserError if ``path`` exists and ``overwrite`` is False, and if the
    system refuses to write: inside of the block is nothing but writing.
    """
    path = Path(path)
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path} exists already: another name, or --overwrite")
    make_folder(path.parent)
    with explain_write_errors(path):
        # A short prefix: the final name may be as long as a name can be.
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            os.fchmod(handle, 0o666 & ~_umask())  # mkstemp gives 600
            os.close(handle)
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(
    path: str | os.PathLike, content: bytes | memoryview, overwrite: bool = False
) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, overwrite) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str, overwrite: bool = True) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode(), overwrite)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Write a value as a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def append_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Add bytes to the end of a file: all of them, or none and a UserError."""
    with explain_write_errors(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(before)
            raise


def fsync(path: str | os.PathLike) -> None:
    """Put a file's bytes, or a folder's names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_write_errors(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Turn the system's refusal to write inside the block into a UserError.

    The block only writes, so every error of the system in it is about ``path``: a full
    disk, a quota, a disk that fails or is read-only. advice: what holds besides, as
    "steps [100] are as they were; ".
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        code = find_errno(error)
        if code is None and not isinstance(error, OSError):
            raise
        reason = os.strerror(code).lower() if code else str(error)
        todo = "mend that"
        if code in NO_SPACE:
            reason, todo = f"{reason}, {_free_space(Path(path))}", "make room"
        if code == errno.EFBIG:
            todo = "raise ulimit -f, or take another file system,"
        raise UserError(
            f"{path} could not be written ({reason}): {advice}{todo} and run again"
        ) from error


def find_errno(error: Exception) -> int | None:
    """Return the system's number of an error, however a library has wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
        return int(found[1])
    codes = (*NO_SPACE, errno.EROFS, errno.EIO)  # ArrayRecord has the words alone
    return next((code for code in codes if os.strerror(code) in str(error)), None)


def _free_space(path: Path) -> str:
    """Say what is free on the disk of a path."""
    place = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    disk = os.statvfs(place)
    inodes = " and no inode" if disk.f_files and not disk.f_favail else ""
    return f"{disk.f_bavail * disk.f_frsize / 1e6:.1f} MB{inodes} free"


def set_aside(path: str | os.PathLike, damage: str) -> Path:
    """Rename what is damaged to bad-NAME; say so on standard error, return its path."""
    path = Path(path)
    target, again = path.with_name(f"bad-{path.name}"), 2
    while os.path.lexists(target):
        target, again = path.with_name(f"bad-{path.name}.{again}"), again + 1
    with explain_write_errors(target):
        path.rename(target)
    print(f"{path}: {damage}; set aside as {target.name}", file=sys.stderr, flush=True)
    return target


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise CorruptFile for anything that is none."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CorruptFile("not JSON: nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are such
        raise CorruptFile(f"not JSON: {error}") from error


def read_json(path: str | os.PathLike, limit: int = MAX_JSON) -> Any:
    """Return the value of a JSON file of ours or of a user's.

    Raises CorruptFile for bytes that are not JSON or more than ``limit``, OSError where the
    file cannot be read at all, which says nothing about its bytes.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise CorruptFile("no plain file")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CorruptFile(f"larger than {limit >> 20} MiB")
    return parse_json(content)


def split_lines(text: str) -> list[str]:
    """Split a text where a line ends: at LF, CR LF or CR, and nowhere else.

    ``str.splitlines`` also splits at U+2028, U+2029, U+0085 and others, which stand
    inside of captions and of JSON strings.
    """
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return rows[:-1] if rows[-1] == "" else rows


BYTE_ORDER_MARKS = (  # of an encoding, at the beginning of a text; the longer before their starts
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: str | os.PathLike, limit: int = MAX_JSON) -> str:
    """Return the text of a user's file: UTF-8, or what a byte order mark says.

    Raises CorruptFile for another encoding, a NUL and more than ``limit`` bytes, OSError
    where the file cannot be read at all.
    """
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CorruptFile(f"larger than {limit} bytes")
    marks = (pair for pair in BYTE_ORDER_MARKS if content.startswith(pair[0]))
    mark, encoding = next(marks, (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise CorruptFile(f"not {encoding.upper()} text") from error
    if reason := why_invalid_text(text):
        raise CorruptFile(reason)
    return text


def why_invalid_text(text: str) -> str:
    """Say why a string is no text that can be stored and told to a model; "" if it is.

    Half of a surrogate pair cannot be written as UTF-8, and tokenizers refuse it; a NUL
    ends the text for some readers and not for others.
    """
    if "\0" in text:
        return "holds a NUL, so it is no plain text"
    if re.search("[\ud800-\udfff]", text):
        return "holds half of a surrogate pair, which is no character"
    return ""


NPZ_ERRORS = (
    EOFError, MemoryError, NotImplementedError, OverflowError, RecursionError,
    RuntimeError, SyntaxError, tokenize.TokenError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz_arrays(
    path: str | os.PathLike, rows: int | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file, or the first ``rows`` rows of each.

    No more is allocated than the entries of the archive hold, and they hold no more
    than half of this machine's memory. Nothing pickled is read. Raises CorruptFile for
    bytes that are no such file, OSError where it cannot be read at all.
    """
    arrays: dict[str, np.ndarray] = {}
    if Path(path).is_fifo():
        raise CorruptFile("not a regular file")  # it would be waited for
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            room = memory_limit() // 2
            if not rows and sum(entry.file_size for entry in entries) > room:
                raise CorruptFile(f"its arrays need more than {room >> 30} GiB")
            for entry in entries:
                with archive.open(entry) as file:
                    name = entry.filename.removesuffix(".npy")
                    arrays[name] = _read_npy_stream(file, entry.file_size, rows, room)
    except CorruptFile:
        raise
    except (*NPZ_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # not so a place before the file's beginning, which its bytes name
        raise CorruptFile(f"not a whole npz file: {error}") from error
    return arrays


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Return the array of an npy file; raises as `read_arrays` does."""
    with open(path, "rb") as file:
        try:
            return _read_npy_stream(
                file, os.path.getsize(path), None, memory_limit() // 2
            )
        except NPZ_ERRORS as error:
            if isinstance(error, CorruptFile):
                raise
            raise CorruptFile(f"not a whole npy file: {error}") from error


def _read_npy_stream(
    file: IO[bytes], size: int, rows: int | None, room: int
) -> np.ndarray:
    """Read an array of an npz entry of ``size`` bytes, of which it takes all."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise CorruptFile(f"an array in format {version}")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise CorruptFile("an array of objects, which could run code")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise CorruptFile(f"{size} bytes for an array {shape} of {dtype}")
    if rows is not None and shape and not fortran:
        shape = (min(rows, shape[0]), *shape[1:])
    length = math.prod(shape) * dtype.itemsize
    if length > room:
        raise CorruptFile(f"an array needs more than {room >> 30} GiB")
    content = bytearray(file.read(length))  # an array may be written to
    if len(content) != length:
        raise CorruptFile("cut short")
    while file.read(1 << 20):  # to the end, where the checksum of an entry is
        pass
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def memory_limit() -> int:
    """Return the bytes of memory that this process can have at most.

    The machine's, or what a container, a job or ``ulimit -v`` allows of it.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(found)


def check_memory(need: float, what: str) -> None:
    """Raise UserError if `what` takes more bytes of memory than there can be."""
    if need > (here := memory_limit()):
        raise UserError(
            f"{what}: {need / 2**30:,.1f} GiB of memory needed, {here / 2**30:,.1f} "
            "here: ask for less at a time"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
