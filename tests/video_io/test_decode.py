"""Decoding, resizing and cropping: vdm_jax/video_io/decode.py."""

import av
import av.error
import numpy as np
import pytest
from PIL import Image

from tests.video_io.samples import (
    FORMATS,
    FRAMES,
    GOP,
    HEIGHT,
    NAMES,
    VIDEO,
    WIDTH,
    encode,
    make_file,
    read_clip,
)
from vdm_jax import video_io
from vdm_jax.video_io import BadVideo, decode


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_in_presentation_order(videos, name):
    """Each decoded frame is closest to its own source frame."""
    video = read_clip(videos[name]).astype(float)
    distance = np.abs(video[:, None] - VIDEO[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(FRAMES)).all()
    if name in ("a.webp", "frames"):
        assert (video == VIDEO).all()  # lossless


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_a_slice_of_the_full_decode(videos, name):
    info, full = video_io.probe(videos[name]), read_clip(videos[name])
    for start, count, stride in [(0, 3, 1), (7, 4, 1), (9, 4, 5), (FRAMES - 1, 1, 1)]:
        clip = read_clip(videos[name], start, count, stride)
        assert (clip == full[start:][: count * stride : stride]).all()
    order = [20, 3, 3, 11]
    assert (video_io.read_frames(info, order) == full[order]).all()


def area_matrix(size, into):
    """Return the matrix of exact area means from ``size`` to ``into`` pixels."""
    edges = np.arange(into + 1) * size / into
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(size) + 1)
    return np.maximum(high - low, 0) * into / size


@pytest.mark.parametrize("size", [(16, 24), (12, 18), (9, 9)])
def test_downsampling_is_an_area_mean(videos, size):
    shown = read_clip(videos["frames"], count=3, size=size).astype(float)
    height, width = video_io.cover_size(HEIGHT, WIDTH, size)
    exact = np.einsum(
        "ih,fhwc,jw->fijc",
        area_matrix(HEIGHT, height),
        VIDEO[:3],
        area_matrix(WIDTH, width),
    )
    exact = video_io.crop(exact, size)
    assert np.abs(shown - exact).max() < 3 and abs((shown - exact).mean()) < 0.5


def test_downsampling_does_not_alias(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    video = np.repeat(board[None, ..., None], 3, axis=-1).astype(np.uint8)
    path = make_file(tmp_path, "frames", video=video)
    small = read_clip(path, size=(16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_interlaced_frames_are_not_resized_field_by_field(tmp_path):
    """Resizing each of the two fields separately would tear every edge."""
    interlaced = ("mp4", "libx264", GOP, {"x264-params": "tff=1", "qp": "6"})
    path = tmp_path / "a.mp4"
    encode(str(path), *interlaced, video=VIDEO[:3])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    small = read_clip(path, size=(8, 12)).astype(int)
    exact = video_io.resize(read_clip(path), (8, 12))
    assert np.abs(small - exact).max() < 3


def test_cover_and_crop(videos):
    assert video_io.cover_size(720, 1280, (64, 64)) == (64, 114)
    assert video_io.cover_size(100, 50, (64, 64)) == (128, 64)
    info = video_io.probe(videos["a.webp"])
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


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webp", None, None),
        ("frames", None, None),
    ],
)
def test_alpha_is_composited_on_black(tmp_path, name, codec, format):
    """Half is opaque, a quarter has alpha 100 of 255, a quarter is transparent."""
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
    shown = read_clip(path)[0].astype(int)
    assert np.abs(shown[:15] - 200).max() <= 1
    assert np.abs(shown[17:, :15] - 78).max() <= 1
    assert (shown[17:, 17:] == 0).all()
    small = read_clip(path, size=(8, 8))[0]
    assert np.abs(small[:3].astype(int) - 200).max() <= 1 and (small[5:, 5:] == 0).all()


def test_a_narrow_image_that_becomes_too_large_is_rejected(tmp_path):
    """It is one pixel high: to cover 64x64 it would need 82 million pixels."""
    path = tmp_path / "frames" / "a.png"
    path.parent.mkdir()
    Image.new("L", (20000, 1)).save(path)
    assert read_clip(path.parent).shape == (1, 1, 20000, 3)
    for read in (
        video_io.read_image,
        lambda p, s: read_clip(p.parent, size=s),
    ):
        with pytest.raises(BadVideo, match="1280000x64: the limit"):
            read(path, (64, 64))


def test_an_unknown_colour_matrix_is_rejected(videos, tmp_path):
    """FFmpeg's scaler does not support YCgCo."""
    path = tmp_path / "a.mp4"
    encode(str(path), *FORMATS["single.mp4"], video=VIDEO[:2], colorspace=8)
    with pytest.raises(BadVideo, match="colours cannot be converted"):
        read_clip(path)


def test_constant_videos_are_rejected_for_training(tmp_path, videos):
    flat = make_file(tmp_path, "single.mp4", video=np.full_like(VIDEO, 16))
    assert video_io.probe(flat).frames == FRAMES
    with pytest.raises(BadVideo, match="constant"):
        decode.inspect(flat)
    dark = np.where(np.arange(FRAMES)[:, None, None, None] < 20, 0, VIDEO)
    late = make_file(tmp_path, "a.mkv", video=dark.astype(np.uint8))
    assert decode.inspect(late).frames == FRAMES


def test_resize_is_the_exact_area_mean():
    video = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)
    blocks = video.reshape(2, 3, 4, 5, 4, 3).mean((2, 4))
    assert abs(video_io.resize(video, (3, 5)) - blocks).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(video_io.resize(video, (12, 20)), video)
    for size in [(5, 7), (3, 20), (12, 3), (30, 31)]:
        resized = video_io.resize(video, size)
        assert resized.shape[1:3] == video_io.cover_size(12, 20, size)
        np.testing.assert_allclose(resized.mean((1, 2)), video.mean((1, 2)), atol=0.6)
    flat = np.full_like(video, 77)
    np.testing.assert_array_equal(video_io.resize(flat, (7, 9)), 77)
