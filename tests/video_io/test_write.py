"""Writing of mp4, gif, contact sheets and npz: vdm_jax/video_io/write.py."""

import json
import resource

import av
import av.error
import numpy as np
import pytest
from PIL import Image

from tests.video_io.samples import (
    read_clip,
    synthetic_video,
)
from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile


@pytest.mark.parametrize("shape", [(16, 16, 3), (15, 17, 3), (20, 30, 1)])
@pytest.mark.parametrize("scale", [0, 1, 2])
def test_mp4_has_a_common_format_and_keeps_the_colours(tmp_path, shape, scale):
    video = synthetic_video(6, *shape)
    path = tmp_path / "a.mp4"
    video_io.write_video(path, video, fps=8, scale=scale)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8 and stream.frames == 6
        assert stream.height % 2 == stream.width % 2 == 0
    factor = scale or -(-128 // min(shape[:2]))
    back = read_clip(path)[:, : factor * shape[0], : factor * shape[1]]
    assert min(back.shape[1:3]) >= 128 or scale
    error = np.abs(back.astype(int) - video_io.repeat_pixels(video, factor))
    assert error.mean() < (2.5 if not scale else 4)  # halved chroma


def test_colours_are_encoded_without_bias(tmp_path):
    """Flat colours are written with a tagged matrix and read with it."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 3))
    video = np.broadcast_to(colours[:, None, None], (40, 32, 32, 3)).astype(np.uint8)
    path = tmp_path / "a.mp4"
    video_io.write_video(path, video, fps=8, scale=1)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc
        assert tags == (1, 1, 1) and context.color_range == 1
    error = read_clip(path).astype(float).mean((1, 2)) - colours
    assert np.abs(error).max() < 4 and np.abs(error.mean(0)).max() < 0.4


def test_gif_keeps_frames_and_durations(tmp_path):
    video = synthetic_video(8, 16, 16)
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
    back = read_clip(path)[:, ::3, ::3].astype(int)
    assert np.abs(back - video).mean() < 12  # 256 colours for all frames
    still = np.repeat(video[:1], 4, 0)
    video_io.write_gif(tmp_path / "still.gif", still, fps=8, scale=1)
    assert (np.ptp(read_clip(tmp_path / "still.gif"), axis=0) == 0).all()


def test_a_sheet_has_a_row_per_video_and_a_column_per_frame(tmp_path):
    videos = np.stack([synthetic_video(9, 16, 16), synthetic_video(9, 16, 16)[::-1]])
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


def test_the_video_grid_shows_every_video(tmp_path):
    videos = np.arange(5, dtype=np.uint8)[:, None, None, None, None]
    videos = np.broadcast_to(videos, (5, 2, 4, 6, 3))
    grid = video_io.video_grid(videos)
    assert grid.shape == (2, 2 * 5 - 1, 3 * 7 - 1, 3)
    for number in range(5):
        row, column = divmod(number, 3)
        assert (grid[:, 5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
                == number).all()  # fmt: skip


def test_write_samples_is_complete_and_never_mixes_outputs(tmp_path):
    videos = np.stack([synthetic_video(4, 16, 16)] * 3)
    out = tmp_path / "deep" / "out"
    paths = video_io.write_samples(out, "s", videos, 8, {"seed": 3, "command": "x"})
    names = sorted(p.name for p in out.iterdir())
    numbered = ["s-000.mp4", "s-001.mp4", "s-002.mp4"]
    whole = ["s.gif", "s.json", "s.mp4", "s.npz", "s.png"]
    assert names == numbered + whole == sorted(p.name for p in paths)
    assert (np.load(out / "s.npz")["videos"] == videos).all()
    info = json.loads((out / "s.json").read_text())
    assert info["seed"] == 3 and info["shape"] == [3, 4, 16, 16, 3]
    with pytest.raises(UserError, match="--overwrite"):
        video_io.write_samples(out, "s", videos, 8, {})
    (out / "s-old.mp4").write_text("not ours")
    video_io.write_samples(out, "s", videos[:1], 8, {}, overwrite=True)
    names = sorted(p.name for p in out.iterdir())
    assert names == ["s-000.mp4", "s-old.mp4", *whole]
    with pytest.raises(UserError, match="output folder"):
        video_io.check_output_folder(out / "s.png", "t")


def test_samples_of_one_frame_are_pictures_without_an_mp4_or_a_gif(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 1, 16, 16, 3), np.uint8)
    video_io.write_samples(tmp_path, "s", pictures.repeat(2, axis=1), 8, {})
    paths = video_io.write_samples(
        tmp_path, "s", pictures, 8, {}, ["a", "b", "c"], True
    )
    names = sorted(p.name for p in tmp_path.iterdir())
    numbered = ["s-000.png", "s-001.png", "s-002.png"]
    assert names == [*numbered, "s.json", "s.npz", "s.png"]
    assert names == sorted(p.name for p in paths)
    for name, picture in zip(numbered, pictures[:, 0], strict=True):
        assert (np.asarray(Image.open(tmp_path / name)) == picture).all()
    assert (video_io.read_npz(tmp_path / "s.npz") == pictures).all()
    info = json.loads((tmp_path / "s.json").read_text())
    assert info["labels"] == ["a", "b", "c"] and info["shape"] == [3, 1, 16, 16, 3]


def test_arrays_are_written_before_videos(tmp_path):
    """On a disk with space for the array only, no sample is lost."""
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


def test_an_mp4_has_its_index_before_its_frames(tmp_path):
    """Browsers can play it during the download."""
    for n in 1, 300:
        path = tmp_path / f"{n}.mp4"
        video_io.write_video(path, np.zeros((n, 8, 8, 3), np.uint8), 8, scale=1)
        content = path.read_bytes()
        assert -1 < content.find(b"moov") < content.find(b"mdat")


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
def test_slugs_are_safe_file_names(text, name):
    assert video_io.slug(text) == name
