"""Laws of reading and writing videos, on files made on the spot in every container."""

import errno
import gc
import io
import json
import os
import pathlib
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction

import av
import av.error
import numpy as np
import pytest
from PIL import Image

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, atomic_write
from vdm_jax.video_io import BadVideo, cache, containers, files, sandbox, stills
from vdm_jax.video_io.sandbox import SandboxedDecoder

FRAMES, HEIGHT, WIDTH = 26, 32, 48
GOP = 8


def footage(frames=FRAMES, height=HEIGHT, width=WIDTH, channels=3):
    """Smooth colours that differ much from frame to frame."""
    rows, columns = np.mgrid[:height, :width] / height
    waves = [
        np.sin(3 * rows + 2 * columns + 0.2 * n + c)
        for n in range(frames)
        for c in range(channels)
    ]
    video = np.reshape(waves, (frames, channels, height, width)).transpose(0, 2, 3, 1)
    return np.round(127.5 + 110 * video).astype(np.uint8)


VIDEO = footage()

# name -> container, codec, keyframe distance, options
KINDS = {
    "dense.mp4": ("mp4", "libx264", GOP, {"bf": "2"}),
    "single.mp4": ("mp4", "libx264", 999, {"bf": "3"}),
    "a.mov": ("mov", "mpeg4", GOP, {"bf": "2"}),
    "vp8.webm": ("webm", "libvpx", GOP, {}),
    "vp9.webm": ("webm", "libvpx-vp9", GOP, {"cpu-used": "8", "deadline": "realtime"}),
    "a.mkv": ("matroska", "libx264", GOP, {"bf": "2"}),
    "b.avi": ("avi", "mpeg4", GOP, {"bf": "2"}),
    "mislabelled.avi": ("avi", "libx264", GOP, {"bf": "2"}),
    "a.mpg": ("mpeg", "mpeg2video", GOP, {"bf": "2"}),
    "a.ts": ("mpegts", "libx264", GOP, {"bf": "2"}),
    "a.m2ts": ("mpegts", "mpeg2video", GOP, {"bf": "2", "mpegts_m2ts_mode": "1"}),
    "a.wmv": ("asf", "wmv2", GOP, {}),
    "a.flv": ("flv", "libx264", GOP, {"bf": "2"}),
    "a.ogv": ("ogg", "libvpx", GOP, {}),
    "a.3gp": ("3gp", "libx264", GOP, {"bf": "2"}),
}
DENSE = {"dense.mp4", "a.mov", "vp8.webm", "vp9.webm", "a.mkv", "a.3gp"}


def encode(path, container, codec, gop, options, video=VIDEO, fps=25, pts=None, **set_):
    muxer = {"movflags": "faststart"}
    options = dict(options)
    if "mpegts_m2ts_mode" in options:
        muxer = {"mpegts_m2ts_mode": options.pop("mpegts_m2ts_mode")}
    with av.open(path, "w", format=container, options=muxer) as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.bit_rate = gop, 3_000_000
        for name, value in set_.items():
            place = stream if hasattr(stream, name) else stream.codec_context
            setattr(place, name, value)
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def make(folder, name, **changes):
    """A file of any kind of KINDS, a gif, a webp or a folder of frames."""
    path = folder / name
    video = changes.pop("video", VIDEO)
    pictures = [Image.fromarray(pixels) for pixels in video]
    if name.endswith((".gif", ".webp")):
        more = {"lossless": True} if name.endswith(".webp") else {}
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=40, **more
        )
    elif name == "frames":
        path.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(path / f"frame{number}.png")
    else:
        encode(str(path), *KINDS[name], video=video, **changes)
    return path


ALL = [*KINDS, "a.gif", "a.webp", "frames"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: make(folder, name) for name in ALL}


@pytest.fixture(scope="module")
def child():
    child = SandboxedDecoder()
    yield child
    child.close()


# ---- the index, and clips against a full decode ----


@pytest.mark.parametrize("name", ALL)
def test_index_counts_what_decodes(made, name):
    info = video_io.probe(made[name])
    assert (info.frames, info.height, info.width) == (FRAMES, HEIGHT, WIDTH)
    if name == "frames":
        assert info.fps is None and info.duration is None
    else:
        assert info.fps == pytest.approx(25, rel=0.01) and not info.variable
    if name in KINDS:  # an independent count
        with av.open(str(made[name])) as container:
            assert sum(1 for _ in container.decode(video=0)) == info.frames
    assert len(info.keyframes) == (FRAMES if name == "frames" else 1) or name in DENSE
    again = video_io.VideoInfo.from_json(json.loads(json.dumps(info.to_json())))
    np.testing.assert_equal(vars(again), vars(info))


@pytest.mark.parametrize("name", ALL)
def test_frames_come_in_presentation_order(made, name):
    """Each decoded frame is nearer to its own source frame than to any other."""
    video = video_io.read(made[name]).astype(float)
    distance = np.abs(video[:, None] - VIDEO[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(FRAMES)).all()
    if name in ("a.webp", "frames"):
        assert (video == VIDEO).all()  # lossless


@pytest.mark.parametrize("name", ALL)
def test_a_clip_is_a_slice_of_the_full_decode(made, name):
    info, full = video_io.probe(made[name]), video_io.read(made[name])
    for start, count, stride in [(0, 3, 1), (7, 4, 1), (9, 4, 5), (FRAMES - 1, 1, 1)]:
        clip = video_io.read(made[name], start, count, stride, index=info)
        assert (clip == full[start:][: count * stride : stride]).all()
    order = [20, 3, 3, 11]
    assert (video_io.read_frames(info, order) == full[order]).all()


def test_dense_files_are_read_by_seeking(made, monkeypatch):
    decoded = []
    plain = containers._numbered

    def counting(*args):
        for item in plain(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(containers, "_numbered", counting)
    for name in sorted(DENSE):
        info = video_io.probe(made[name])
        decoded.clear()
        video_io.read_frames(info, [FRAMES - 1])
        assert decoded == list(range(info.keyframes[-1], FRAMES)), name


def test_cost_is_the_mean_number_of_frames_decoded(made):
    info, span = video_io.probe(made["dense.mp4"]), 5
    assert info.keyframes.tolist() == [0, 8, 16, 24]
    brute = [s % GOP + span for s in range(FRAMES - span + 1)]
    assert video_io.seek_cost(info, span) == pytest.approx(np.mean(brute))


def test_a_seek_that_lands_too_late_is_mended(made, monkeypatch):
    info = video_io.probe(made["dense.mp4"])
    right = video_io.read_frames(info, [9, 10])
    plain = containers._numbered
    firsts = []

    def late(container, stream, info):
        if not firsts:
            container.seek(int(info.pts[16]), stream=stream)
        for item in plain(container, stream, info):
            firsts.append(item[0])
            yield item

    monkeypatch.setattr(containers, "_numbered", late)
    assert (video_io.read_frames(info, [9, 10]) == right).all()
    assert firsts[:2] == [16, 0]


def test_hidden_vp8_frames_are_not_counted(made, tmp_path):
    path = tmp_path / "hidden.webm"
    with (
        av.open(str(made["vp8.webm"])) as source,
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
    assert len(video_io.read(path)) == FRAMES - 2


def test_an_edit_list_cuts_the_start_exactly(made, tmp_path):
    """As phones trim: frames before the edit stay in the file and are not shown."""
    data = bytearray(made["dense.mp4"].read_bytes())
    place = data.index(b"elst") + 12  # version and flags, one entry: duration, start
    duration, start = struct.unpack_from(">Ii", data, place)
    per_frame = start // 2  # two frames of reordering
    struct.pack_into(">i", data, place + 4, start + 3 * per_frame)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data)
    info, full = video_io.probe(path), video_io.read(made["dense.mp4"])
    assert info.frames == FRAMES - 3 and info.keyframes.tolist() == [0, 5, 13, 21]
    assert (video_io.read(path) == full[3:]).all()
    assert (video_io.read_frames(info, [0, 4, 6]) == full[[3, 7, 9]]).all()


# ---- time ----

UNEVEN = np.cumsum([0] + [40, 40, 80, 20] * 6)[:FRAMES].tolist()


@pytest.fixture(scope="module", params=["mp4", "matroska"])
def uneven(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vfr") / "vfr.video"
    video = VIDEO[: len(UNEVEN)]
    encode(str(path), request.param, "libx264", GOP, {}, video, 1000, UNEVEN)
    return path


def test_variable_frame_rate_is_seen(uneven):
    info = video_io.probe(uneven)
    assert info.variable and info.frames == len(UNEVEN)
    np.testing.assert_allclose(info.times, np.array(UNEVEN) / 1000, atol=1e-3)
    assert "variable" in video_io.describe_frame_selection(info)


@pytest.mark.parametrize("fps", [5.0, 8.0, 12.5, 20.0])
def test_target_rate_takes_the_nearest_frames(uneven, fps):
    info = video_io.probe(uneven)
    count = 5
    room = video_io.num_starts(info, count, fps=fps)
    assert 0 < room < info.frames
    for start in (0, 3, room - 1):
        wanted = info.times[start] + np.arange(count) / fps
        brute = [int(np.abs(info.times - time).argmin()) for time in wanted]
        assert video_io.clip_frames(info, start, count, fps=fps).tolist() == brute
        assert wanted[-1] <= info.times[-1] + 0.5 / info.fps
    assert video_io.clip_frames(info, room, count, fps=fps).max() == info.frames - 1
    assert f"nearest to {fps:g} fps" in video_io.describe_frame_selection(info, fps=fps)


def test_a_rate_within_one_percent_takes_every_frame(made):
    info = video_io.probe(made["dense.mp4"])
    near = video_io.clip_frames(info, 2, 6, fps=25.1)
    assert near.tolist() == [2, 3, 4, 5, 6, 7]
    assert video_io.clip_frames(info, 2, 3, fps=12.5).tolist() == [2, 4, 6]
    with pytest.raises(BadVideo, match="25 frames a second are below the 30"):
        video_io.num_starts(info, 6, fps=30)


@pytest.mark.parametrize("stride", [1, 3])
def test_every_start_has_room_and_the_next_has_none(made, stride):
    info, count = video_io.probe(made["dense.mp4"]), 4
    room = video_io.num_starts(info, count, stride)
    assert video_io.clip_frames(info, room - 1, count, stride)[-1] == info.frames - 1
    with pytest.raises(BadVideo, match="too short: 26 frames, a clip spans 31 frames"):
        video_io.num_starts(info, 31)
    with pytest.raises(ValueError):
        video_io.read(made["dense.mp4"], room, count, stride)


def test_one_frame_is_too_short_for_a_clip(tmp_path):
    path = make(tmp_path, "a.mkv", video=VIDEO[:1])
    info = video_io.probe(path)
    assert (info.frames, info.fps, info.duration) == (1, None, None)
    assert video_io.num_starts(info, 1) == 1
    with pytest.raises(BadVideo, match="too short: 1 frame, a clip spans 2"):
        video_io.num_starts(info, 2)


def test_a_live_file_without_duration(tmp_path):
    class Pipe(io.RawIOBase):  # a muxer that cannot seek leaves sizes and duration out
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    encode(pipe, *KINDS["a.mkv"])
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.data)
    with av.open(str(path)) as container:
        assert container.duration is None and container.streams.video[0].frames == 0
    assert video_io.read(path).shape[0] == FRAMES


# ---- geometry ----


def with_matrix(path, into, a, b, c, d):
    """A copy of an mp4 whose pixels are shown at (a x + c y, b x + d y)."""
    data, one, unit = bytearray(path.read_bytes()), 1 << 16, 1 << 30
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, unit)
    place = data.index(identity, data.index(b"tkhd"))
    a, b, c, d = (round(one * value) for value in (a, b, c, d))
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, unit)
    into.write_bytes(data)
    return into


SQUARE = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
TURNED = [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]
NO_PLACE = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0)]  # all pixels on a line or a point


@pytest.mark.parametrize("matrix", SQUARE + TURNED + NO_PLACE)
def test_pictures_are_turned_and_mirrored_as_shown(made, tmp_path, matrix):
    path = with_matrix(made["single.mp4"], tmp_path / "phone.mp4", *matrix)
    stored = video_io.read(made["single.mp4"])
    a, b, c, d = (1, 0, 0, 1) if matrix in NO_PLACE else matrix
    shown = stored if a else stored.transpose(0, 2, 1, 3)
    shown = shown[:, :, ::-1] if a + c < 0 else shown
    shown = shown[:, ::-1] if b + d < 0 else shown
    info = video_io.probe(path)
    assert (info.height, info.width) == shown.shape[1:3]
    assert (video_io.read(path) == shown).all()
    assert video_io.read(path, count=2, size=(24, 16)).shape == (2, 24, 16, 3)


@pytest.mark.parametrize("matrix", [(0.996, 0.087, -0.087, 0.996), (1, 0.3, 0, 1)])
def test_a_slanted_picture_is_refused(made, tmp_path, matrix):
    path = with_matrix(made["single.mp4"], tmp_path / "phone.mp4", *matrix)
    with pytest.raises(BadVideo, match="turned or slanted"):
        video_io.probe(path)


def streams_in_a_file(path, clips, flags):
    """A mkv with a stream for each clip; flags: "default", "attached_pic", ""."""
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


SMALL, EMPTY = footage(5, 16, 16), np.zeros((0, 32, 48, 3), np.uint8)


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
def test_the_stream_that_a_player_takes(tmp_path, clips, flags, taken):
    path = tmp_path / "a.mkv"
    streams_in_a_file(path, clips, flags)
    info = video_io.probe(path)
    assert info.stream == taken
    assert video_io.read(path).shape == clips[taken].shape


def test_a_picture_that_changes_within_a_file(tmp_path):
    """Streams that adapt change the size: resized. Another shape: refused by name."""

    def joined(path, *clips):
        with av.open(str(path), "w", format="matroska") as out:
            copy, at = None, 0
            for clip in clips:
                part = io.BytesIO()
                encode(part, *KINDS["vp9.webm"], video=clip)
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

    small = footage(5, 16, 24)
    video = video_io.read(joined(tmp_path / "a.mkv", VIDEO[:5], small))
    assert video.shape == (10, HEIGHT, WIDTH, 3)
    error = np.abs(video[5:, ::2, ::2].astype(int) - small)
    assert error.mean() < 8
    path = joined(tmp_path / "b.mkv", VIDEO[:5], footage(5, 48, 32))
    info = video_io.probe(path)
    assert len(video_io.read_frames(info, [0, 4])) == 2
    with pytest.raises(BadVideo, match="changes from 48x32 to 32x48 at frame 5"):
        video_io.read(path)


def test_pixel_aspect_is_honoured(tmp_path):
    path = make(tmp_path, "a.mkv", sample_aspect_ratio=Fraction(3, 2))
    info = video_io.probe(path)
    assert (info.height, info.width) == (HEIGHT, WIDTH * 3 // 2)
    assert video_io.read(path, count=1).shape == (1, HEIGHT, WIDTH * 3 // 2, 3)


def area(size, into):
    """The matrix of exact area means from ``size`` to ``into`` pixels."""
    edges = np.arange(into + 1) * size / into
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(size) + 1)
    return np.maximum(high - low, 0) * into / size


@pytest.mark.parametrize("size", [(16, 24), (12, 18), (9, 9)])
def test_shrinking_is_an_area_mean(made, size):
    shown = video_io.read(made["frames"], count=3, size=size).astype(float)
    height, width = video_io.cover_size(HEIGHT, WIDTH, size)
    exact = np.einsum(
        "ih,fhwc,jw->fijc", area(HEIGHT, height), VIDEO[:3], area(WIDTH, width)
    )
    exact = video_io.crop(exact, size)
    assert np.abs(shown - exact).max() < 3 and abs((shown - exact).mean()) < 0.5


def test_shrinking_does_not_alias(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    video = np.repeat(board[None, ..., None], 3, axis=-1).astype(np.uint8)
    path = make(tmp_path, "frames", video=video)
    small = video_io.read(path, size=(16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_interlaced_frames_are_shrunk_as_a_whole(tmp_path):
    """Not each of their two fields by itself, which tears every edge."""
    interlaced = ("mp4", "libx264", GOP, {"x264-params": "tff=1", "qp": "6"})
    path = tmp_path / "a.mp4"
    encode(str(path), *interlaced, video=VIDEO[:3])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    small = video_io.read(path, size=(8, 12)).astype(int)
    exact = video_io.resize(video_io.read(path), (8, 12))
    assert np.abs(small - exact).max() < 3


def test_cover_and_crop(made):
    assert video_io.cover_size(720, 1280, (64, 64)) == (64, 114)
    assert video_io.cover_size(100, 50, (64, 64)) == (128, 64)
    info = video_io.probe(made["a.webp"])
    wide = video_io.read_frames(info, [0, 1], (32, 32))
    assert wide.shape == (2, 32, 48, 3)
    assert (video_io.crop(wide, (32, 32)) == wide[:, :, 8:40]).all()
    places = set()
    for seed in range(40):
        part = video_io.crop(wide, (32, 32), np.random.default_rng(seed))
        lefts = [x for x in range(17) if (wide[:, :, x : x + 32] == part).all()]
        places.update(lefts)
    assert len(places) > 8
    assert (wide == VIDEO[:2]).all()


# ---- pictures of all sorts ----


def test_pictures_become_rgb_by_stated_rules(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    colour = np.full((4, 6, 3), (200, 100, 40), np.uint8)
    alpha = np.dstack([colour, np.full((4, 6), 51, np.uint8)])
    grey16 = np.full((4, 6), 40000, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned clockwise
    tall = np.zeros((6, 4, 3), np.uint8)
    tall[-1, 0] = 255  # bottom left, shown top left
    Image.fromarray(alpha, "RGBA").save(folder / "f1.png")
    Image.fromarray(grey16).save(folder / "f2.png")
    Image.fromarray(colour[..., 0]).save(folder / "f9.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "f10.jpg", quality=95)
    Image.fromarray(colour).quantize(4).save(folder / "f11.png")
    Image.fromarray(tall).save(folder / "f12.png", exif=exif)
    Image.fromarray(colour).save(folder / "f13.bmp")
    Image.fromarray(colour).save(folder / "f14.tif")
    video = video_io.read(folder).astype(int)
    expected = [(40, 20, 8), (156,) * 3, (200,) * 3, (200, 100, 40), (200, 100, 40)]
    for frame, pixel in zip(video, expected, strict=False):
        assert np.abs(frame - pixel).max() <= 6, pixel
    assert video[5, 0, 0].tolist() == [255] * 3 and video[5].sum() == 255 * 3
    assert (video[6:] == (200, 100, 40)).all() and len(video) == 8


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webp", None, None),
        ("frames", None, None),
    ],
)
def test_alpha_is_put_on_black(tmp_path, name, codec, format):
    """Half is opaque, a quarter has 100 of 255, a quarter is clear."""
    pixels = np.full((32, 32, 4), 200, np.uint8)
    pixels[:16, :, 3], pixels[16:, :16, 3], pixels[16:, 16:, 3] = 255, 100, 0
    path = tmp_path / name
    if codec is None:
        picture = Image.fromarray(pixels, "RGBA")
        if name == "frames":
            path.mkdir()
            picture.save(path / "a.png")
        else:
            picture.save(path, lossless=True, exact=True)
    else:
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=10, options={"lossless": "1"})
            stream.height = stream.width = 32
            stream.pix_fmt = format
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(pixels, "rgba")
                out.mux(stream.encode(frame.reformat(format=format)))
            out.mux(stream.encode())
    shown = video_io.read(path)[0].astype(int)
    assert np.abs(shown[:15] - 200).max() <= 1
    assert np.abs(shown[17:, :15] - 78).max() <= 1
    assert (shown[17:, 17:] == 0).all()
    small = video_io.read(path, size=(8, 8))[0]
    assert np.abs(small[:3].astype(int) - 200).max() <= 1 and (small[5:, 5:] == 0).all()


def test_transparent_gif_is_shown_on_black(tmp_path):
    pictures = []
    for number in range(3):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[number, :] = (255, 255, 255, 255)
        pictures.append(Image.fromarray(pixels, "RGBA"))
    path = tmp_path / "a.gif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=0, disposal=2
    )
    info = video_io.probe(path)
    assert info.fps == pytest.approx(10)  # as browsers show a duration of 0
    video = video_io.read(path)
    for number in range(3):
        assert (video[number, number] == 255).all()
        assert video[number].sum() == 8 * 3 * 255


def test_a_picture_whose_exif_data_is_damaged_is_shown_as_stored(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(VIDEO[0]).save(path, exif=b"junk")
    assert (video_io.read_image(path, (HEIGHT, WIDTH))[0] == VIDEO[0]).all()


def test_a_strip_that_would_cover_a_square_is_refused(tmp_path):
    """One pixel high, it covers 64 x 64 only by 82 million pixels."""
    path = tmp_path / "frames" / "a.png"
    path.parent.mkdir()
    Image.new("L", (20000, 1)).save(path)
    assert video_io.read(path.parent).shape == (1, 1, 20000, 3)
    for read in (video_io.read_image, lambda p, s: video_io.read(p.parent, size=s)):
        with pytest.raises(BadVideo, match="1280000x64: the limit"):
            read(path, (64, 64))


@pytest.mark.parametrize(
    ("kind", "said"), [(np.float32, "floating-point"), (np.int32, "32-bit")]
)
def test_pixels_without_a_range_are_refused(tmp_path, kind, said):
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(BadVideo, match=said):
        video_io.read_image(path, (4, 4))


def test_the_clear_grey_of_16_bits_is_put_on_black(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[300, 65535]], np.uint16)).save(path, transparency=65535)
    assert stills.read_image(path)[..., 0].tolist() == [[1, 0]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp", "a.gif"])
def test_a_cut_picture_is_named_as_such(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(VIDEO[0]).save(path)
    data = path.read_bytes()
    for size, said in ((0, "empty file"), (8, "cut off"), (len(data) // 2, "cut off")):
        path.write_bytes(data[:size])
        with pytest.raises(BadVideo, match=said):
            stills.read_image(path)


def test_a_colour_matrix_that_cannot_be_converted_is_named(made, tmp_path):
    """YCgCo, which FFmpeg's scaler does not know."""
    path = tmp_path / "a.mp4"
    encode(str(path), *KINDS["single.mp4"], video=VIDEO[:2], colorspace=8)
    with pytest.raises(BadVideo, match="colours cannot be converted"):
        video_io.read(path)


def test_frames_of_unlike_size_are_refused(tmp_path):
    path = make(tmp_path, "frames")
    Image.new("RGB", (5, 5)).save(path / "frame7.png")
    with pytest.raises(BadVideo, match="frame7.png is 5x5, the first frame 48x32"):
        video_io.read(path)
    (path / "frame7.png").write_bytes((path / "frame8.png").read_bytes()[:99])
    with pytest.raises(BadVideo, match="frames: frame7.png: damaged or cut off"):
        video_io.read(path)
    (path / "frame0.png").write_bytes(b"")
    with pytest.raises(BadVideo, match="frames: frame0.png: empty file"):
        video_io.probe(path)


# ---- bad input: each a BadVideo with a clear reason ----


def audio_only(folder):
    path = folder / "audio.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, "fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def text_as(name, text):
    def build(folder):
        (folder / name).write_text(text)
        return folder / name

    return build


def cut(name, share):
    def build(folder):
        path = make(folder, name)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return build


def bomb(folder):
    path = folder / "frames"
    path.mkdir()
    Image.new("1", (16000, 16000)).save(path / "a.png")
    return path


def pipe(folder):
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def nothing(folder):
    (folder / "none").mkdir()
    return folder / "none"


def headless(folder):
    """mp4 whose index (moov) is missing."""
    path = make(folder, "single.mp4")
    path.write_bytes(path.read_bytes().replace(b"moov", b"junk"))
    return path


BAD = {
    "empty": (text_as("a.mp4", ""), "empty file"),
    "text": (text_as("a.mp4", "hello " * 99), "not a video"),
    "playlist": (text_as("a.mp4", "ffconcat version 1.0\nfile b.mp4\n"), "not a video"),
    "m3u8": (text_as("a.m3u8", "#EXTM3U\n#EXTINF:1,\nb.ts\n"), "not a video"),
    "cut header": (cut("a.mkv", 0.01), "damaged|truncated|invalid|no "),
    "no moov": (headless, "invalid data"),
    "cut mp4": (cut("single.mp4", 0.6), "cut off at packet"),
    "cut mkv": (cut("a.mkv", 0.6), "truncated: .* bytes"),
    "cut webm": (cut("vp9.webm", 0.6), "truncated: .* bytes"),
    "cut avi": (cut("b.avi", 0.6), "truncated: .* bytes"),
    "cut gif": (cut("a.gif", 0.6), "truncated|cut off"),
    "cut webp": (cut("a.webp", 0.6), "truncated: .* bytes"),
    "audio only": (audio_only, r"no video stream \(audio only\)"),
    "url": (lambda folder: "http://127.0.0.1/a.mp4", "cannot be opened"),
    "concat": (lambda folder: "concat:a.mp4|b.mp4", "cannot be opened"),
    "missing": (lambda folder: folder / "nope.mp4", "cannot be opened"),
    "nul": (lambda folder: "a\0.mp4", "cannot be opened"),
    "fifo": (pipe, "not a regular file"),
    "no frames": (nothing, "without pictures as frames"),
    "bomb": (bomb, "limit is|exceeds limit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_a_reason(tmp_path, name, child):
    build, reason = BAD[name]
    path = build(tmp_path)
    with pytest.raises(BadVideo, match=reason) as caught:
        video_io.probe(path)
    assert "\n" not in caught.value.reason
    with pytest.raises(BadVideo, match=reason):
        child.inspect(os.fspath(path))


@pytest.mark.parametrize("name", ["single.mp4", "vp8.webm", "b.avi", "a.mpg", "a.gif"])
def test_a_cut_file_is_never_a_short_clip(made, tmp_path, name):
    data = made[name].read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path = tmp_path / name
        path.write_bytes(data[: int(len(data) * share)])
        try:
            info = video_io.probe(path)
            frames = len(video_io.read(path, index=info))
        except BadVideo:
            continue
        # mpeg has no header to compare with: what is left of it is a video
        assert name == "a.mpg" and frames == info.frames


def test_an_mp4_that_lacks_whole_frames_is_truncated(made, tmp_path):
    """FFmpeg reports a frame that is cut in two, and none that is not there at all."""
    path = tmp_path / "a.mp4"
    with av.open(str(made["dense.mp4"])) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(made["dense.mp4"].read_bytes()[: packets[-1]])
    with pytest.raises(BadVideo, match="truncated: .* bytes of the .* its index names"):
        video_io.probe(path)


@pytest.mark.parametrize("name", ["dense.mp4", "a.mkv", "b.avi", "a.gif", "a.webp"])
def test_flipped_bytes_are_an_error_or_a_whole_video(made, tmp_path, name, child):
    data = made[name].read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(8):
        broken = bytearray(data)
        for place in rng.integers(len(data), size=12):
            broken[place] ^= int(rng.integers(1, 256))
        path = tmp_path / name
        path.write_bytes(broken)
        try:
            info = child.inspect(str(path))
            video = child.read_frames(info, range(info.frames), (16, 16))
        except BadVideo:
            continue
        assert len(video) == info.frames


def riff(length):
    """An avi that declares so many bytes (plus what it really has: a callable)."""

    def change(data):
        data[4:8] = struct.pack("<I", length(len(data)) if callable(length) else length)

    return change


def appended(tail):
    return lambda data: data.extend(tail)


def header_of_frames(data):
    """An avi that declares a billion frames, as one written as a stream does."""
    for mark, place in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(mark) - 0
        struct.pack_into("<I", data, at + place, 0x3FFFFFFF)


def long_mvhd(data):
    """An mp4 that declares to be 13 hours long."""
    at = data.index(b"mvhd") + 4 + 4 + 8
    scale = struct.unpack_from(">I", data, at)[0]
    struct.pack_into(">I", data, at + 4, 13 * 3600 * scale)


def mdat(length):
    """An mp4 whose frames fill a box of so many bytes; they are the last box."""
    return lambda data: struct.pack_into(">I", data, data.index(b"mdat") - 4, length)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("b.avi", riff(0)),
        ("b.avi", riff(0xFFFFFFFF)),
        ("b.avi", riff(0x7FFFFFFF)),
        ("b.avi", riff(lambda size: size)),
        ("b.avi", header_of_frames),
        ("b.avi", appended(b"junk" * 99)),
        ("dense.mp4", appended(b"junk" * 99)),
        ("dense.mp4", appended(b"\0" * 99)),
        ("dense.mp4", appended(b"\xff\xd8\xff" * 99)),
        ("dense.mp4", appended(b"\0\0\x10\0free12")),
        ("dense.mp4", mdat(0)),  # up to the end of the file
        ("dense.mp4", mdat(1 << 30)),
        ("dense.mp4", mdat(100)),
        ("dense.mp4", long_mvhd),
        ("a.mkv", appended(b"junk" * 99)),
        ("a.gif", appended(b"junk" * 99)),
        ("a.webp", appended(b"junk" * 99)),
    ],
)
def test_sizes_left_open_and_trailing_bytes_change_nothing(
    made, tmp_path, name, change
):
    data = bytearray(made[name].read_bytes())
    change(data)
    path = tmp_path / name
    path.write_bytes(data)
    info = video_io.probe(path)
    assert (info.frames, info.fps) == (FRAMES, video_io.probe(made[name]).fps)
    assert (video_io.read(path) == video_io.read(made[name])).all()


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts"])
def test_a_transport_stream_may_begin_amid_a_packet(made, tmp_path, name):
    """As a recording that was cut does, or a segment behind an ID3 tag."""
    once, data = video_io.read(made[name]), made[name].read_bytes()
    path = tmp_path / name
    for lead in (bytes(100), data[-150:-50], b"ID3\4\0\0\0\0\0\x3f" + bytes(63)):
        path.write_bytes(lead + data)
        assert (video_io.read(path) == once).all()


def test_packets_with_parity_are_a_transport_stream(made, tmp_path):
    data, path = made["a.ts"].read_bytes(), tmp_path / "a.ts"
    packets = [data[i : i + 188] + bytes(16) for i in range(0, len(data), 188)]
    path.write_bytes(b"".join(packets))
    assert (video_io.read(path) == video_io.read(made["a.ts"])).all()


def test_joined_oggs_are_named(tmp_path):
    """PyAV encodes no Theora; the file is ffmpeg's, ten frames of its testsrc2."""
    path = tmp_path / "a.ogv"
    path.write_bytes(
        (pathlib.Path(__file__).parent / "files" / "theora.ogv").read_bytes()
    )
    assert video_io.probe(path).frames == 10
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BadVideo, match="headers change within it: joined oggs") as bad:
        video_io.probe(path)
    assert bad.value.lasting


def test_a_decoder_without_words_condemns_the_file():
    """It returns -1, which is "operation not permitted" in the system's words."""
    bad = containers._bad_video("a.mp4", av.error.PermissionError(errno.EPERM, "no"))
    assert bad.lasting and bad.reason == "does not decode"
    bad = containers._bad_video("a.mp4", av.error.PermissionError(errno.EACCES, "no"))
    assert not bad.lasting


def test_frames_are_freed_when_they_are_done_with(made):
    """Not only when garbage is collected: hundreds of large ones fill the memory."""

    def alive() -> int:
        return sum(type(each) is av.VideoFrame for each in gc.get_objects())

    info = video_io.probe(made["dense.mp4"])
    gc.collect()
    gc.disable()
    try:
        before = alive()
        assert sum(1 for _ in containers.decode_frames(info, range(info.frames))) > 9
        assert alive() - before < 3
    finally:
        gc.enable()


def test_joined_transport_streams_are_whole_and_lost_packets_are_damage(made, tmp_path):
    """As `cat a.ts b.ts` joins them."""
    data, path = made["a.ts"].read_bytes(), tmp_path / "a.ts"
    once = video_io.read(made["a.ts"])
    path.write_bytes(data + data)
    assert (video_io.read(path) == np.concatenate([once, once])).all()
    middle = len(data) // 376 * 188
    path.write_bytes(data[:middle] + data[middle + 3 * 188 :])
    with pytest.raises(BadVideo, match="frames are lost after packet"):
        video_io.read(path)


def test_damage_to_the_payload_after_indexing(made, tmp_path):
    path = tmp_path / "a.mp4"
    data = made["dense.mp4"].read_bytes()
    path.write_bytes(data)
    info = video_io.probe(path)
    half = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    with pytest.raises(BadVideo, match="frame"):
        video_io.read(path, index=info)


def test_limits_hold_in_the_header_and_while_decoding(made, monkeypatch):
    info = video_io.probe(made["dense.mp4"])
    monkeypatch.setattr(files, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    for name in ("dense.mp4", "a.gif", "frames"):
        with pytest.raises(BadVideo, match="limit"):
            video_io.probe(made[name])
    with pytest.raises(BadVideo, match="limit"):
        video_io.read_frames(info, [0])
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_FRAMES", FRAMES - 1)
    for name in ("dense.mp4", "a.mkv", "b.avi", "a.gif", "frames"):
        with pytest.raises(BadVideo, match="more than"):
            video_io.probe(made[name])
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_SECONDS", 0.5)
    for name in ("dense.mp4", "a.webp"):
        with pytest.raises(BadVideo, match="seconds"):
            video_io.probe(made[name])
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(BadVideo, match="bytes"):
        video_io.probe(made["dense.mp4"])


def test_constant_videos_are_refused_for_training(tmp_path, made):
    flat = make(tmp_path, "single.mp4", video=np.full_like(VIDEO, 16))
    assert video_io.probe(flat).frames == FRAMES
    with pytest.raises(BadVideo, match="constant"):
        video_io.inspect(flat)
    dark = np.where(np.arange(FRAMES)[:, None, None, None] < 20, 0, VIDEO)
    late = make(tmp_path, "a.mkv", video=dark.astype(np.uint8))
    assert video_io.inspect(late).frames == FRAMES


NAMES = [
    "take:1.mkv", "file:a.mkv", "http:a.mkv", "concat:a|b.mkv", "-i.mkv", "100%d.mkv",
    "a\nb.mkv", " a?b#c&d .mkv", "[a]\\*.mkv", os.fsdecode(b"caf\xe9.mkv"),
    "\u202e.mkv", "x" * 250 + ".mkv",
]  # fmt: skip


def test_every_name_that_a_file_system_takes_is_read(
    made, tmp_path, monkeypatch, child
):
    """Of a file in the current folder, and of a folder of frames."""
    monkeypatch.chdir(tmp_path)
    store = video_io.IndexStore(tmp_path / "cache")
    for name in NAMES:
        os.link(made["a.mkv"], name)
        for probe in (video_io.probe, child.inspect):
            info = store.probe(name, probe)
            assert info.frames == FRAMES and info.path == name
        assert len(child.read_frames(info, [3, 9])) == 2
        os.unlink(name)
        os.mkdir(name)
        os.link(made["frames"] / "frame0.png", os.path.join(name, "0%d.png"))
        assert video_io.read(name).shape == (1, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("name", "module", "function", "error"),
    [
        ("a.mkv", files, "open", OSError),
        ("a.mkv", containers, "_open", av.error.OSError),
        ("a.mkv", containers, "_open", av.error.MemoryError),
        ("frames", stills.Image, "open", OSError),
    ],
)
def test_a_file_that_cannot_be_read_for_a_moment_is_not_condemned(
    made, tmp_path, monkeypatch, name, module, function, error
):
    def failing(*args, **kwargs):
        raise error(5, "Input/output error")

    store = video_io.IndexStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, failing, raising=False)
        with pytest.raises(BadVideo, match="nput/output error"):
            store.probe(made[name], video_io.probe)
    assert store.probe(made[name], video_io.probe).frames == FRAMES


# ---- the child ----


def test_the_child_reads_the_same(made, child):
    info = video_io.probe(made["dense.mp4"])
    np.testing.assert_equal(vars(child.inspect(str(made["dense.mp4"]))), vars(info))
    here = video_io.read_frames(info, [5, 2, 9], (16, 16))
    assert (child.read_frames(info, [5, 2, 9], (16, 16)) == here).all()
    previews, moves = child.decode_previews(info, (16, 16), 4)
    ends = video_io.read_frames(info, [0, FRAMES - 1], (16, 16))
    assert moves and (previews[[0, -1]] == video_io.crop(ends, (16, 16))).all()


def test_a_child_that_hangs_or_dies_costs_one_file(made):
    child = SandboxedDecoder()
    path = str(made["dense.mp4"])
    child.inspect(path)
    (process,) = child._idle
    os.kill(process.pid, signal.SIGINT)  # Ctrl-C is the parent's business
    assert child.inspect(path).frames == FRAMES
    os.kill(process.pid, signal.SIGSTOP)
    child.timeout = 1.0
    with pytest.raises(BadVideo, match="no answer from the decoder in 1 s") as caught:
        child.inspect(path)
    assert not caught.value.lasting and process.poll() is not None
    child.timeout = 60.0
    assert child.inspect(path).frames == FRAMES
    (process,) = child._idle
    process.send_signal(signal.SIGSEGV)
    process.wait()
    with pytest.raises(BadVideo, match="crashed"):
        child.inspect(path)
    copy = pickle.loads(pickle.dumps(child))
    assert copy.inspect(path).frames == FRAMES
    (process,) = copy._idle
    copy.close()
    assert process.poll() == 0


def test_a_child_out_of_memory_is_a_bad_file(tmp_path):
    path = make(tmp_path, "frames", video=np.zeros((1, 2000, 2000, 3), np.uint8))
    info = video_io.probe(path)
    child = SandboxedDecoder(memory=700 << 20)
    with pytest.raises(BadVideo, match="ran out of memory"):
        child.read_frames(info, [0] * 200)  # 2.4 GB
    child.close()


def test_less_memory_may_be_allowed_than_the_limit(made):
    code = "import sys; from vdm_jax.video_io.sandbox import SandboxedDecoder; "
    code += "print(SandboxedDecoder().inspect(sys.argv[1]).frames)"
    limited = ["sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", sys.executable, "-c"]
    done = subprocess.run(
        [*limited, code, made["a.mkv"]], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{FRAMES}\n", "")


def test_a_child_that_does_not_start_is_no_fault_of_the_file(made, monkeypatch):
    for program in ("/bin/false", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(UserError, match="does not start .* ulimit -v"):
            SandboxedDecoder().inspect(str(made["a.mkv"]))


def test_the_child_imports_nothing_from_the_current_folder(made, tmp_path, monkeypatch):
    for name in ("json", "numpy", "av", "PIL", "vdm_jax", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep + str(pathlib.Path(__file__).parents[1])
    )
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    child = SandboxedDecoder()
    assert child.inspect(str(made["a.mkv"])).frames == FRAMES
    child.close()


def test_children_end_with_their_parent(made):
    code = (
        "import os, sys; from vdm_jax.video_io.sandbox import SandboxedDecoder; g = SandboxedDecoder();"
        "g.inspect(sys.argv[1]); print(g._idle[0].pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(made["a.mkv"])]
    killed = subprocess.run(command, capture_output=True, text=True)
    status = pathlib.Path(f"/proc/{killed.stdout.strip()}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- the stores ----


def fill_with(video):
    shape = video.shape[:3]
    return lambda path: cache.write_entry(path, iter(video), shape)


def test_cache_gives_back_what_was_decoded(tmp_path):
    store, calls = cache.FrameCache(tmp_path, 1 << 20), []

    def fill(path):
        calls.append(path)
        fill_with(VIDEO)(path)

    for numbers in ([0], [3, 1, 1], range(FRAMES)):
        numbers = list(numbers)
        assert (store.read("a", numbers, fill) == VIDEO[numbers]).all()
    assert len(calls) == 1
    path = tmp_path / "frames" / "a"
    assert path.stat().st_size == store.entry_bytes(VIDEO.shape[:3])


def test_cache_is_bounded_and_forgets_the_longest_unused(tmp_path):
    size = cache.FrameCache.entry_bytes(VIDEO.shape[:3])
    store = cache.FrameCache(tmp_path, 3 * size)

    def entries():
        folder = tmp_path / "frames"
        return sorted(p.name for p in folder.iterdir() if p.name != "lock")

    for number, name in enumerate("abc"):
        store.read(name, [0], fill_with(VIDEO))
        os.utime(tmp_path / "frames" / name, (number, number))
    store.read("a", [0], fill_with(VIDEO))  # used again
    store.read("d", [0], fill_with(VIDEO))
    assert entries() == ["a", "c", "d"]
    with pytest.raises(ValueError):
        cache.FrameCache(tmp_path, size - 1).read("e", [0], fill_with(VIDEO))
    assert entries() == ["a", "c", "d"]


@pytest.mark.parametrize("place", [0, 9, 25, 200, -1, None, "empty"])
def test_damaged_entries_are_made_again(tmp_path, place):
    store = cache.FrameCache(tmp_path, 1 << 20)
    store.read("a", [0], fill_with(VIDEO))
    path = tmp_path / "frames" / "a"
    data = bytearray(path.read_bytes())
    if place is None:
        data = data[:-5]
    elif place == "empty":
        data = bytearray()
    else:
        data[place] ^= 1
    path.write_bytes(data)
    made_again = []

    def fill(path):
        made_again.append(1)
        fill_with(VIDEO)(path)

    assert (store.read("a", range(FRAMES), fill) == VIDEO).all()
    assert made_again
    assert (cache.read_entry(path, [2]) == VIDEO[[2]]).all()


def test_a_failing_fill_leaves_nothing(tmp_path):
    store = cache.FrameCache(tmp_path, 1 << 20)

    def fill(path):
        path.write_bytes(b"half")
        raise BadVideo("a", "cut")

    with pytest.raises(BadVideo):
        store.read("a", [0], fill)
    assert list((tmp_path / "frames").iterdir()) == []


WORKER = """
import sys
import numpy as np
from vdm_jax.video_io import cache
store = cache.FrameCache(sys.argv[1], int(sys.argv[2]))
rng = np.random.default_rng(int(sys.argv[3]))
for _ in range(60):
    which = int(rng.integers(5))
    video = np.full((4, 16, 16, 3), which, np.uint8)
    fill = lambda path: cache.write_entry(path, iter(video), video.shape[:3])
    assert (store.read(f"v{which}", [0, 3], fill) == which).all()
"""


def test_two_processes_share_a_bounded_cache(tmp_path):
    size = cache.FrameCache.entry_bytes((4, 16, 16))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(3 * size), str(seed)]
        )
        for seed in range(2)
    ]
    most = 0
    while any(worker.poll() is None for worker in workers):
        held = [p.name for p in tmp_path.glob("frames/v*")]
        most = max(most, len(held))
        time.sleep(0.002)
    assert [worker.returncode for worker in workers] == [0, 0]
    assert most <= 3
    assert not list(tmp_path.glob("frames/.*"))


def test_index_store_remembers_and_notices(made, tmp_path):
    calls = []

    def probe(path):
        calls.append(path)
        return video_io.probe(path)

    def count(path):
        return video_io.IndexStore(tmp_path).probe(path, probe).frames

    path = tmp_path / "a.mkv"
    path.write_bytes(made["a.mkv"].read_bytes())
    assert [count(path), count(path), len(calls)] == [FRAMES, FRAMES, 1]
    (entry,) = tmp_path.glob("index/*")
    entry.write_text(entry.read_text().replace("matroska", "x").replace("4", "5", 3))
    assert [count(path), len(calls)] == [FRAMES, 2]  # damaged: made again
    make(tmp_path, "a.mkv", video=VIDEO[:9])
    assert [count(path), len(calls)] == [9, 3]  # another file under the name
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(BadVideo, match="empty"):
            count(path)
    assert len(calls) == 4  # the reason is remembered too


def test_a_frame_rewritten_in_its_folder_changes_the_key(tmp_path):
    path = make(tmp_path, "frames", video=VIDEO[:3])
    before = cache.file_key(path)
    assert cache.file_key(path) == before
    Image.fromarray(VIDEO[7]).save(path / "frame1.png")
    assert cache.file_key(path) != before


# ---- writing ----


@pytest.mark.parametrize("shape", [(16, 16, 3), (15, 17, 3), (20, 30, 1)])
@pytest.mark.parametrize("scale", [None, 1, 2])
def test_mp4_plays_everywhere_and_keeps_the_colours(tmp_path, shape, scale):
    video = footage(6, *shape)
    path = tmp_path / "a.mp4"
    video_io.write_video(path, video, fps=8, scale=scale)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8 and stream.frames == 6
        assert stream.height % 2 == stream.width % 2 == 0
    factor = scale or -(-128 // min(shape[:2]))
    back = video_io.read(path)[:, : factor * shape[0], : factor * shape[1]]
    assert min(back.shape[1:3]) >= 128 or scale
    error = np.abs(back.astype(int) - video_io.repeat_pixels(video, factor))
    assert error.mean() < (2.5 if scale is None else 4)  # halved chroma


def test_colours_go_through_without_bias(tmp_path):
    """Flat colours, written with their matrix tagged and read by it."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 3))
    video = np.broadcast_to(colours[:, None, None], (40, 32, 32, 3)).astype(np.uint8)
    path = tmp_path / "a.mp4"
    video_io.write_video(path, video, fps=8, scale=1)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc
        assert tags == (1, 1, 1) and context.color_range == 1
    error = video_io.read(path).astype(float).mean((1, 2)) - colours
    assert np.abs(error).max() < 4 and np.abs(error.mean(0)).max() < 0.4


def test_gif_frames_and_time_are_kept(tmp_path):
    video = footage(8, 16, 16)
    path = tmp_path / "a.gif"
    video_io.write_gif(path, video, fps=8, scale=3)
    info = video_io.probe(path)
    assert (info.frames, info.height, info.width) == (8, 48, 48)
    with Image.open(path) as image:
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            shown.append(image.info["duration"])
        assert sum(shown) == 1000 and image.info["loop"] == 0
    back = video_io.read(path)[:, ::3, ::3].astype(int)
    assert np.abs(back - video).mean() < 12  # 256 colours for all frames
    still = np.repeat(video[:1], 4, 0)
    video_io.write_gif(tmp_path / "still.gif", still, fps=8, scale=1)
    assert (np.ptp(video_io.read(tmp_path / "still.gif"), axis=0) == 0).all()


def test_sheet_shows_rows_of_videos_and_columns_of_frames(tmp_path):
    videos = np.stack([footage(9, 16, 16), footage(9, 16, 16)[::-1]])
    path = tmp_path / "a.png"
    labels = ["red, left", "very long " * 40]
    video_io.write_sheet(path, videos, columns=3, labels=labels, scale=4)
    sheet = np.asarray(Image.open(path))
    gutter, text = 2, 16
    for row, video in enumerate(videos):
        for column, frame in enumerate((0, 4, 8)):
            top = gutter + row * (64 + text + gutter) + text
            left = gutter + column * (64 + gutter)
            cell = sheet[top : top + 64, left : left + 64]
            assert (cell == video_io.repeat_pixels(video[frame], 4)).all()


def test_tile_shows_every_video(tmp_path):
    videos = np.arange(5, dtype=np.uint8)[:, None, None, None, None]
    videos = np.broadcast_to(videos, (5, 2, 4, 6, 3))
    grid = video_io.video_grid(videos)
    assert grid.shape == (2, 2 * 5 - 1, 3 * 7 - 1, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        assert (grid[:, 5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
                == number).all()  # fmt: skip


def test_write_all_is_complete_and_refuses_to_mix(tmp_path):
    videos = np.stack([footage(4, 16, 16)] * 3)
    out = tmp_path / "deep" / "out"
    paths = video_io.write_samples(out, "s", videos, 8, {"seed": 3, "command": "x"})
    names = sorted(p.name for p in out.iterdir())
    numbered = ["s-000.mp4", "s-001.mp4", "s-002.mp4"]
    whole = ["s.gif", "s.json", "s.mp4", "s.npz", "s.png"]
    assert names == numbered + whole == sorted(p.name for p in paths)
    assert (np.load(out / "s.npz")["videos"] == videos).all()
    told = json.loads((out / "s.json").read_text())
    assert told["seed"] == 3 and told["shape"] == [3, 4, 16, 16, 3]
    with pytest.raises(UserError, match="--overwrite"):
        video_io.write_samples(out, "s", videos, 8, {})
    (out / "s-old.mp4").write_text("not ours")
    video_io.write_samples(out, "s", videos[:1], 8, {}, overwrite=True)
    names = sorted(p.name for p in out.iterdir())
    assert names == ["s-000.mp4", "s-old.mp4", *whole]
    with pytest.raises(UserError, match="folder for output"):
        video_io.check_output_folder(out / "s.png", "t")


def test_a_frame_cache_on_a_full_disk_is_one_line_and_follows_no_link(tmp_path):
    store = cache.FrameCache(tmp_path / "cache", 1 << 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="frames/e could not be .*file too large"):
            store.read("e", [0], fill_with(VIDEO))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path / "cache" / "frames")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "cache" / "frames" / "lock").symlink_to(tmp_path / "mine")
    assert (store.read("e", [0], fill_with(VIDEO)) == VIDEO[:1]).all()
    assert (tmp_path / "mine").read_text() == "mine"


def test_arrays_are_written_before_pictures(tmp_path):
    """On a disk that takes the array alone, nothing that was sampled is lost."""
    videos = np.zeros((2, 4, 16, 16, 3), np.uint8)
    video_io.write_samples(tmp_path, "s", videos + 1, 8, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(UserError, match=r"s-000.mp4 could.*s.npz holds all videos"):
            video_io.write_samples(tmp_path, "s", videos, 8, {}, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    assert (video_io.read_npz(tmp_path / "s.npz") == videos).all()
    (tmp_path / "s.npz").write_bytes(b"PK")
    with pytest.raises(CorruptFile):
        video_io.read_npz(tmp_path / "s.npz")


def test_an_mp4_has_its_index_before_its_pictures(tmp_path):
    """A browser plays it before it has all."""
    for n in 1, 300:
        path = tmp_path / f"{n}.mp4"
        video_io.write_video(path, np.zeros((n, 8, 8, 3), np.uint8), 8, scale=1)
        content = path.read_bytes()
        assert -1 < content.find(b"moov") < content.find(b"mdat")


def test_a_broken_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError, match="exists"), atomic_write(path):
        pass
    with pytest.raises(KeyError), atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red ball, moving LEFT!", "a-red-ball-moving-left"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 200, "x" * 60),
        ("\0\n", "video"),
        ("日本", "video"),
    ],
)
def test_slugs_are_safe_names(text, name):
    assert video_io.slug(text) == name


def test_the_child_module_needs_neither_jax_nor_the_rest():
    code = "import sys, vdm_jax.video_io.sandbox; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert sandbox.MEMORY_LIMIT > files.MAX_PIXELS * 3 * 16


def test_resize_is_the_mean_over_areas():
    video = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)
    blocks = video.reshape(2, 3, 4, 5, 4, 3).mean((2, 4))
    assert abs(video_io.resize(video, (3, 5)) - blocks).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(video_io.resize(video, (12, 20)), video)
    for size in [(5, 7), (3, 20), (12, 3), (30, 31)]:
        made = video_io.resize(video, size)
        assert made.shape[1:3] == video_io.cover_size(12, 20, size)
        np.testing.assert_allclose(made.mean((1, 2)), video.mean((1, 2)), atol=0.6)
    flat = np.full_like(video, 77)
    np.testing.assert_array_equal(video_io.resize(flat, (7, 9)), 77)
