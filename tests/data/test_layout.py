"""Videos, labels and captions of a folder: vdm_jax/data/layout.py."""

import json
import os
import pickle

import pytest
from PIL import Image

from tests.data.folders import (
    make_frames,
    make_mp4,
    rng,
)
from vdm_jax.data import layout
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError


def test_layout_labels_and_captions(videos, open_videos):
    make_mp4(videos / "cats" / "a.mp4", 1)
    make_mp4(videos / "cats" / "deep" / "b.mov", 2)
    make_frames(videos / "dogs" / "rex", 3)
    make_mp4(videos / "top.mp4", 4)
    (videos / "cats" / "a.txt").write_text("a cat\n\n  the same cat  \n", "utf-8")
    (videos / "dogs" / "rex.txt").write_text("\ufeffein Hund, groß", "utf-8")
    (videos / "captions.jsonl").write_text(
        '{"file": "cats/a.mp4", "caption": "kitty"}\n\n'
        '{"file": "./top.mp4", "captions": ["one", "two", " "], "caption": null}\n'
        '{"file": "gone.mp4", "caption": "nothing"}\n'
    )
    (videos / ".hidden.mp4").write_text("x")
    (videos / "notes.md").write_text("x")
    source = open_videos(validation_fraction=0.0)
    found = {file.name: file for file in source.files}
    assert sorted(found) == ["cats/a.mp4", "cats/deep/b.mov", "dogs/rex", "top.mp4"]
    assert source.label_vocabulary == (("cats", "dogs"),)
    assert found["cats/a.mp4"].captions == ("a cat", "the same cat", "kitty")
    assert found["dogs/rex"].captions == ("ein Hund, groß",)
    assert found["top.mp4"].captions == ("one", "two")
    assert source.report.unmatched == ("gone.mp4",)
    assert (source.report.num_videos, source.report.skipped) == (4, ())
    labels, drawn = {}, {}
    for index, name in enumerate(source.names):
        for seed in range(20):
            clip = source.load(index, rng(seed), 4)
            file = name.split(" [")[0]
            labels[file] = clip["label"].tolist()
            drawn.setdefault(file, set()).add(clip["caption"])
    assert labels == {
        "cats/a.mp4": [0], "cats/deep/b.mov": [0], "dogs/rex": [1], "top.mp4": [-1]
    }  # fmt: skip
    assert drawn["cats/a.mp4"] == {"a cat", "the same cat", "kitty"}
    assert drawn["cats/deep/b.mov"] == {""}


def test_folders_of_frames_are_not_labels(videos, open_videos):
    make_frames(videos / "one")
    make_frames(videos / "two", 1)
    source = open_videos()
    assert source.label_vocabulary == () and "label" not in source.load(0, rng(), 4)
    assert {file.name for file in source.files} <= {"one", "two"}


def test_a_folder_of_frames_is_one_video(tmp_path, open_videos):
    make_frames(tmp_path / "videos")
    (tmp_path / "videos.txt").write_text("not part of the data")
    source = open_videos(validation_fraction=0.0)
    assert len(source) == 3 and source.load(0, rng(), 4)["caption"] == ""


def test_images_next_to_videos_are_not_a_video(videos, open_videos):
    make_mp4(videos / "a.mp4")
    Image.new("RGB", (8, 8)).save(videos / "poster.png")
    assert open_videos(validation_fraction=0.0).report.num_videos == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 1: not JSON"),
        ('{"file": "a.mp4"}', "each line is"),
        ('{"file": 3, "caption": "x"}', "each line is"),
        ('{"file": "a.mp4", "caption": "x", "captions": 5}', "each line is"),
        ('{"file": "a.mp4", "caption": "x", "captions": {"en": "y"}}', "each line is"),
        ('{"file": "a.mp4", "caption": 5}', "each line is"),
        ('{"file": "a.mp4", "caption": "\\ud83d"}', "line 1: a caption .*surrogate"),
        ('{"file": "a.mp4", "caption": "\\u0000"}', "line 1: a caption .*NUL"),
        ("[" * 100_000, "line 1: not JSON"),
        ("1" * 5000, "line 1: not JSON"),
        ("[]", "each line is"),
    ],
)
def test_an_invalid_line_of_captions_is_reported(videos, open_videos, line, reason):
    make_mp4(videos / "a.mp4")
    (videos / "captions.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=reason) as caught:
        open_videos()
    assert caught.value.status == 2


def test_ignored_files_are_counted_by_suffix(videos, open_videos):
    make_mp4(videos / "a.mp4")
    (videos / "a.txt").write_text("used")
    (videos / "captions.jsonl").write_text("")
    (videos / "frames.txt").write_text("used")
    (videos / "b.txt").write_text("of no video")
    for name in ("x.rm", "y.RM", "z.zip", "README", ".hidden", "p.heic", "a.png"):
        (videos / name).write_text("x")
    make_frames(videos / "frames")
    (videos / "frames" / "list.csv").write_text("x")
    for name in ("frames/@eaDir/0.png", "__MACOSX/b.mp4", ".trash/c.mp4"):
        (videos / name).parent.mkdir(parents=True)
        (videos / name).write_text("x")
    (videos / "nothing" / "in" / "it").mkdir(parents=True)
    source = open_videos(validation_fraction=0.0)
    assert {file.name for file in source.files} == {"a.mp4", "frames"}
    assert source.report.ignored == {
        ".rm": 2, ".zip": 1, "no suffix": 1, "hidden": 4, ".heic": 1, ".txt": 1,
        ".png": 1, ".csv": 1, "empty folder": 1,
    }  # fmt: skip
    assert "ignored files: 4 hidden, 2 .rm, 1 " in source.report.summary_lines()[-1]
    assert pickle.loads(pickle.dumps(source)).report == source.report


@pytest.mark.parametrize(
    "inner", [".empty", "empty", "@eaDir/1.png", "notes/a.txt", "deep/er", ".x/a.mp4"]
)
def test_frames_are_a_video_next_to_folders_without_media(videos, inner):
    make_frames(videos / "frames", frames=2)
    place = videos / "frames" / inner
    (place.parent if place.suffix else place).mkdir(parents=True, exist_ok=True)
    if place.suffix:
        place.write_text("x")
    assert layout.find_videos(videos)[0].videos == ("frames",)


def test_images_above_folders_of_media_are_not_a_video(videos):
    make_frames(videos / "deep" / "er" / "frames", frames=2)
    (videos / "poster.png").write_bytes(b"x")
    found, _ = layout.find_videos(videos)
    assert found.videos == ("deep/er/frames",) and found.ignored == {".png": 1}


def test_a_folder_of_ignored_files_is_reported_with_their_kinds(videos, open_videos):
    (videos / "a.heic").write_text("x")
    message = r"no videos found.* \(.3g2 .*; ignored files: 1 "
    with pytest.raises(UserError, match=message):
        open_videos()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_end_at_line_ends_only(videos, ending, encoding):
    caption = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\x1deight\x1e"
    caption += "猫"
    (videos / "a.mp4").write_text("x")
    text = ending.join([caption, "", "other", ""])
    (videos / "a.txt").write_bytes(text.encode(encoding))
    lines = [
        json.dumps({"file": "a.mp4", "caption": text}, ensure_ascii=False)
        for text in (caption.replace("\x0b", "").replace("\x0c", "")[:14], "more")
    ]
    (videos / "captions.jsonl").write_bytes(ending.join(lines).encode(encoding))
    listing, texts = layout.find_videos(videos)
    assert texts == {"a.mp4": (caption, "other", "one\u2028two\u2029three", "more")}
    assert not listing.skipped
    assert layout.read_all_captions(videos / "a.txt")[0] == [caption, "other"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\0b", "NUL"),
        ("a cat".encode("utf-16-be"), "NUL"),
        (b"caf\xe9", "not UTF-8"),
        (b"\xef\xbb\xbfcaf\xe9", "not UTF-8"),
        (b"\xff\xfea", "not UTF-16"),
        (b"x" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_captions_that_are_not_text_skip_their_video(videos, content, reason):
    (videos / "a.mp4").write_text("x")
    (videos / "a.txt").write_bytes(content)
    listing, texts = layout.find_videos(videos)
    ((name, said),) = listing.skipped
    assert name == "a.mp4" and reason in said and not texts


def test_captions_that_are_not_regular_files_are_reported(videos):
    (videos / "a.mp4").write_text("x")
    (videos / "a.txt").mkdir()
    listing, _ = layout.find_videos(videos)
    assert listing.skipped == (("a.mp4", "a.txt: not a regular file"),)
    os.mkfifo(videos / "captions.jsonl")
    with pytest.raises(UserError, match="captions.jsonl: not a regular file"):
        layout.find_videos(videos)


def test_links_to_captions_are_followed_inside_the_folder_only(videos, tmp_path):
    (tmp_path / "secret.txt").write_text("root:x:0")
    (videos / "inside.text").write_text("a cat")
    for name in ("out", "in", "lost"):
        (videos / f"{name}.mp4").write_text("x")
    (videos / "out.txt").symlink_to(tmp_path / "secret.txt")
    (videos / "in.txt").symlink_to(videos / "inside.text")
    (videos / "lost.txt").symlink_to(videos / "nowhere")
    listing, texts = layout.find_videos(videos)
    assert texts == {"in.mp4": ("a cat",)}
    assert listing.skipped == (
        ("lost.mp4", "lost.txt: broken symlink"),
        ("out.mp4", "out.txt: symlink that leaves the folder"),
    )
    with pytest.raises(UserError, match="none of|no captions|symlink") as caught:
        (videos / "captions.jsonl").symlink_to(tmp_path / "secret.txt")
        layout.read_all_captions(videos)
    assert "captions.jsonl: symlink that leaves" in str(caught.value)


def test_names_that_are_not_utf8_are_read_and_printed(videos, open_videos):
    make_mp4(videos / "a.mp4")
    strange = os.fsdecode(os.fsencode(videos) + b"/caf\xe9 \n.mp4")
    os.rename(videos / "a.mp4", strange)
    with open(os.fsencode(strange)[:-4] + b".txt", "w") as file:
        file.write("a cat")
    (videos / "captions.jsonl").write_text(
        '{"file": "caf\\udce9 \\n.mp4", "caption": "more"}\n'
    )
    with open(os.fsencode(videos) + b"/\xff.mp4", "w") as file:
        file.write("bad")
    for label in (b"gr\xfcn", b"rot"):
        place = os.fsdecode(os.fsencode(videos) + b"/" + label)
        os.mkdir(place)
        os.link(strange, place + "/b.mp4")
    source = open_videos(validation_fraction=0.3)
    parts = source.files + source.split(True).files
    captions = {file.captions for file in parts}
    assert ("a cat", "more") in captions and len(parts) == 3
    assert source.label_vocabulary == ((r"gr\udcfcn", "rot"),)
    assert source.load(0, rng(), 4)["video"].any()
    for line in source.report.summary_lines():
        assert line.isprintable() and line.encode()
    assert any(r"\udcff.mp4: " in line for line in source.report.summary_lines())
    assert str(BadClip("caf\udce9", "x")) == r"caf\udce9: x"


def test_videos_are_listed_in_sorted_order(videos):
    for name in ("b.mp4", "a/z.mp4", "a/b/y.gif"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_text("x")
    found, _ = layout.find_videos(videos)
    assert found.videos == ("a/b/y.gif", "a/z.mp4", "b.mp4")
    assert json.loads(json.dumps(found.videos)) == list(found.videos)
