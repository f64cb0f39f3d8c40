"""gif, webp and folders of images: vdm_jax/video_io/images.py."""

import numpy as np
import pytest
from PIL import Image

from tests.video_io.samples import (
    HEIGHT,
    VIDEO,
    WIDTH,
    make_file,
    read_clip,
)
from vdm_jax import video_io
from vdm_jax.video_io import BadVideo, images


def test_images_are_converted_to_rgb_by_the_documented_rules(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    colour = np.full((4, 6, 3), (200, 100, 40), np.uint8)
    alpha = np.dstack([colour, np.full((4, 6), 51, np.uint8)])
    grey16 = np.full((4, 6), 40000, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # display it rotated clockwise
    tall = np.zeros((6, 4, 3), np.uint8)
    tall[-1, 0] = 255  # bottom left, displayed top left
    Image.fromarray(alpha, "RGBA").save(folder / "f1.png")
    Image.fromarray(grey16).save(folder / "f2.png")
    Image.fromarray(colour[..., 0]).save(folder / "f9.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "f10.jpg", quality=95)
    Image.fromarray(colour).quantize(4).save(folder / "f11.png")
    Image.fromarray(tall).save(folder / "f12.png", exif=exif)
    Image.fromarray(colour).save(folder / "f13.bmp")
    Image.fromarray(colour).save(folder / "f14.tif")
    video = read_clip(folder).astype(int)
    expected = [(40, 20, 8), (156,) * 3, (200,) * 3, (200, 100, 40), (200, 100, 40)]
    for frame, pixel in zip(video, expected, strict=False):
        assert np.abs(frame - pixel).max() <= 6, pixel
    assert video[5, 0, 0].tolist() == [255] * 3 and video[5].sum() == 255 * 3
    assert (video[6:] == (200, 100, 40)).all() and len(video) == 8


def test_a_transparent_gif_is_composited_on_black(tmp_path):
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
    assert info.fps == pytest.approx(10)  # browsers display a duration of 0 as 100 ms
    video = read_clip(path)
    for number in range(3):
        assert (video[number, number] == 255).all()
        assert video[number].sum() == 8 * 3 * 255


def test_corrupt_exif_data_are_ignored(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(VIDEO[0]).save(path, exif=b"junk")
    assert (video_io.read_image(path, (HEIGHT, WIDTH))[0] == VIDEO[0]).all()


@pytest.mark.parametrize(
    ("kind", "said"), [(np.float32, "floating-point"), (np.int32, "32-bit")]
)
def test_pixels_without_a_range_are_rejected(tmp_path, kind, said):
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(BadVideo, match=said):
        video_io.read_image(path, (4, 4))


def test_transparent_16_bit_grey_is_composited_on_black(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[300, 65535]], np.uint16)).save(path, transparency=65535)
    assert images.read_image(path)[..., 0].tolist() == [[1, 0]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp", "a.gif"])
def test_a_truncated_image_is_reported(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(VIDEO[0]).save(path)
    data = path.read_bytes()
    for size, reason in (
        (0, "empty file"),
        (8, "truncated"),
        (len(data) // 2, "truncated"),
    ):
        path.write_bytes(data[:size])
        with pytest.raises(BadVideo, match=reason):
            images.read_image(path)


def test_frames_of_different_sizes_are_rejected(tmp_path):
    path = make_file(tmp_path, "frames")
    Image.new("RGB", (5, 5)).save(path / "frame7.png")
    with pytest.raises(BadVideo, match="frame7.png is 5x5, the first frame 48x32"):
        read_clip(path)
    (path / "frame7.png").write_bytes((path / "frame8.png").read_bytes()[:99])
    with pytest.raises(BadVideo, match="frames: frame7.png: corrupt or truncated"):
        read_clip(path)
    (path / "frame0.png").write_bytes(b"")
    with pytest.raises(BadVideo, match="frames: frame0.png: empty file"):
        video_io.probe(path)
