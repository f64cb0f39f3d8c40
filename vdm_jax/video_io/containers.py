"""mp4, mov, mkv, webm, avi and mpeg through PyAV: the index, and frames by number."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction

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
}


def _open(path: str, kind: str):
    """Open a local file as the container that its magic bytes say, and nothing else."""
    return av.open(
        "file:" + os.path.abspath(path),
        format=DEMUXERS[kind],
        options={"protocol_whitelist": "file"},
        metadata_errors="ignore",
    )


def _stream(container, path: str):
    """The first stream that is a video, not a cover picture, with its decoder."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise BadVideo(path, f"no video stream ({', '.join(kinds) or 'nothing'} only)")
    stream = streams[0]
    if stream.codec_context is None:
        raise BadVideo(path, "no decoder for its video stream")
    # One thread: frame threads have deadlocked, and loading is parallel over clips.
    stream.codec_context.thread_count = 1
    check_frame(path, stream.codec_context.height, stream.codec_context.width)
    return stream


def index(path: str, kind: str) -> VideoInfo:
    """Index a file by reading its packets once; only the first frame is decoded.

    Where packets do not tell the frames' times (several formats leave out time stamps
    or order them wrongly), frames are counted by decoding all of them.
    Raises BadVideo.
    """
    try:
        with _open(path, kind) as container:
            stream = _stream(container, path)
            check_length(path, stream.frames, (container.duration or 0) / av.time_base)
            first, packets = _packets(container, stream, path)
            height, width = _shown_size(first, stream)
            check_frame(path, height, width)
            common = {
                "path": path,
                "kind": kind,
                "codec": stream.codec_context.name,
                "height": height,
                "width": width,
                "rotation": first.rotation,
            }
            time_base = stream.time_base or Fraction(1, 1000)
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            # AVI knows decoding times only: with B-frames its frames come mislabelled.
            stamped = not (kind == "avi" and stream.codec_context.has_b_frames)
        pts = [pts for pts, _, shown in packets if shown]
        if stamped and None not in pts and len(set(pts)) == len(pts):
            return _by_packets(packets, kind, time_base, common)
        return _by_decoding(path, kind, rate, common)
    except FFmpegError as error:
        raise BadVideo(path, _words(error)) from error


def _packets(container, stream, path: str):
    """The first frame, and (pts, is a keyframe, is shown) of every packet."""
    first, packets = None, []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise BadVideo(path, f"damaged or cut off at packet {len(packets)}")
        if packet.size:
            shown = not packet.is_discard and _is_shown(packet, stream)
            packets.append((packet.pts, packet.is_keyframe, shown))
            check_length(path, len(packets))
        if first is None:
            first = next(iter(packet.decode()), None)
    if first is None or not any(shown for _, _, shown in packets):
        raise BadVideo(path, "no frame in its video stream")
    return first, packets


def _is_shown(packet, stream) -> bool:
    """False for VP8's hidden reference frames: bit 4 of the frame tag (RFC 6386, 9.1).

    Other codecs pack them into the packet of a frame that is shown.
    """
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _shown_size(frame, stream) -> tuple[int, int]:
    """Height and width after pixel aspect and rotation."""
    aspect = float(stream.sample_aspect_ratio or 1)
    aspect = aspect if 0.2 < aspect < 5 else 1.0  # nonsense in the header
    height, width = frame.height, round(frame.width * aspect)
    return (width, height) if frame.rotation % 180 else (height, width)


def _by_packets(packets, kind: str, time_base: Fraction, common: dict) -> VideoInfo:
    # An edited file may start amid a group: its keyframe is there, but not shown. What
    # precedes the first keyframe cannot be decoded (a cut out of a longer stream).
    keys = sorted(pts for pts, is_keyframe, _ in packets if is_keyframe)
    begin = keys[0] if keys else packets[0][0]
    pts = np.array(
        sorted(pts for pts, _, shown in packets if shown and pts >= begin), np.int64
    )
    if kind == "mpeg":  # no index to seek by
        keys = []
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
        for frame in container.decode(_stream(container, path)):
            number += 1
            check_frame(path, frame.height, frame.width)
            check_length(path, number)
    return VideoInfo(
        pts=np.arange(number),
        time_base=1 / rate,
        keyframes=np.zeros(1, np.int64),
        counted=True,
        **common,
    )


def pictures(info: VideoInfo, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Decode the frames ``numbers`` (increasing), seeking to the keyframe before them.

    Raises BadVideo where one of them is damaged or missing: never fewer frames.
    """
    wanted = list(numbers)
    at = int(np.searchsorted(info.keyframes, wanted[0], side="right")) - 1
    try:
        with _open(info.path, info.kind) as container:
            stream = _stream(container, info.path)
            if at > 0:
                container.seek(int(info.pts[info.keyframes[at]]), stream=stream)
            reached = False
            for number, frame in _numbered(container, stream, info):
                if not reached and at > 0 and number > wanted[0]:
                    break  # the seek went too far: from the start, below
                reached = True
                if number > wanted[0]:
                    raise BadVideo(info.path, f"frame {wanted[0]} does not decode")
                if number == wanted[0]:
                    yield _sound(frame, info, number)
                    if not wanted[1:]:
                        return
                    wanted = wanted[1:]
        if reached or at == 0:
            raise BadVideo(
                info.path,
                f"frame {wanted[0]} of {info.frames} does not decode: cut or damaged",
            )
    except FFmpegError as error:
        raise BadVideo(
            info.path, f"at frame {wanted[0]} of {info.frames}: {_words(error)}"
        ) from error
    unsought = dataclasses.replace(info, keyframes=np.zeros(1, np.int64))
    yield from pictures(unsought, wanted)


def _numbered(container, stream, info: VideoInfo):
    """Decoded frames with their numbers; what the index does not show is left out."""
    for order, frame in enumerate(container.decode(stream)):
        if info.counted:
            yield order, frame
            continue
        if frame.pts is None:
            raise BadVideo(info.path, "a frame without time stamp")
        number = int(np.searchsorted(info.pts, frame.pts))
        if number < info.frames and info.pts[number] == frame.pts:
            yield number, frame


def _sound(frame, info: VideoInfo, number: int):
    if frame.is_corrupt:
        raise BadVideo(info.path, f"frame {number} of {info.frames} is damaged")
    check_frame(info.path, frame.height, frame.width)
    return frame


def _words(error: Exception) -> str:
    """FFmpeg's words without its numbers and paths."""
    text = getattr(error, "strerror", None) or str(error)
    return text[0].lower() + text[1:] if text else type(error).__name__
