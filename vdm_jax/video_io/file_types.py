"""Detection of the container format, and limits checked before decoding.

Files are not trusted. FFmpeg accepts ``http://...`` and ``concat:...`` as paths, and a
playlist renamed to ``.mp4`` makes it open any files that the playlist names. Therefore
only regular files are opened, as ``file:PATH``, and FFmpeg receives the name of the
container, which is detected here by magic bytes.
"""

import os
import re
import stat
import struct

# Limits of the header and of the decoded frames. They are far above normal training
# clips and keep a malicious or corrupt file from exhausting the machine.
MAX_BYTES = 64 << 30  # per file; a long film at high quality
MAX_PIXELS = 8192 * 4320  # per frame; 8K (a PNG of 0.75 MB can declare 256 million)
MAX_FRAMES = 1_000_000  # per file; nine hours at 30 fps, 8 MB of time stamps
MAX_SECONDS = 12 * 3600.0

UNKNOWN_RIFF_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # written by live recorders

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi"]
    + [".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".ogv"]
    + [".gif", ".webp"]
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])

# container -> ((offset, bytes at that offset), ...)
MAGIC = {
    "mkv": ((0, b"\x1aE\xdf\xa3"),),  # EBML, also webm
    "avi": ((0, b"RIFF"), (8, b"AVI ")),
    "webp": ((0, b"RIFF"), (8, b"WEBP")),
    "gif": ((0, b"GIF8"),),
    "mpeg": ((0, b"\0\0\1\xba"),),  # program stream
    "asf": ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),),
    "flv": ((0, b"FLV\1"),),
    "ogg": ((0, b"OggS"),),
}
# Transport streams: packets of 188 bytes, optionally with 16 bytes of parity or 4 bytes
# of time code. A recording may start inside a packet, so the pattern is searched.
PACKETS = {
    "mpegts": re.compile(rb"(?:G.{187}){3}G|(?:G.{203}){3}G", re.DOTALL),
    "m2ts": re.compile(rb"(?:G.{191}){3}G", re.DOTALL),
}
HEADER_BYTES = 8192
MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}


class BadVideo(Exception):
    """A video that cannot be used.

    Attributes:
      path: the file.
      reason: one plain clause.
      lasting: False if a second try may succeed (the decoder ran out of time or
        memory). The index does not store such a result.
    """

    def __init__(self, path: str | os.PathLike, reason: str, lasting: bool = True):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.lasting = str(path), reason, lasting


def detect_kind(path: str | os.PathLike) -> str:
    """Detect the container of a regular file by its first bytes.

    Returns mp4, mov, webm or a key of MAGIC or PACKETS, and "frames" for a folder.
    Raises BadVideo for other files, and for a file shorter than its header declares.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "frames"
        if not stat.S_ISREG(status.st_mode):
            raise BadVideo(path, "not a regular file")
        with open(path, "rb") as file:
            kind = _kind_by_magic(path, file.read(HEADER_BYTES), status.st_size)
            declared = _declared_bytes(file, kind, status.st_size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise BadVideo(path, f"cannot be opened ({reason})", lasting=False) from error
    if declared > status.st_size:
        raise BadVideo(
            path,
            f"truncated: {status.st_size} bytes of the {declared} that its header "
            "declares",
        )
    return kind


def _kind_by_magic(path: str | os.PathLike, head: bytes, size: int) -> str:
    if not head:
        raise BadVideo(path, "empty file")
    if size > MAX_BYTES:
        raise BadVideo(path, f"{size} bytes: the limit is {MAX_BYTES}")
    if head[4:8] in MP4_FIRST_BOXES:
        return "mp4" if head[4:8] == b"ftyp" and head[8:12] != b"qt  " else "mov"
    for name, marks in MAGIC.items():
        if all(head[offset:].startswith(mark) for offset, mark in marks):
            return "webm" if name == "mkv" and b"webm" in head[:64] else name
    for name, packets in PACKETS.items():
        if packets.search(head):
            return name
    raise BadVideo(
        path,
        "not a video: no header of mp4, mov, webm, mkv, avi, mpeg, mpeg-ts, asf (wmv), "
        "flv, ogg, gif or webp",
    )


def _declared_bytes(file, kind: str, size: int) -> int:
    """Return the size that the container declares; 0 if it declares none.

    A truncated file decodes up to its end, so the decoder alone would accept it as a
    shorter clip. Live recorders leave the size open. If the index of an mp4 comes
    first, containers.index compares the size with it.
    """
    if kind in {"avi", "webp"}:  # RIFF chunk: the size follows 4 bytes of magic
        file.seek(4)
        length = struct.unpack("<I", file.read(4))[0]
        if kind == "avi" and (length in UNKNOWN_RIFF_SIZES or length <= size + 1):
            return 0  # some writers count the 8 bytes before it, and a padding byte
        return 8 + length
    if kind in {"mkv", "webm"}:
        return _matroska_bytes(file)
    end, indexed = 0, False
    if kind in {"mp4", "mov"}:  # a sequence of boxes: size, name, content
        while end + 8 <= size:
            file.seek(end)
            head = file.read(16)
            length, name = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:16])[0]
            if length < 8:  # 0: the box extends to the end of the file; else padding
                break
            needed = name in (b"moov", b"moof") or name == b"mdat" and not indexed
            if end + length > size and not needed:
                break  # no frame is lost, or these bytes are not a box
            end += length
            indexed |= name == b"moov"
    return end


def _matroska_bytes(file) -> int:
    """Return the end of a Matroska file's segment, 0 if it is open (EBML, RFC 8794)."""

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
        number(True)  # the segment's id
        segment, length = number(False)
    except IndexError:  # the file ends inside a number
        return file.tell() + 1
    unknown = (1 << 7 * length) - 1
    return 0 if segment == unknown else file.tell() + segment


def check_frame(path: str | os.PathLike, height: int, width: int) -> None:
    """Raise BadVideo if a frame is empty or above the pixel limit."""
    if height < 1 or width < 1:
        raise BadVideo(path, "no frame size in the header")
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
