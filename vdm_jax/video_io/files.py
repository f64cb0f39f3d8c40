"""What a file must be before a decoder sees it: its kind, its limits, its name.

A path is trusted with nothing. FFmpeg would take ``http://...`` or ``concat:...`` for
a path, and a text file of its concat or playlist formats renamed ``.mp4`` makes it open
whatever files that text names. So only regular files are opened, and the container is
chosen here by magic bytes and passed to FFmpeg by name: it never gets to guess.
"""

import os
import re
import stat
import struct

# Limits, checked on the header and again on what is decoded. They are far above honest
# training clips and keep one hostile or broken file from taking the machine.
MAX_BYTES = 64 << 30  # a file; the longest film at high quality
MAX_PIXELS = 8192 * 4320  # a frame; full 8K (a 0.75 MB PNG can declare 256 million)
MAX_FRAMES = 1_000_000  # a file; nine hours at 30 fps, 8 MB of time stamps
MAX_SECONDS = 12 * 3600.0

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".gif", ".webp"}
)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class BadVideo(Exception):
    """A video that cannot be used: ``path`` and ``reason``, one clause of plain words.

    ``lasting`` is False where another try might do better (the decoder ran out of time
    or memory): such a verdict is not remembered in the index.
    """

    def __init__(self, path: str | os.PathLike, reason: str, lasting: bool = True):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.lasting = str(path), reason, lasting


def kind(path: str | os.PathLike) -> str:
    """Name the container of a regular file by its first bytes.

    Returns mp4, mov, mkv, webm, avi, mpeg, gif or webp; "frames" for a folder. Raises
    BadVideo for anything else, and for a file shorter than its own header declares.
    """
    name = str(path)
    if re.match(r"[a-z][a-z0-9+.-]+:", name, re.IGNORECASE):
        raise BadVideo(path, "not a path of this machine: files only, no URLs")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "frames"
        if not stat.S_ISREG(status.st_mode):
            raise BadVideo(path, "not a regular file")
        with open(path, "rb") as file:
            head = file.read(64)
            found = _by_magic(path, head, status.st_size)
            declared = _declared_bytes(file, found, status.st_size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadVideo(path, f"cannot be opened ({error})") from error
    if declared > status.st_size:
        raise BadVideo(
            path,
            f"truncated: {status.st_size} bytes of the {declared} that its header "
            "declares",
        )
    return found


def _by_magic(path: str | os.PathLike, head: bytes, size: int) -> str:
    if not head:
        raise BadVideo(path, "empty file")
    if size > MAX_BYTES:
        raise BadVideo(path, f"{size} bytes: the limit is {MAX_BYTES}")
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}:
        return "mp4" if head[4:8] == b"ftyp" and head[8:12] != b"qt  " else "mov"
    if head[:4] == b"\x1aE\xdf\xa3":  # EBML; the document type stands in the header
        return "webm" if b"webm" in head else "mkv"
    if head[:4] == b"RIFF" and head[8:12] in {b"AVI ", b"WEBP"}:
        return "avi" if head[8:12] == b"AVI " else "webp"
    if head[:6] in {b"GIF87a", b"GIF89a"}:
        return "gif"
    if head[:4] == b"\0\0\1\xba":  # MPEG program stream
        return "mpeg"
    raise BadVideo(
        path, "not a video: no mp4, mov, webm, mkv, avi, mpeg, gif or webp header"
    )


def _declared_bytes(file, found: str, size: int) -> int:
    """Bytes that the container says it has; 0 where it does not say.

    A cut mp4 with its index in front still plays up to the cut, so the decoder alone
    would pass it as a shorter clip.
    """
    if found in {"avi", "webp"}:  # RIFF chunk: size after 8 bytes
        file.seek(4)
        return 8 + struct.unpack("<I", file.read(4))[0]
    if found in {"mkv", "webm"}:
        return _matroska_bytes(file)
    end = 0
    if found in {"mp4", "mov"}:  # a row of boxes: size, name, content
        while end + 8 <= size:
            file.seek(end)
            head = file.read(16)
            length = struct.unpack(">I", head[:4])[0]
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:16])[0]
            if length == 0:  # up to the end of the file
                break
            if length < 8 or not head[4:8].isascii():  # padding behind the last box
                break
            end += length
    return end


def _matroska_bytes(file) -> int:
    """End of the segment of a Matroska file, 0 if it is open-ended (EBML, RFC 8794)."""

    def number(keep_marker: bool) -> tuple[int, int]:
        first = file.read(1)[0]
        length = 9 - first.bit_length()
        value = first if keep_marker else first & (0xFF >> length)
        for byte in file.read(length - 1):
            value = value << 8 | byte
        return value, length

    try:
        file.seek(4)
        header, _ = number(False)
        file.seek(header, os.SEEK_CUR)
        number(True)  # the segment's name
        segment, length = number(False)
    except IndexError:  # the file ends inside a number
        return file.tell() + 1
    unknown = (1 << 7 * length) - 1
    return 0 if segment == unknown else file.tell() + segment


def check_frame(path: str | os.PathLike, height: int, width: int) -> None:
    """Raise BadVideo if a frame is empty or above the pixel limit."""
    if height < 1 or width < 1:
        raise BadVideo(path, "no picture size in the header")
    if height * width > MAX_PIXELS:
        raise BadVideo(
            path, f"frames of {width}x{height}: the limit is {MAX_PIXELS} pixels"
        )


def check_length(path: str | os.PathLike, frames: int, seconds: float = 0.0) -> None:
    """Raise BadVideo if a video is above the frame or time limit."""
    if frames > MAX_FRAMES:
        raise BadVideo(path, f"more than {MAX_FRAMES} frames")
    if seconds > MAX_SECONDS:
        raise BadVideo(path, f"{seconds:.0f} seconds: the limit is {MAX_SECONDS:.0f}")


def slug(text: str, length: int = 60) -> str:
    """File name made of a prompt: letters, digits and dashes, never a path part."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or (
        "video"
    )
