"""Suffixes of videos and images, and checks of a file before it is decoded.

Files are not trusted. FFmpeg accepts ``http://...`` and ``concat:...`` as paths, and a
playlist renamed to ``.mp4`` makes it open any files that the playlist names. Therefore
only regular files are opened, as ``file:PATH``, and FFmpeg may use no demuxers but
those of `containers`.
"""

import os
import re
import stat
import struct

# Limits of the header and of the decoded frames. They are far above normal training
# clips and keep a malicious or corrupt file from exhausting the machine.
MAX_PIXELS = 8192 * 4320  # per frame; 8K (a PNG of 0.75 MB can declare 256 million)
MAX_FRAMES = 1_000_000  # per file; nine hours at 30 fps, 8 MB of time stamps
MAX_SECONDS = 12 * 3600.0

UNKNOWN_RIFF_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # written by live recorders
MATROSKA_SEGMENT = re.compile(rb"\x1aE\xdf\xa3.{,99}?\x18S\x80g(.{8})", re.DOTALL)

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi"]
    + [".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".ogv"]
    + [".gif", ".webp"]
)
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])


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


def read_head(path: str | os.PathLike) -> bytes:
    """Return the first bytes of a regular file.

    Raises BadVideo if it is empty, or shorter than its header declares.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadVideo(path, "not a regular file")
        with open(path, "rb") as file:
            head = file.read(256)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise BadVideo(path, f"cannot be opened ({reason})", lasting=False) from error
    if not head:
        raise BadVideo(path, "empty file")
    size = status.st_size
    if (declared := _declared_bytes(head, size)) > size:
        reason = f"truncated: {size} bytes of the {declared} that its header declares"
        raise BadVideo(path, reason)
    return head


def _declared_bytes(head: bytes, size: int) -> int:
    """Return the size that the container declares; 0 if it declares none.

    FFmpeg decodes a truncated file up to its end: it would be used as a shorter clip.
    Live recorders leave the size open.
    """
    if head.startswith(b"RIFF") and len(head) >= 8:
        length = struct.unpack_from("<I", head, 4)[0]
        # Some writers count the 8 bytes before it, and a padding byte.
        is_open = length in UNKNOWN_RIFF_SIZES or length <= size + 1
        return 0 if is_open else 8 + length
    if segment := MATROSKA_SEGMENT.match(head):  # its length: EBML, RFC 8794
        digits = 9 - segment[1][0].bit_length()
        unknown = (1 << 7 * digits) - 1
        length = int.from_bytes(segment[1][:digits], "big") & unknown
        return 0 if length == unknown else segment.start(1) + digits + length
    return 0  # an mp4 without its index does not open; `containers` reads the index


def check_frame(path: str | os.PathLike, height: int, width: int) -> None:
    """Raise BadVideo if a frame is empty or above the pixel limit."""
    if height < 1 or width < 1:
        raise BadVideo(path, "no frame size in the header")
    if height * width > MAX_PIXELS:
        reason = f"frames of {width}x{height}: the limit is {MAX_PIXELS} pixels"
        raise BadVideo(path, reason)


def check_length(path: str | os.PathLike, frames: int, seconds: float = 0.0) -> None:
    """Raise BadVideo if a video is above the frame or time limit."""
    if frames > MAX_FRAMES:
        raise BadVideo(path, f"more than {MAX_FRAMES} frames")
    if seconds > MAX_SECONDS:
        raise BadVideo(path, f"{seconds:.0f} seconds: the limit is {MAX_SECONDS:.0f}")
