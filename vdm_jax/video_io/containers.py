"""Index video containers and decode frames by number, with PyAV."""

import collections
import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.stream import Disposition

from vdm_jax.video_io.file_types import BadVideo, check_frame, check_length
from vdm_jax.video_io.info import VideoInfo

DEMUXERS = "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg"  # mov is also mp4, matroska webm
SEEKABLE = {"mov", "matroska", "avi"}  # the others have no seek index
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ignore alpha
MAX_SLANT = 0.0087  # sine of half a degree
GAP_FACTOR = 1.5  # frames are lost if a gap exceeds this multiple of the median
ASPECT_TOLERANCE = 0.03  # relative: the rounding of small frames


def _open(path: str):
    """Open a local file, whose container FFmpeg detects among DEMUXERS."""
    try:
        return av.open(
            "file:" + os.path.abspath(path),
            options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
            metadata_errors="ignore",
        )
    except (ArgumentError, InvalidDataError) as error:  # another format, or none
        reason = "not a video, or corrupt: no header of mp4, mkv, avi or the like"
        raise BadVideo(path, reason) from error


def _rank_streams(container, path: str) -> list:
    """Return the video streams in the order in which ffmpeg prefers them.

    The default stream comes first, unless another has five million pixels more. Among
    equals the first one is preferred. Cover and chapter images are not videos.
    """
    thumbnails = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & thumbnails]
    if not streams:
        raise BadVideo(path, "no video stream")

    def rank(stream) -> int:
        codec = stream.codec_context
        pixels = codec.width * codec.height if codec else 0
        return -pixels - 5_000_000 * bool(stream.disposition & Disposition.default)

    return sorted(streams, key=rank)


def _decoder(stream, path: str) -> av.VideoCodecContext:
    """Return the decoder of a stream, single-threaded. Raises BadVideo if none."""
    decoder = stream.codec_context
    if decoder is None:
        raise BadVideo(path, "no decoder for its video stream")
    if decoder.name in ALPHA_DECODERS and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
    # Frame threads have deadlocked, and loading is already parallel over clips.
    decoder.thread_count = 1
    check_frame(path, stream.codec_context.height, stream.codec_context.width)
    return cast(av.VideoCodecContext, decoder)


def index(path: str, rank: int = 0) -> VideoInfo:
    """Index a file by reading its packets once. Only the first frame is decoded.

    If the packets have no usable time stamps (missing or in a wrong order), all frames
    are decoded and counted. Lengths in headers are not used. The first video stream
    with frames is indexed, from the ``rank``-th in ffmpeg's order on. Raises BadVideo.
    """
    try:
        with _open(path) as container:
            kind = container.format.name.split(",")[0]
            streams = _rank_streams(container, path)
            stream = streams[rank]
            decoder = _decoder(stream, path)
            first, packets = _packets(container, stream, decoder, path)
            if kind == "mov":
                _check_end(stream, path)
            pts = [pts for pts, _, shown in packets if shown]
            if first is None or not pts:
                if rank + 1 < len(streams):
                    return index(path, rank + 1)
                raise BadVideo(path, "no frame of its video stream is shown")
            # AVI stores decoding times, which are not those of B-frames.
            has_times = not (kind == "avi" and decoder.has_b_frames)
            if has_times and None not in pts and len(set(pts)) == len(pts):
                times = _times_of_packets(packets, kind in SEEKABLE)
                times["time_base"] = float(stream.time_base or Fraction(1, 1000))
            else:
                rate = stream.average_rate or stream.guessed_rate or Fraction(25)
                times = _count_frames(path, stream.index)
                times["time_base"] = float(1 / rate)
            rotation, mirrored = _orientation(first, path)
            height, width = _display_size(first, _pixel_aspect(stream), rotation)
            info = VideoInfo(
                path, kind, stream.codec_context.name, height, width, rotation,
                mirrored=mirrored, stream=stream.index, **times,
            )  # fmt: skip
    except (FFmpegError, OSError) as error:
        raise _bad_video(path, error) from error
    if not info.frames:
        raise BadVideo(path, "no frame from its first keyframe on is shown")
    check_frame(path, height, width)
    check_length(path, info.frames, info.times[-1])
    return info


def _packets(container, stream, decoder, path: str):
    """Return the first frame, and (pts, is keyframe, is shown) of every packet.

    The counters of a transport stream jump where streams were joined and where packets
    were lost, and FFmpeg marks both as corrupt. Frames are lost only if their times
    jump too.
    """
    first = None
    packets, marked, times = [], [], []
    for packet in container.demux(stream):
        if packet.is_corrupt and container.format.name != "mpegts":
            raise BadVideo(path, f"corrupt or truncated at packet {len(packets)}")
        if packet.size:
            if decoder.name == "theora" and bytes(packet)[0] & 0x80:
                raise BadVideo(path, "its codec headers change: several oggs joined")
            if packet.is_corrupt:
                marked.append(len(packets))
            # VP8 stores hidden reference frames in packets of their own, other codecs
            # in the packet of a shown frame (frame tag, RFC 6386, 9.1).
            is_vp8 = stream.codec_context.name == "vp8"
            hidden = packet.is_discard or is_vp8 and not bytes(packet)[0] & 0x10
            packets.append((packet.pts, packet.is_keyframe, not hidden))
            times.append(np.nan if packet.dts is None else packet.dts)
            check_length(path, len(packets))
        if first is None:
            first = next(iter(decoder.decode(packet)), None)
    steps = np.diff(times)
    for number in marked:
        if (steps[number : number + 2] > GAP_FACTOR * np.nanmedian(steps)).any():
            raise BadVideo(path, f"frames are lost after packet {number}")
    return first, packets


def _check_end(stream, path: str) -> None:
    """Raise BadVideo if an mp4 ends before the last frame of its index.

    FFmpeg does not report a frame that is missing completely.
    """
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if end > (size := os.path.getsize(path)):
        reason = f"truncated: {size} bytes of the {end} in its index"
        raise BadVideo(path, reason)


def _pixel_aspect(stream) -> float:
    """Return the width of a stored pixel divided by its height."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.2 < aspect < 5 else 1.0  # an invalid header


def _display_size(frame, aspect: float, rotation: int) -> tuple[int, int]:
    """Return height and width after pixel aspect and rotation."""
    height, width = frame.height, round(frame.width * aspect)
    return (width, height) if rotation % 180 else (height, width)


def _orientation(frame, path: str) -> tuple[int, bool]:
    """Return (degrees counter-clockwise, mirrored before) of the display matrix.

    Its first two rows and columns a b / c d map a pixel to (a x + c y, b x + d y).
    Singular matrices are ignored, as in ffmpeg. Raises BadVideo for angles that are not
    multiples of 90 degrees.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 0, False
    matrix = np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2]
    scale = np.hypot(*matrix.astype(float))
    if not scale.all():
        return 0, False
    exact = matrix / scale
    (a, b), (c, d) = whole = np.rint(exact).astype(int).tolist()
    if np.abs(exact - whole).max() > MAX_SLANT or abs(a * d - b * c) != 1:
        degrees = np.degrees(np.arctan2(exact[1, 0], exact[0, 0]))
        raise BadVideo(path, f"rotated or sheared, by {degrees:.0f} degrees")
    return int(np.degrees(np.arctan2(c, d))), a * d < b * c


def _times_of_packets(packets, seekable: bool) -> dict[str, Any]:
    """Return the times and the keyframes of the frames that packets show."""
    # The keyframe of an edited file may exist without being shown. Frames before the
    # first keyframe cannot be decoded (a part of a longer stream).
    keys = sorted(pts for pts, is_keyframe, _ in packets if is_keyframe)
    start = keys[0] if keys else packets[0][0]
    shown = sorted(pts for pts, _, shown in packets if shown and pts >= start)
    pts = np.array(shown, np.int64)
    numbers = np.unique(np.searchsorted(pts, keys if seekable and keys else [start]))
    return {"pts": pts, "keyframes": numbers[numbers < len(pts)].astype(np.int64)}


def _count_frames(path: str, stream: int) -> dict[str, Any]:
    """Return the times, in frames, of the frames of a stream that decode."""
    number = 0
    with _open(path) as container:
        for frame in _decode_packets(container, container.streams[stream], path):
            number += 1
            check_frame(path, frame.height, frame.width)
            check_length(path, number)
    keyframes = np.zeros(1, np.int64)
    return {"pts": np.arange(number), "keyframes": keyframes, "counted": True}


def _decode_packets(container, stream, path: str) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream from the container's position to the end."""
    decoder = _decoder(stream, path)
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def decode_frames(info: VideoInfo, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames ``numbers`` (increasing); seek to the keyframe before them.

    Raises BadVideo if a frame is corrupt or missing, or if its aspect is not the one of
    the index. The number of frames is always that of ``numbers``.
    """
    remaining = collections.deque(numbers)
    keyframe = int(np.searchsorted(info.keyframes, remaining[0], side="right")) - 1
    try:
        with _open(info.path) as container:
            stream = container.streams[info.stream]
            aspect = _pixel_aspect(stream)
            if keyframe > 0:
                pts = int(info.pts[info.keyframes[keyframe]])
                with contextlib.suppress(FFmpegError):  # then it decodes from the start
                    container.seek(pts, stream=stream)
            for number, frame in _numbered_frames(container, stream, info):
                if number > remaining[0]:  # the seek went too far, or one is missing
                    break
                if number == remaining[0]:
                    yield _check_picture(frame, aspect, info, number)
                    remaining.popleft()
                    if not remaining:
                        return
    except FFmpegError as error:
        prefix = f"at frame {remaining[0]} of {info.frames}: "
        raise _bad_video(info.path, error, prefix) from error
    if keyframe == 0:
        reason = f"frame {remaining[0]} of {info.frames} does not decode: corrupt"
        raise BadVideo(info.path, f"{reason} or truncated")
    from_start = dataclasses.replace(info, keyframes=np.zeros(1, np.int64))
    yield from decode_frames(from_start, remaining)


def _numbered_frames(container, stream, info: VideoInfo):
    """Yield (number, frame) of the decoded frames that are in the index."""
    for order, frame in enumerate(_decode_packets(container, stream, info.path)):
        if info.counted:
            yield order, frame
            continue
        if frame.pts is None:
            raise BadVideo(info.path, "a frame without time stamp")
        number = int(np.searchsorted(info.pts, frame.pts))
        if number < info.frames and info.pts[number] == frame.pts:
            yield number, frame


def _check_picture(frame, aspect: float, info: VideoInfo, number: int):
    """Return a frame. Raises BadVideo if it is corrupt or has another aspect."""
    if frame.is_corrupt:
        raise BadVideo(info.path, f"frame {number} of {info.frames} is corrupt")
    check_frame(info.path, frame.height, frame.width)
    height, width = _display_size(frame, aspect, info.rotation)
    # Adaptive streams change their size but not their aspect. The callers resize them,
    # as players do.
    if abs(width * info.height / (height * info.width) - 1) >= ASPECT_TOLERANCE:
        change = f"from {info.width}x{info.height} to {width}x{height}"
        raise BadVideo(info.path, f"its frames change {change} at frame {number}")
    return frame


def _bad_video(path: str, error: FFmpegError | OSError, prefix: str = "") -> BadVideo:
    """Return a BadVideo with FFmpeg's message, without its numbers and paths.

    If the system could not read the file, or had no memory, the file may be intact.
    """
    unspecific = error.errno == errno.EPERM  # -1, a decoder's error without a code
    text = (not unspecific and (error.strerror or str(error))) or "does not decode"
    if error.errno == errno.ENOMEM:  # the same message as in sandbox
        text = "the decoder ran out of memory"
    lasting = unspecific or not isinstance(error, (OSError, MemoryError))
    return BadVideo(path, prefix + text[0].lower() + text[1:], lasting)
