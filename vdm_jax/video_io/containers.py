"""Containers of video through PyAV: the index, and frames by number."""

import collections
import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from vdm_jax.video_io.files import BadVideo, check_frame, check_length
from vdm_jax.video_io.info import VideoInfo

DEMUXERS = {
    "mp4": "mp4",
    "mov": "mov",
    "mkv": "matroska",
    "webm": "matroska",
    "avi": "avi",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "m2ts": "mpegts",
    "asf": "asf",
    "flv": "flv",
    "ogg": "ogg",
}
SEEKABLE = {"mp4", "mov", "mkv", "webm", "avi"}  # the others have no index to seek by
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders drop it
MAX_SLANT = 0.0087  # of a unit: half a degree
GAP_FACTOR = 1.5  # of the usual time from a packet to the next
ASPECT_TOLERANCE = 0.03  # of the aspect: the rounding of small pictures


def _open(path: str, kind: str):
    """Open a local file as the container that its magic bytes say, and nothing else."""
    return av.open(
        "file:" + os.path.abspath(path),
        format=DEMUXERS[kind],
        options={"protocol_whitelist": "file"},
        metadata_errors="ignore",
    )


def _rank_streams(container, path: str) -> list:
    """The streams that are videos, in the order in which ffmpeg would choose one.

    That is the default one, or another whose picture has five million pixels more; the
    first among equals. A cover or a chapter's picture is no video.
    """
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        if container.streams.video:
            kinds = ["a cover picture" if kind == "video" else kind for kind in kinds]
        raise BadVideo(path, f"no video stream ({', '.join(kinds) or 'nothing'} only)")

    def rank(stream) -> int:
        coded = stream.codec_context
        pixels = coded.width * coded.height if coded else 0
        return -pixels - 5_000_000 * bool(stream.disposition & Disposition.default)

    return sorted(streams, key=rank)


def _decoder(stream, path: str) -> av.VideoCodecContext:
    """What decodes a stream, in one thread. Raises BadVideo where nothing does."""
    decoder = stream.codec_context
    if decoder is None:
        raise BadVideo(path, "no decoder for its video stream")
    if decoder.name in WITH_ALPHA and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(WITH_ALPHA[decoder.name], "r")
    # One thread: frame threads have deadlocked, and loading is parallel over clips.
    decoder.thread_count = 1
    check_frame(path, stream.codec_context.height, stream.codec_context.width)
    return cast(av.VideoCodecContext, decoder)


def index(path: str, kind: str, rank: int = 0) -> VideoInfo:
    """Index a file by reading its packets once; only the first frame is decoded.

    Where packets do not tell the frames' times (several formats leave out time stamps
    or order them wrongly), frames are counted by decoding all of them. Header fields
    that tell lengths are not believed. Of the video streams the first is taken that
    has frames, from the ``rank``-th on in ffmpeg's order. Raises BadVideo.
    """
    try:
        with _open(path, kind) as container:
            streams = _rank_streams(container, path)
            stream = streams[rank]
            decoder = _decoder(stream, path)
            joined = DEMUXERS[kind] == "mpegts"
            first, packets = _packets(container, stream, decoder, path, joined)
            if kind in ("mp4", "mov"):
                _check_end(stream, path)
            if first is not None:
                rotation, mirrored = _orientation(first, path)
                height, width = _shown_size(first, _pixel_aspect(stream), rotation)
                check_frame(path, height, width)
                common = {
                    "path": path,
                    "kind": kind,
                    "codec": stream.codec_context.name,
                    "height": height,
                    "width": width,
                    "rotation": rotation,
                    "mirrored": mirrored,
                    "stream": stream.index,
                }
                time_base = stream.time_base or Fraction(1, 1000)
                rate = stream.average_rate or stream.guessed_rate or Fraction(25)
                # AVI knows decoding times only: with B-frames its frames come
                # mislabelled.
                stamped = not (kind == "avi" and decoder.has_b_frames)
        pts = [pts for pts, _, shown in packets if shown]
        if first is None or not pts:
            if rank + 1 < len(streams):
                return index(path, kind, rank + 1)
            raise BadVideo(path, "no frame of its video stream is shown")
        if stamped and None not in pts and len(set(pts)) == len(pts):
            return _by_packets(packets, kind, time_base, common)
        return _by_decoding(path, kind, rate, common)
    except (FFmpegError, OSError) as error:
        raise _bad_video(path, error) from error


def _packets(container, stream, decoder, path: str, joined: bool):
    """The first frame, and (pts, is a keyframe, is shown) of every packet.

    joined: the counters of transport streams jump where some were joined, as they do
    where packets were lost; FFmpeg marks both. Frames are lost where their times jump,
    too, and of a part of a frame the decoder tells.
    """
    first, packets, marked, times = None, [], [], []
    for packet in container.demux(stream):
        if packet.is_corrupt and not joined:
            raise BadVideo(path, f"damaged or cut off at packet {len(packets)}")
        if packet.size:
            if decoder.name == "theora" and bytes(packet)[0] & 0x80:
                raise BadVideo(path, "its codec headers change within it: joined oggs")
            if packet.is_corrupt:
                marked.append(len(packets))
            shown = not packet.is_discard and _is_shown(packet, stream)
            packets.append((packet.pts, packet.is_keyframe, shown))
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
    """Raise BadVideo where an mp4 ends before the last frame that its index names.

    A frame that is missing as a whole is not reported by FFmpeg.
    """
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if end > (size := os.path.getsize(path)):
        reason = f"truncated: {size} bytes of the {end} that its index names"
        raise BadVideo(path, reason)


def _is_shown(packet, stream) -> bool:
    """False for VP8's hidden reference frames: bit 4 of the frame tag (RFC 6386, 9.1).

    Other codecs pack them into the packet of a frame that is shown.
    """
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _pixel_aspect(stream) -> float:
    """Width of a stored pixel to its height."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.2 < aspect < 5 else 1.0  # nonsense in the header


def _shown_size(frame, aspect: float, rotation: int) -> tuple[int, int]:
    """Height and width after pixel aspect and rotation."""
    height, width = frame.height, round(frame.width * aspect)
    return (width, height) if rotation % 180 else (height, width)


def _orientation(frame, path: str) -> tuple[int, bool]:
    """(degrees counter-clockwise, mirrored before) from stored to shown.

    From the display matrix, whose first two rows and columns a b / c d put a pixel at
    (a x + c y, b x + d y). One that maps all on a line or a point says nothing: ffmpeg
    shows the picture as it is stored. BadVideo for other angles than quarter turns.
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
        raise BadVideo(path, f"shown turned or slanted, by {degrees:.0f} degrees")
    return int(np.degrees(np.arctan2(c, d))), a * d < b * c


def _by_packets(packets, kind: str, time_base: Fraction, common: dict) -> VideoInfo:
    # An edited file may start amid a group: its keyframe is there, but not shown. What
    # precedes the first keyframe cannot be decoded (a cut out of a longer stream).
    keys = sorted(pts for pts, is_keyframe, _ in packets if is_keyframe)
    begin = keys[0] if keys else packets[0][0]
    pts = np.array(
        sorted(pts for pts, _, shown in packets if shown and pts >= begin), np.int64
    )
    if kind not in SEEKABLE:
        keys = []
    check_length(common["path"], len(pts), float((pts[-1] - pts[0]) * time_base))
    numbers = np.unique(np.searchsorted(pts, keys or [begin]))
    return VideoInfo(
        pts=pts,
        time_base=time_base,
        keyframes=numbers[numbers < len(pts)].astype(np.int64),
        **common,
    )


def _by_decoding(path: str, kind: str, rate: Fraction, common: dict) -> VideoInfo:
    with _open(path, kind) as container:
        number = 0
        for frame in _decode_packets(
            container, container.streams[common["stream"]], path
        ):
            number += 1
            check_frame(path, frame.height, frame.width)
            check_length(path, number, float(number / rate))
    return VideoInfo(
        pts=np.arange(number),
        time_base=1 / rate,
        keyframes=np.zeros(1, np.int64),
        counted=True,
        **common,
    )


def _decode_packets(container, stream, path: str) -> Iterator[av.VideoFrame]:
    """All frames of a stream from where the container stands."""
    decoder = _decoder(stream, path)
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def decode_frames(info: VideoInfo, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Decode the frames ``numbers`` (increasing), seeking to the keyframe before them.

    Raises BadVideo where one of them is damaged or missing, or its picture has another
    shape than the first one's: never fewer frames.
    """
    left = collections.deque(numbers)
    at = int(np.searchsorted(info.keyframes, left[0], side="right")) - 1
    try:
        with _open(info.path, info.kind) as container:
            stream, reached = container.streams[info.stream], False
            aspect, angle = _pixel_aspect(stream), None
            orientation = info.rotation, info.mirrored
            if at > 0:
                with contextlib.suppress(FFmpegError):  # then it decodes from the start
                    container.seek(int(info.pts[info.keyframes[at]]), stream=stream)
            for number, frame in _numbered(container, stream, info):
                if not reached and at > 0 and number > left[0]:
                    break  # the seek went too far: from the start, below
                reached = True
                if number > left[0]:
                    raise BadVideo(info.path, f"frame {left[0]} does not decode")
                if number == left[0]:
                    # A frame whose side data are read is freed at the next collection
                    # of garbage only: they are read where FFmpeg's angle is another.
                    if frame.rotation != angle:
                        angle = frame.rotation
                        orientation = _orientation(frame, info.path)
                    yield _checked(frame, aspect, orientation, info, number)
                    left.popleft()
                    if not left:
                        return
        if reached or at == 0:
            raise BadVideo(
                info.path,
                f"frame {left[0]} of {info.frames} does not decode: cut or damaged",
            )
    except FFmpegError as error:
        where = f"at frame {left[0]} of {info.frames}: "
        raise _bad_video(info.path, error, where) from error
    unsought = dataclasses.replace(info, keyframes=np.zeros(1, np.int64))
    yield from decode_frames(unsought, left)


def _numbered(container, stream, info: VideoInfo):
    """Decoded frames with their numbers; what the index does not show is left out."""
    for order, frame in enumerate(_decode_packets(container, stream, info.path)):
        if info.counted:
            yield order, frame
            continue
        if frame.pts is None:
            raise BadVideo(info.path, "a frame without time stamp")
        number = int(np.searchsorted(info.pts, frame.pts))
        if number < info.frames and info.pts[number] == frame.pts:
            yield number, frame


def _checked(
    frame, aspect: float, orientation: tuple[int, bool], info: VideoInfo, number: int
):
    if frame.is_corrupt:
        raise BadVideo(info.path, f"frame {number} of {info.frames} is damaged")
    check_frame(info.path, frame.height, frame.width)
    height, width = _shown_size(frame, aspect, orientation[0])
    # Streams that adapt to a line change their size and not their shape: players, and
    # what follows here, resize these.
    same_shape = abs(width * info.height / (height * info.width) - 1) < ASPECT_TOLERANCE
    turned = orientation != (info.rotation, info.mirrored)
    if turned or not same_shape:
        raise BadVideo(
            info.path,
            f"its picture changes from {info.width}x{info.height} to {width}x{height}"
            + ", turned or mirrored," * turned
            + f" at frame {number}",
        )
    return frame


def _bad_video(path: str, error: FFmpegError | OSError, where: str = "") -> BadVideo:
    """FFmpeg's words without its numbers and paths.

    Where the system could not read the file, or had no memory, it may be sound.
    """
    unsaid = error.errno == errno.EPERM  # -1, which decoders return for want of words
    text = "" if unsaid else error.strerror or str(error)
    text = text or "does not decode"
    if error.errno == errno.ENOMEM:  # as guard says of what Python could not have
        text = "the decoder ran out of memory"
    return BadVideo(
        path,
        where + text[0].lower() + text[1:],
        lasting=unsaid or not isinstance(error, (OSError, MemoryError)),
    )
