"""Index and frames of video containers: vdm_jax/video_io/containers.py."""

import errno
import gc
import io
import json
import pathlib
import struct
from fractions import Fraction

import av
import av.error
import numpy as np
import pytest

from tests.video_io.samples import (
    FORMATS,
    FRAMES,
    HEIGHT,
    MANY_KEYFRAMES,
    NAMES,
    VIDEO,
    WIDTH,
    encode,
    make_file,
    read_clip,
    synthetic_video,
)
from vdm_jax import video_io
from vdm_jax.video_io import BadVideo, containers


@pytest.mark.parametrize("name", NAMES)
def test_the_index_counts_the_decoded_frames(videos, name):
    info = video_io.probe(videos[name])
    assert (info.frames, info.height, info.width) == (FRAMES, HEIGHT, WIDTH)
    if name == "frames":
        assert info.fps is None and info.duration is None
    else:
        assert info.fps == pytest.approx(25, rel=0.01) and not info.variable
    if name in FORMATS:  # an independent count
        with av.open(str(videos[name])) as container:
            assert sum(1 for _ in container.decode(video=0)) == info.frames
    assert (
        len(info.keyframes) == (FRAMES if name == "frames" else 1)
        or name in MANY_KEYFRAMES
    )
    again = video_io.VideoInfo.from_json(json.loads(json.dumps(info.to_json())))
    np.testing.assert_equal(vars(again), vars(info))


def test_files_with_many_keyframes_are_read_by_seeking(videos, monkeypatch):
    decoded = []
    plain = containers._numbered_frames

    def counting(*args):
        for item in plain(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(containers, "_numbered_frames", counting)
    for name in sorted(MANY_KEYFRAMES):
        info = video_io.probe(videos[name])
        decoded.clear()
        video_io.read_frames(info, [FRAMES - 1])
        assert decoded == list(range(info.keyframes[-1], FRAMES)), name


def test_a_seek_that_goes_too_far_is_corrected(videos, monkeypatch):
    info = video_io.probe(videos["dense.mp4"])
    right = video_io.read_frames(info, [9, 10])
    plain = containers._numbered_frames
    firsts = []

    def late(container, stream, info):
        if not firsts:
            container.seek(int(info.pts[16]), stream=stream)
        for item in plain(container, stream, info):
            firsts.append(item[0])
            yield item

    monkeypatch.setattr(containers, "_numbered_frames", late)
    assert (video_io.read_frames(info, [9, 10]) == right).all()
    assert firsts[:2] == [16, 0]


def test_hidden_vp8_frames_are_not_counted(videos, tmp_path):
    path = tmp_path / "hidden.webm"
    with (
        av.open(str(videos["vp8.webm"])) as source,
        av.open(str(path), "w", format="webm") as out,
    ):
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if not packet.size:
                continue
            data = bytearray(bytes(packet))
            if number in (3, 12):
                data[0] &= ~0x10  # show_frame
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts = packet.pts, packet.dts
            changed.is_keyframe, changed.time_base = (
                packet.is_keyframe,
                (packet.time_base),
            )
            changed.stream = copy
            out.mux(changed)
    assert video_io.probe(path).frames == FRAMES - 2
    assert len(read_clip(path)) == FRAMES - 2


def test_an_edit_list_cuts_the_start_exactly(videos, tmp_path):
    """Phones trim this way: frames before the edit are stored but not shown."""
    data = bytearray(videos["dense.mp4"].read_bytes())
    place = data.index(b"elst") + 12  # version and flags, one entry: duration, start
    duration, start = struct.unpack_from(">Ii", data, place)
    per_frame = start // 2  # two frames of reordering
    struct.pack_into(">i", data, place + 4, start + 3 * per_frame)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data)
    info, full = video_io.probe(path), read_clip(videos["dense.mp4"])
    assert info.frames == FRAMES - 3 and info.keyframes.tolist() == [0, 5, 13, 21]
    assert (read_clip(path) == full[3:]).all()
    assert (video_io.read_frames(info, [0, 4, 6]) == full[[3, 7, 9]]).all()


def test_a_live_file_without_duration(tmp_path):
    class Pipe(
        io.RawIOBase
    ):  # without seeking, a muxer writes no sizes and no duration
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    encode(pipe, *FORMATS["a.mkv"])
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.data)
    with av.open(str(path)) as container:
        assert container.duration is None and container.streams.video[0].frames == 0
    assert read_clip(path).shape[0] == FRAMES


def with_display_matrix(path, into, a, b, c, d):
    """Copy an mp4 and set its display matrix: pixels go to (a x + c y, b x + d y)."""
    data, one, unit = bytearray(path.read_bytes()), 1 << 16, 1 << 30
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, unit)
    place = data.index(identity, data.index(b"tkhd"))
    a, b, c, d = (round(one * value) for value in (a, b, c, d))
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, unit)
    into.write_bytes(data)
    return into


NOT_ROTATED = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
ROTATED = [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
SINGULAR = [
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
]  # all pixels map to a line or a point


@pytest.mark.parametrize("matrix", NOT_ROTATED + ROTATED + SINGULAR)
def test_frames_are_rotated_and_mirrored_for_display(videos, tmp_path, matrix):
    path = with_display_matrix(videos["single.mp4"], tmp_path / "phone.mp4", *matrix)
    stored = read_clip(videos["single.mp4"])
    a, b, c, d = (1, 0, 0, 1) if matrix in SINGULAR else matrix
    shown = stored if a else stored.transpose(0, 2, 1, 3)
    shown = shown[:, :, ::-1] if a + c < 0 else shown
    shown = shown[:, ::-1] if b + d < 0 else shown
    info = video_io.probe(path)
    assert (info.height, info.width) == shown.shape[1:3]
    assert (read_clip(path) == shown).all()
    assert read_clip(path, count=2, size=(24, 16)).shape == (2, 24, 16, 3)


@pytest.mark.parametrize("matrix", [(0.996, 0.087, -0.087, 0.996), (1, 0.3, 0, 1)])
def test_a_sheared_video_is_rejected(videos, tmp_path, matrix):
    path = with_display_matrix(videos["single.mp4"], tmp_path / "phone.mp4", *matrix)
    with pytest.raises(BadVideo, match="rotated or sheared"):
        video_io.probe(path)


def write_streams(path, clips, flags):
    """Write a mkv with a stream per clip; flags: "default", "attached_pic", ""."""
    with av.open(str(path), "w", format="matroska") as out:
        streams = []
        for clip, flag in zip(clips, flags, strict=True):
            stream = out.add_stream("libx264", rate=25)
            stream.height, stream.width = clip.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition[flag] if flag else 0
            streams.append(stream)
        for stream, clip in zip(streams, clips, strict=True):
            for pixels in clip:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            out.mux(stream.encode())


SMALL, EMPTY = synthetic_video(5, 16, 16), np.zeros((0, 32, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("clips", "flags", "taken"),
    [
        ((SMALL, VIDEO), ("", "default"), 1),
        ((VIDEO, SMALL), ("", "default"), 1),
        ((SMALL, VIDEO), ("", ""), 1),  # the larger
        ((SMALL, SMALL[:3]), ("", ""), 0),
        ((EMPTY, SMALL), ("default", ""), 1),  # the default one has no frames
    ],
)
def test_the_stream_that_a_player_shows_is_read(tmp_path, clips, flags, taken):
    path = tmp_path / "a.mkv"
    write_streams(path, clips, flags)
    info = video_io.probe(path)
    assert info.stream == taken
    assert read_clip(path).shape == clips[taken].shape


def test_a_frame_size_that_changes_within_a_file(tmp_path):
    """Another size of the same aspect is resized; another aspect is rejected."""

    def joined(path, *clips):
        with av.open(str(path), "w", format="matroska") as out:
            copy, at = None, 0
            for clip in clips:
                part = io.BytesIO()
                encode(part, *FORMATS["vp9.webm"], video=clip)
                part.seek(0)
                with av.open(part) as source:
                    stream = source.streams.video[0]
                    copy = copy or out.add_stream_from_template(stream)
                    for packet in source.demux(stream):
                        if packet.size:
                            packet.pts = packet.dts = at = at + 40
                            packet.stream = copy
                            out.mux(packet)
        return path

    small = synthetic_video(5, 16, 24)
    video = read_clip(joined(tmp_path / "a.mkv", VIDEO[:5], small))
    assert video.shape == (10, HEIGHT, WIDTH, 3)
    error = np.abs(video[5:, ::2, ::2].astype(int) - small)
    assert error.mean() < 8
    path = joined(tmp_path / "b.mkv", VIDEO[:5], synthetic_video(5, 48, 32))
    info = video_io.probe(path)
    assert len(video_io.read_frames(info, [0, 4])) == 2
    with pytest.raises(BadVideo, match="change from 48x32 to 32x48 at frame 5"):
        read_clip(path)


def test_the_pixel_aspect_is_applied(tmp_path):
    path = make_file(tmp_path, "a.mkv", sample_aspect_ratio=Fraction(3, 2))
    info = video_io.probe(path)
    assert (info.height, info.width) == (HEIGHT, WIDTH * 3 // 2)
    assert read_clip(path, count=1).shape == (1, HEIGHT, WIDTH * 3 // 2, 3)


def test_an_mp4_without_its_last_frames_is_truncated(videos, tmp_path):
    """FFmpeg reports a truncated frame, but not a missing one."""
    path = tmp_path / "a.mp4"
    with av.open(str(videos["dense.mp4"])) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(videos["dense.mp4"].read_bytes()[: packets[-1]])
    with pytest.raises(BadVideo, match="truncated: .* bytes of the .* in its index"):
        video_io.probe(path)


def test_joined_oggs_are_rejected(tmp_path):
    """PyAV cannot encode Theora. The file has ten frames of ffmpeg's testsrc2."""
    path = tmp_path / "a.ogv"
    path.write_bytes(
        (pathlib.Path(__file__).parents[1] / "files" / "theora.ogv").read_bytes()
    )
    assert video_io.probe(path).frames == 10
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BadVideo, match="headers change: several oggs joined") as bad:
        video_io.probe(path)
    assert bad.value.lasting


def test_an_unspecific_decoder_error_is_lasting():
    """It returns -1, whose system message is "operation not permitted"."""
    bad = containers._bad_video("a.mp4", av.error.PermissionError(errno.EPERM, "no"))
    assert bad.lasting and bad.reason == "does not decode"
    bad = containers._bad_video("a.mp4", av.error.PermissionError(errno.EACCES, "no"))
    assert not bad.lasting


def test_frames_are_freed_after_use(videos):
    """Without garbage collection: hundreds of large frames would fill the memory."""

    def alive() -> int:
        return sum(type(each) is av.VideoFrame for each in gc.get_objects())

    info = video_io.probe(videos["dense.mp4"])
    gc.collect()
    gc.disable()
    try:
        before = alive()
        assert sum(1 for _ in containers.decode_frames(info, range(info.frames))) > 9
        assert alive() - before < 3
    finally:
        gc.enable()


def test_joined_transport_streams_decode_and_lost_packets_fail(videos, tmp_path):
    """`cat a.ts b.ts` joins transport streams."""
    data, path = videos["a.ts"].read_bytes(), tmp_path / "a.ts"
    once = read_clip(videos["a.ts"])
    path.write_bytes(data + data)
    assert (read_clip(path) == np.concatenate([once, once])).all()
    middle = len(data) // 376 * 188
    path.write_bytes(data[:middle] + data[middle + 3 * 188 :])
    with pytest.raises(BadVideo, match="frames are lost after packet"):
        read_clip(path)


def test_frames_that_are_corrupted_after_indexing(videos, tmp_path):
    path = tmp_path / "a.mp4"
    data = videos["dense.mp4"].read_bytes()
    path.write_bytes(data)
    assert video_io.probe(path).frames == FRAMES
    half = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    with pytest.raises(BadVideo, match="frame"):
        read_clip(path)
