"""Detection of formats, limits and invalid files: vdm_jax/video_io/file_types.py."""

import os
import struct

import av
import av.error
import numpy as np
import pytest
from PIL import Image

from tests.video_io.samples import (
    FRAMES,
    HEIGHT,
    WIDTH,
    make_file,
    read_clip,
)
from vdm_jax import video_io
from vdm_jax.video_io import BadVideo, cache, file_types


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


def text_file(name, text):
    def build(folder):
        (folder / name).write_text(text)
        return folder / name

    return build


def truncated(name, fraction):
    def build(folder):
        path = make_file(folder, name)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        return path

    return build


def decompression_bomb(folder):
    path = folder / "frames"
    path.mkdir()
    Image.new("1", (16000, 16000)).save(path / "a.png")
    return path


def pipe(folder):
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


def empty_folder(folder):
    (folder / "none").mkdir()
    return folder / "none"


def without_moov(folder):
    """Make an mp4 without its index (moov)."""
    path = make_file(folder, "single.mp4")
    path.write_bytes(path.read_bytes().replace(b"moov", b"junk"))
    return path


INVALID = {
    "empty": (text_file("a.mp4", ""), "empty file"),
    "text": (text_file("a.mp4", "hello " * 99), "not a video, or corrupt"),
    "playlist": (
        text_file("a.mp4", "ffconcat version 1.0\nfile b.mp4\n"),
        "not a video",
    ),
    "m3u8": (text_file("a.m3u8", "#EXTM3U\n#EXTINF:1,\nb.ts\n"), "not a video"),
    "cut header": (truncated("a.mkv", 0.01), "corrupt|truncated|invalid|no "),
    "no moov": (without_moov, "not a video, or corrupt"),
    "cut mp4": (truncated("single.mp4", 0.6), "truncated at packet"),
    "cut mkv": (truncated("a.mkv", 0.6), "truncated: .* bytes"),
    "cut webm": (truncated("vp9.webm", 0.6), "truncated: .* bytes"),
    "cut avi": (truncated("b.avi", 0.6), "truncated: .* bytes"),
    "cut gif": (truncated("a.gif", 0.01), "truncated"),
    "cut webp": (truncated("a.webp", 0.6), "truncated: .* bytes"),
    "audio only": (audio_only, "no video stream"),
    "url": (lambda folder: "http://127.0.0.1/a.mp4", "cannot be opened"),
    "concat": (lambda folder: "concat:a.mp4|b.mp4", "cannot be opened"),
    "missing": (lambda folder: folder / "nope.mp4", "cannot be opened"),
    "nul": (lambda folder: "a\0.mp4", "cannot be opened"),
    "fifo": (pipe, "not a regular file"),
    "no frames": (empty_folder, "a folder without images"),
    "bomb": (decompression_bomb, "limit is|exceeds limit"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_input_has_a_reason(tmp_path, name, decoder):
    build, reason = INVALID[name]
    path = build(tmp_path)
    with pytest.raises(BadVideo, match=reason) as caught:
        video_io.probe(path)
    assert "\n" not in caught.value.reason
    with pytest.raises(BadVideo, match=reason):
        decoder.inspect(os.fspath(path))


@pytest.mark.parametrize("name", ["single.mp4", "vp8.webm", "b.avi", "a.mpg", "a.gif"])
def test_a_truncated_file_is_never_a_shorter_clip(videos, tmp_path, name):
    data = videos[name].read_bytes()
    for fraction in (0.1, 0.5, 0.9, 0.99):
        path = tmp_path / name
        path.write_bytes(data[: int(len(data) * fraction)])
        try:
            info = video_io.probe(path)
            frames = len(read_clip(path))
        except BadVideo:
            continue
        # mpeg and gif declare no size: the rest is a valid video
        assert name in ("a.mpg", "a.gif") and frames == info.frames


@pytest.mark.parametrize("name", ["dense.mp4", "a.mkv", "b.avi", "a.gif", "a.webp"])
def test_flipped_bytes_are_an_error_or_a_whole_video(videos, tmp_path, name, decoder):
    data = videos[name].read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(8):
        broken = bytearray(data)
        for place in rng.integers(len(data), size=12):
            broken[place] ^= int(rng.integers(1, 256))
        path = tmp_path / name
        path.write_bytes(broken)
        try:
            info = decoder.inspect(str(path))
            video = decoder.read_frames(info, range(info.frames), (16, 16))
        except BadVideo:
            continue
        assert len(video) == info.frames


def declare_riff_size(length):
    """Let an avi declare a size: a number, or a function of the real size."""

    def change(data):
        data[4:8] = struct.pack("<I", length(len(data)) if callable(length) else length)

    return change


def with_trailing_bytes(tail):
    return lambda data: data.extend(tail)


def declare_many_frames(data):
    """Let an avi declare a billion frames, as live recorders do."""
    for mark, place in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(mark) - 0
        struct.pack_into("<I", data, at + place, 0x3FFFFFFF)


def declare_long_duration(data):
    """Let an mp4 declare a duration of 13 hours."""
    at = data.index(b"mvhd") + 4 + 4 + 8
    scale = struct.unpack_from(">I", data, at)[0]
    struct.pack_into(">I", data, at + 4, 13 * 3600 * scale)


def declare_mdat_size(length):
    """Let the last box of an mp4, which holds its frames, declare a size."""
    return lambda data: struct.pack_into(">I", data, data.index(b"mdat") - 4, length)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("b.avi", declare_riff_size(0)),
        ("b.avi", declare_riff_size(0xFFFFFFFF)),
        ("b.avi", declare_riff_size(0x7FFFFFFF)),
        ("b.avi", declare_riff_size(lambda size: size)),
        ("b.avi", declare_many_frames),
        ("b.avi", with_trailing_bytes(b"junk" * 99)),
        ("dense.mp4", with_trailing_bytes(b"junk" * 99)),
        ("dense.mp4", with_trailing_bytes(b"\0" * 99)),
        ("dense.mp4", with_trailing_bytes(b"\xff\xd8\xff" * 99)),
        ("dense.mp4", with_trailing_bytes(b"\0\0\x10\0free12")),
        ("dense.mp4", declare_mdat_size(0)),  # up to the end of the file
        ("dense.mp4", declare_mdat_size(1 << 30)),
        ("dense.mp4", declare_mdat_size(100)),
        ("dense.mp4", declare_long_duration),
        ("a.mkv", with_trailing_bytes(b"junk" * 99)),
        ("a.gif", with_trailing_bytes(b"junk" * 99)),
        ("a.webp", with_trailing_bytes(b"junk" * 99)),
    ],
)
def test_open_sizes_and_trailing_bytes_are_ignored(videos, tmp_path, name, change):
    data = bytearray(videos[name].read_bytes())
    change(data)
    path = tmp_path / name
    path.write_bytes(data)
    info = video_io.probe(path)
    assert (info.frames, info.fps) == (FRAMES, video_io.probe(videos[name]).fps)
    assert (read_clip(path) == read_clip(videos[name])).all()


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts"])
def test_a_transport_stream_may_start_inside_a_packet(videos, tmp_path, name):
    """Trimmed recordings do, and segments after an ID3 tag."""
    once, data = read_clip(videos[name]), videos[name].read_bytes()
    path = tmp_path / name
    for lead in (bytes(100), data[-150:-50], b"ID3\4\0\0\0\0\0\x3f" + bytes(63)):
        path.write_bytes(lead + data)
        assert (read_clip(path) == once).all()


def test_packets_with_parity_are_a_transport_stream(videos, tmp_path):
    data, path = videos["a.ts"].read_bytes(), tmp_path / "a.ts"
    packets = [data[i : i + 188] + bytes(16) for i in range(0, len(data), 188)]
    path.write_bytes(b"".join(packets))
    assert (read_clip(path) == read_clip(videos["a.ts"])).all()


def test_limits_apply_to_the_header_and_to_decoding(videos, monkeypatch):
    info = video_io.probe(videos["dense.mp4"])
    monkeypatch.setattr(file_types, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    for name in ("dense.mp4", "a.gif", "frames"):
        with pytest.raises(BadVideo, match="limit"):
            video_io.probe(videos[name])
    with pytest.raises(BadVideo, match="limit"):
        video_io.read_frames(info, [0])
    monkeypatch.undo()
    monkeypatch.setattr(file_types, "MAX_FRAMES", FRAMES - 1)
    for name in ("dense.mp4", "a.mkv", "b.avi", "a.gif", "frames"):
        with pytest.raises(BadVideo, match="more than"):
            video_io.probe(videos[name])
    monkeypatch.undo()
    monkeypatch.setattr(file_types, "MAX_SECONDS", 0.5)
    for name in ("dense.mp4", "a.webp"):
        with pytest.raises(BadVideo, match="seconds"):
            video_io.probe(videos[name])


ODD_NAMES = [
    "take:1.mkv", "file:a.mkv", "http:a.mkv", "concat:a|b.mkv", "-i.mkv", "100%d.mkv",
    "a\nb.mkv", " a?b#c&d .mkv", "[a]\\*.mkv", os.fsdecode(b"caf\xe9.mkv"),
    "\u202e.mkv", "x" * 250 + ".mkv",
]  # fmt: skip


def test_every_valid_file_name_is_read(videos, tmp_path, monkeypatch, decoder):
    """Also for a file in the current folder and for a folder of frames."""
    monkeypatch.chdir(tmp_path)
    for name in ODD_NAMES:
        os.link(videos["a.mkv"], name)
        for probe in (video_io.probe, decoder.inspect):
            info = cache.stored_index(tmp_path / "cache", name, probe)
            assert info.frames == FRAMES and info.path == name
        assert len(decoder.read_frames(info, [3, 9])) == 2
        os.unlink(name)
        os.mkdir(name)
        os.link(videos["frames"] / "frame0.png", os.path.join(name, "0%d.png"))
        assert read_clip(name).shape == (1, HEIGHT, WIDTH, 3)
