"""What a file must be before a decoder sees it: its kind, its limits, its name.

A path is trusted with nothing. FFmpeg would take ``http://...`` or ``concat:...`` for
a path, and a text file of its concat or playlist formats renamed ``.mp4`` makes it open
whatever files that text names. So only regular files are opened, as ``file:PATH``, and
the container is chosen here by magic bytes and passed to FFmpeg by name: it never gets
to guess.
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

UNKNOWN_RIFF_SIZES = (
    0,
    0x7FFFFFFF,
    0xFFFFFFFF,
)  # sizes of a file that was written as a stream

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi"]
    + [".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".ogv"]
    + [".gif", ".webp"]
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])

# name -> (place, bytes that stand there) of containers that are told by these alone
MAGIC = {
    "mkv": ((0, b"\x1aE\xdf\xa3"),),  # EBML: webm too
    "avi": ((0, b"RIFF"), (8, b"AVI ")),
    "webp": ((0, b"RIFF"), (8, b"WEBP")),
    "gif": ((0, b"GIF8"),),
    "mpeg": ((0, b"\0\0\1\xba"),),  # a program stream
    "asf": ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),),
    "flv": ((0, b"FLV\1"),),
    "ogg": ((0, b"OggS"),),
}
# A transport stream's packets of 188 bytes, with 16 more of parity or 4 of time codes.
# One that is a recording may begin amid a packet: FFmpeg looks as far for the first.
PACKETS = {
    "mpegts": re.compile(rb"(?:G.{187}){3}G|(?:G.{203}){3}G", re.DOTALL),
    "m2ts": re.compile(rb"(?:G.{191}){3}G", re.DOTALL),
}
HEADER_BYTES = 8192
FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}  # of mp4


class BadVideo(Exception):
    """A video that cannot be used: ``path`` and ``reason``, one clause of plain words.

    ``lasting`` is False where another try might do better (the decoder ran out of time
    or memory): such a verdict is not remembered in the index.
    """

    def __init__(self, path: str | os.PathLike, reason: str, lasting: bool = True):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.lasting = str(path), reason, lasting


def detect_kind(path: str | os.PathLike) -> str:
    """Name the container of a regular file by its first bytes.

    Returns mp4, mov, webm or a key of MAGIC or PACKETS; "frames" for a folder. Raises
    BadVideo for anything else, and for a file shorter than its own header declares.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "frames"
        if not stat.S_ISREG(status.st_mode):
            raise BadVideo(path, "not a regular file")
        with open(path, "rb") as file:
            found = _by_magic(path, file.read(HEADER_BYTES), status.st_size)
            declared = _declared_bytes(file, found, status.st_size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise BadVideo(path, f"cannot be opened ({reason})", lasting=False) from error
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
    if head[4:8] in FIRST_BOXES:
        return "mp4" if head[4:8] == b"ftyp" and head[8:12] != b"qt  " else "mov"
    for name, marks in MAGIC.items():
        if all(head[place:].startswith(mark) for place, mark in marks):
            return "webm" if name == "mkv" and b"webm" in head[:64] else name
    for name, packets in PACKETS.items():
        if packets.search(head):
            return name
    raise BadVideo(
        path,
        "not a video: no header of mp4, mov, webm, mkv, avi, mpeg, mpeg-ts, asf (wmv), "
        "flv, ogg, gif or webp",
    )


def _declared_bytes(file, found: str, size: int) -> int:
    """Bytes that the container says it has; 0 where it does not say.

    A cut file may play up to the cut, so the decoder alone would pass it as a shorter
    clip. A size that a live writer left open is none. Of an mp4 with its index in front
    the index tells (containers.index).
    """
    if found in {"avi", "webp"}:  # RIFF chunk: size after 8 bytes
        file.seek(4)
        length = struct.unpack("<I", file.read(4))[0]
        if found == "avi" and (length in UNKNOWN_RIFF_SIZES or length <= size + 1):
            return 0  # some writers count the 8 bytes in front too, and one of padding
        return 8 + length
    if found in {"mkv", "webm"}:
        return _matroska_bytes(file)
    end, indexed = 0, False
    if found in {"mp4", "mov"}:  # a row of boxes: size, name, content
        while end + 8 <= size:
            file.seek(end)
            head = file.read(16)
            length, name = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:16])[0]
            if length < 8:  # 0: up to the end of the file; else no box but padding
                break
            needed = name in (b"moov", b"moof") or name == b"mdat" and not indexed
            if end + length > size and not needed:
                break  # no frame is lost, or these bytes are no box at all
            end += length
            indexed |= name == b"moov"
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
