"""Folders of pictures: the folder source with clips of one frame."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import footage, make_frames, make_mp4, rng
from vdm_jax import video_io
from vdm_jax.data import __main__ as command
from vdm_jax.data import layout
from vdm_jax.errors import UserError

ROTATED = 6  # EXIF: displayed rotated clockwise


def picture(seed=0):
    return footage(seed, frames=1)[0]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def rotated():
    """Return the options of Pillow for a picture that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return {"exif": exif, "quality": 100, "subsampling": 0}


@pytest.fixture
def pictures(videos):
    """Pictures of every suffix and two videos, with captions; two cannot be used."""
    save(videos / "cats" / "a.png", picture(1))
    (videos / "cats" / "a.txt").write_text("a cat\nthe same cat\n")
    side = np.rot90(picture(2)).copy()  # clockwise it is upright
    save(videos / "cats" / "b.JPG", side, **rotated())
    save(videos / "dogs" / "c.webp", picture(3), lossless=True)
    make_mp4(videos / "dogs" / "d.mp4", 4, frames=5, fps=2)
    make_frames(videos / "dogs" / "rex", 5, frames=3)
    (videos / "dogs" / "rex.txt").write_text("a dog digs\n")
    (videos / "dogs" / "rex" / "1.txt").write_text("a dog has dug\n")
    (videos / "captions.jsonl").write_text(
        '{"file": "cats/b.JPG", "caption": "a tall cat"}\n'
        '{"file": "dogs/rex", "caption": "soil"}\n'
        '{"file": "gone.png", "caption": "nothing"}\n'
    )
    whole = (videos / "cats" / "a.png").read_bytes()
    (videos / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(videos / "flat.jpg", np.full((24, 32, 3), 9, np.uint8))
    (videos / "note.pdf").write_text("x")
    return videos


def test_every_picture_is_an_item_with_its_captions(pictures, open_videos):
    source = open_videos(frames=1, validation_fraction=0.0, target_fps=8.0)
    files = {file.name: file for file in source.files}
    assert {name: file.captions for name, file in files.items()} == {
        "cats/a.png": ("a cat", "the same cat"),
        "cats/b.JPG": ("a tall cat",),
        "dogs/c.webp": (),
        "dogs/d.mp4": (),
        "dogs/rex/0.png": ("a dog digs", "soil"),
        "dogs/rex/1.png": ("a dog has dug",),
        "dogs/rex/2.png": ("a dog digs", "soil"),
    }
    assert {file.label for file in files.values()} == {"cats", "dogs"}
    assert len(source) == 6 + 5  # each frame of the video is an item too
    reasons = dict(source.report.skipped)
    assert {*reasons} == {"cut.png", "flat.jpg"}
    assert "truncated" in reasons["cut.png"] and "constant" in reasons["flat.jpg"]
    assert source.report.summary_lines()[0].endswith(
        "9 pictures and videos, 7 usable, 2 skipped"
    )
    assert source.report.ignored == {".pdf": 1}
    assert source.report.unmatched == ("gone.png",)
    for name, expected in (("cats/a.png", 1), ("cats/b.JPG", 2), ("dogs/c.webp", 3)):
        clip = source.load(source.names.index(name), rng(), 1)
        error = np.abs(clip["video"][0].astype(int) - picture(expected))
        assert clip["video"].shape == (1, 24, 32, 3) and error.max() < 12


def test_longer_clips_have_the_pictures_of_a_folder_as_frames(pictures, open_videos):
    found = layout.find_videos(pictures)[0].videos
    assert found == ("cats", "dogs/c.webp", "dogs/d.mp4", "dogs/rex")
    with pytest.raises(UserError, match="none of 4 videos .*: too short: 2 frames"):
        open_videos(frames=6)


def test_captions_are_those_of_clips_and_of_pictures(pictures):
    texts, _ = layout.read_all_captions(pictures)
    both = {"a cat", "the same cat", "a tall cat", "a dog has dug"}
    assert {*texts} == both | {"a dog digs", "soil"} and len(texts) == 6


def test_a_picture_of_two_by_three_pixels_is_shown_upright(tmp_path):
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[1, 0] = 255  # lower left: after a turn clockwise upper left
    save(tmp_path / "a.jpg", stored, **rotated())
    info = video_io.probe(tmp_path / "a.jpg")
    assert (info.frames, info.height, info.width, info.kind) == (1, 3, 2, "picture")
    shown = video_io.read_frames(info, [0])[0]
    np.testing.assert_allclose(shown, np.rot90(stored, -1), atol=12)


def test_a_name_does_not_decide_what_a_picture_is(tmp_path):
    save(tmp_path / "a.png", picture(1))
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    shown = video_io.read_frames(video_io.probe(tmp_path / "a.jpg"), [0])[0]
    assert (shown == picture(1)).all()


def test_the_check_draws_a_sheet_of_pictures(pictures, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    flags = [f"--sheet={sheet}", f"--cache_dir={tmp_path / 'c'}", "--num_frames=1"]
    size = ["--height=24", "--width=32", "--json"]
    assert command.main(["check", str(pictures), *flags, *size]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["videos"], facts["usable"]) == (9, 7)
    assert [line.split(":")[0] for line in facts["skipped"]] == ["cut.png", "flat.jpg"]
    files = {fact["file"]: fact for fact in facts["files"]}
    assert files["cats/b.JPG"]["size"] == "32x24"
    assert files["cats/a.png"]["container"] == "picture"
    with Image.open(sheet) as image:
        assert 0.5 < image.height / image.width < 2
