"""Laws of the folder source: what it finds, what it holds out, what it loads."""

import dataclasses
import hashlib
import json
import os
import pickle
import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from vdm_jax import video_io
from vdm_jax.data import folder, layout
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError
from vdm_jax.video_io import cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

FRAMES, HEIGHT, WIDTH = 12, 24, 32


def footage(seed=0, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """Noise blocks, and the frame's number as grey in the top left corner."""
    rng = np.random.default_rng(seed)
    video = rng.integers(60, 256, (frames, height // 8, width // 8, 3), np.uint8)
    video = video.repeat(8, 1).repeat(8, 2)
    video[:, :8, :8] = 6 * np.arange(frames)[:, None, None, None]
    return video


def number(frame):
    """The frame number that footage wrote, as seen after decoding."""
    return np.round(frame[..., 1:4, 1:4, :].mean((-3, -2, -1)) / 6).astype(int)


def make_mp4(path, seed=0, frames=FRAMES, fps=8, video=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = footage(seed, frames) if video is None else video
    video_io.write_video(path, video, fps, scale=1, overwrite=True)


def make_frames(path, seed=0, frames=FRAMES):
    path.mkdir(parents=True)
    for n, pixels in enumerate(footage(seed, frames)):
        Image.fromarray(pixels).save(path / f"{n}.png")


def config(folder_, cache_dir_, **changes):
    video = {"frames": 4, "height": HEIGHT, "width": WIDTH, "channels": 3, "fps": 8}
    data = {"path": str(folder_), "stride": 1, "target_fps": 0.0, "crop": "center"}
    data |= {
        "validation_fraction": 0.25,
        "cache_dir": str(cache_dir_),
        "cache_gib": 0.01,
    }
    data |= {"max_bad_fraction": 1.0}
    video |= {name: changes[name] for name in video if name in changes}
    data |= {name: changes[name] for name in data if name in changes}
    assert set(changes) <= set(video) | set(data)
    space = types.SimpleNamespace
    return space(video=space(**video), data=space(**data))


class Here:
    """A Guard without children, which take a third of a second to start."""

    inspect = staticmethod(video_io.inspect)
    read_frames = staticmethod(video_io.read_frames)

    def fill_entry(self, info, size, place):
        shape = (info.frames, *video_io.cover_size(info.height, info.width, size))
        cache.write_entry(place, video_io.decode_frames(info, size=size), shape)

    def close(self):
        pass


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open tmp_path/videos, with settings."""
    monkeypatch.setattr(folder, "SandboxedDecoder", Here)
    root, store = tmp_path / "videos", tmp_path / "cache"
    return lambda **changes: folder.open_folder(config(root, store, **changes))


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- what is found ----


def test_too_many_unusable_files_stop_before_training(videos, opened):
    for n in range(3):
        make_mp4(videos / f"{n}.mp4", n)
    for n in range(2):
        (videos / f"bad{n}.mp4").write_bytes(b"")
    assert len(opened(max_bad_fraction=0.4).report.skipped) == 2
    with pytest.raises(
        UserError, match=r"2 of 5 .*max_bad_fraction=0.3.*bad0.mp4: empty"
    ):
        opened(max_bad_fraction=0.3)


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    return root


def test_layout_labels_and_captions(videos, opened):
    make_mp4(videos / "cats" / "a.mp4", 1)
    make_mp4(videos / "cats" / "deep" / "b.mov", 2)
    make_frames(videos / "dogs" / "rex", 3)
    make_mp4(videos / "top.mp4", 4)
    (videos / "cats" / "a.txt").write_text("a cat\n\n  the same cat  \n", "utf-8")
    (videos / "dogs" / "rex.txt").write_text("\ufeffein Hund, groß", "utf-8")
    (videos / "captions.jsonl").write_text(
        '{"file": "cats/a.mp4", "caption": "kitty"}\n\n'
        '{"file": "./top.mp4", "captions": ["one", "two", " "]}\n'
        '{"file": "gone.mp4", "caption": "nothing"}\n'
    )
    (videos / ".hidden.mp4").write_text("x")
    (videos / "notes.md").write_text("x")
    source = opened(validation_fraction=0.0)
    found = {file.name: file for file in source.files}
    assert sorted(found) == ["cats/a.mp4", "cats/deep/b.mov", "dogs/rex", "top.mp4"]
    assert source.attributes == (("cats", "dogs"),)
    assert found["cats/a.mp4"].captions == ("a cat", "the same cat", "kitty")
    assert found["dogs/rex"].captions == ("ein Hund, groß",)
    assert found["top.mp4"].captions == ("one", "two")
    assert source.report.unmatched == ("gone.mp4",)
    assert (source.report.found, source.report.kept) == (4, 4)
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


def test_folders_of_frames_are_no_labels(videos, opened):
    make_frames(videos / "one")
    make_frames(videos / "two", 1)
    source = opened()
    assert source.attributes == () and "label" not in source.load(0, rng(), 4)
    assert {file.name for file in source.files} <= {"one", "two"}


def test_a_folder_of_frames_alone_is_one_video(tmp_path, opened):
    make_frames(tmp_path / "videos")
    (tmp_path / "videos.txt").write_text("not part of the data")
    source = opened(validation_fraction=0.0)
    assert len(source) == 3 and source.load(0, rng(), 4)["caption"] == ""


def test_pictures_beside_videos_are_no_video(videos, opened):
    make_mp4(videos / "a.mp4")
    Image.new("RGB", (8, 8)).save(videos / "poster.png")
    assert opened(validation_fraction=0.0).report.found == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 1: not JSON"),
        ('{"file": "a.mp4"}', "each line is"),
        ('{"file": 3, "caption": "x"}', "each line is"),
        ('{"file": "a.mp4", "captions": "x"}', "each line is"),
        ('{"file": "a.mp4", "caption": "x", "captions": 5}', "each line is"),
        ('{"file": "a.mp4", "caption": "x", "captions": "yz"}', "each line is"),
        ('{"file": "a.mp4", "caption": "x", "captions": {"en": "y"}}', "each line is"),
        ('{"file": "a.mp4", "caption": null, "captions": null}', "each line is"),
        ('{"file": "a.mp4", "caption": "\\ud83d"}', "line 1: a caption .*surrogate"),
        ('{"file": "a.mp4", "caption": "\\u0000"}', "line 1: a caption .*NUL"),
        ("[" * 100_000, "line 1: not JSON: nested too deeply"),
        ("1" * 5000, "line 1: not JSON"),
        ("[]", "each line is"),
    ],
)
def test_a_wrong_line_of_captions_is_named(videos, opened, line, reason):
    make_mp4(videos / "a.mp4")
    (videos / "captions.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=reason) as caught:
        opened()
    assert caught.value.status == 2


def test_unusable_files_are_dropped_with_their_reason(videos, tmp_path, opened):
    make_mp4(videos / "good.mp4")
    make_mp4(videos / "short.mp4", frames=3)
    make_mp4(videos / "flat.mp4", video=np.full((9, 24, 32, 3), 7, np.uint8))
    make_mp4(videos / "said.mp4", 5)
    (videos / "said.txt").write_bytes(b"\xe9\x00bad")
    (videos / "empty.mov").write_bytes(b"")
    data = (videos / "good.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(data[:-500])
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(data)
    os.symlink(outside, videos / "out.mp4")
    os.symlink(videos / "nowhere", videos / "broken.webm")
    os.symlink(tmp_path, videos / "way-out")
    os.symlink(videos / "good.mp4", videos / "inside.mp4")
    make_frames(videos / "frames")
    os.symlink(tmp_path / "outside.mp4", videos / "frames" / "99.png")
    source = opened(validation_fraction=0.0)
    assert {file.name for file in source.files} == {"good.mp4", "inside.mp4"}
    reasons = dict(source.report.skipped)
    for name, reason in {
        "short.mp4": "too short: 3 frames",
        "flat.mp4": "constant",
        "said.mp4": "not UTF-8",
        "empty.mov": "empty file",
        "cut.mp4": "truncated",
        "out.mp4": "symlink that leaves the folder",
        "broken.webm": "broken symlink",
        "way-out": "symlink to a folder",
        "frames": "symlink that leaves the folder",
    }.items():
        assert reason in reasons.pop(name), name
    assert not reasons
    assert source.report.found == 11
    text = "\n".join(source.report.lines())
    assert "11 videos found, 2 kept, 9 dropped" in text and "flat.mp4: constant" in text
    assert len(source.report.lines(most=3)) == 5


def test_what_is_not_looked_at_is_counted_by_suffix(videos, opened):
    make_mp4(videos / "a.mp4")
    (videos / "a.txt").write_text("used")
    (videos / "captions.jsonl").write_text("")
    (videos / "b.txt").write_text("of no video")
    for name in ("x.rm", "y.RM", "z.zip", "README", ".hidden", "p.heic", "a.png"):
        (videos / name).write_text("x")
    make_frames(videos / "frames")
    (videos / "frames" / "list.csv").write_text("x")
    for name in ("frames/@eaDir/0.png", "__MACOSX/b.mp4", ".trash/c.mp4"):
        (videos / name).parent.mkdir(parents=True)
        (videos / name).write_text("x")
    (videos / "nothing" / "in" / "it").mkdir(parents=True)
    source = opened(validation_fraction=0.0)
    assert {file.name for file in source.files} == {"a.mp4", "frames"}
    assert source.report.others == {
        ".rm": 2, ".zip": 1, "no suffix": 1, "hidden": 4, ".heic": 1, ".txt": 1,
        ".png": 1, ".csv": 1, "empty folder": 1,
    }  # fmt: skip
    assert "not looked at: 4 hidden, 2 .rm, 1 .csv" in source.report.lines()[-1]
    assert pickle.loads(pickle.dumps(source)).report == source.report


@pytest.mark.parametrize(
    "inner", [".empty", "empty", "@eaDir/1.png", "notes/a.txt", "deep/er", ".x/a.mp4"]
)
def test_frames_stay_a_video_beside_folders_of_other_things(videos, inner):
    make_frames(videos / "frames", frames=2)
    place = videos / "frames" / inner
    (place.parent if place.suffix else place).mkdir(parents=True, exist_ok=True)
    if place.suffix:
        place.write_text("x")
    assert layout.find_videos(videos).videos == ("frames",)


def test_pictures_over_folders_of_media_are_no_video(videos):
    make_frames(videos / "deep" / "er" / "frames", frames=2)
    (videos / "poster.png").write_bytes(b"x")
    found = layout.find_videos(videos)
    assert found.videos == ("deep/er/frames",) and found.ignored == {".png": 1}


def test_only_other_files_is_told_with_their_kinds(videos, opened):
    (videos / "a.heic").write_text("x")
    with pytest.raises(UserError, match=r"no video found \(3g2, .*; not looked at: 1 "):
        opened()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_ends_where_its_line_does(videos, ending, encoding):
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
    texts, dropped, _ = layout.read_captions(layout.find_videos(videos))
    assert texts == {"a.mp4": (caption, "other", "one\u2028two\u2029three", "more")}
    assert not dropped
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
def test_captions_that_are_no_text_drop_their_video(videos, content, reason):
    (videos / "a.mp4").write_text("x")
    (videos / "a.txt").write_bytes(content)
    texts, ((name, said),), _ = layout.read_captions(layout.find_videos(videos))
    assert name == "a.mp4" and reason in said and not texts


def test_captions_that_are_no_files_are_named(videos):
    (videos / "a.mp4").write_text("x")
    (videos / "a.txt").mkdir()
    _, dropped, _ = layout.read_captions(layout.find_videos(videos))
    assert dropped == [("a.mp4", "caption a.txt: not a regular file")]
    os.mkfifo(videos / "captions.jsonl")
    with pytest.raises(UserError, match="captions.jsonl: not a regular file"):
        layout.read_captions(layout.find_videos(videos))


def test_captions_that_are_links_go_by_the_rule_of_videos(videos, tmp_path):
    (tmp_path / "secret.txt").write_text("root:x:0")
    (videos / "inside.text").write_text("a cat")
    for name in ("out", "in", "lost"):
        (videos / f"{name}.mp4").write_text("x")
    (videos / "out.txt").symlink_to(tmp_path / "secret.txt")
    (videos / "in.txt").symlink_to(videos / "inside.text")
    (videos / "lost.txt").symlink_to(videos / "nowhere")
    texts, dropped, _ = layout.read_captions(layout.find_videos(videos))
    assert texts == {"in.mp4": ("a cat",)}
    assert dropped == [
        ("lost.mp4", "caption lost.txt: broken symlink"),
        ("out.mp4", "caption out.txt: symlink that leaves the folder"),
    ]
    with pytest.raises(UserError, match="none of|no captions|symlink") as caught:
        (videos / "captions.jsonl").symlink_to(tmp_path / "secret.txt")
        layout.read_all_captions(videos)
    assert "captions.jsonl: symlink that leaves" in str(caught.value)


def test_names_that_are_not_utf8_are_found_sorted_shown_and_split(videos, opened):
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
    source = opened(validation_fraction=0.3)
    parts = source.files + source.split(True).files
    captions = {file.captions for file in parts}
    assert ("a cat", "more") in captions and len(parts) == 3
    assert source.attributes == ((r"gr\udcfcn", "rot"),)
    assert source.load(0, rng(), 4)["video"].any()
    for line in source.report.lines():
        assert line.isprintable() and line.encode()
    assert any(r"\udcff.mp4: " in line for line in source.report.lines())
    assert str(BadClip("caf\udce9", "x")) == r"caf\udce9: x"


def test_nothing_usable_is_one_line_and_status_2(videos, opened):
    with pytest.raises(UserError, match="no videos found"):
        opened()
    for name in "abc":
        make_mp4(videos / f"{name}.mp4", frames=2)
    (videos / "0.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of 4 .* 3 for .* a.mp4: too") as caught:
        opened()
    assert caught.value.status == 2 and "\n" not in str(caught.value)


def test_wrong_settings_are_refused(videos, opened, tmp_path):
    make_mp4(videos / "a.mp4")
    for changes, words in [
        ({"path": ""}, "path is empty"),
        ({"path": str(tmp_path / "no")}, "does not exist"),
        ({"path": str(videos / "a.mp4")}, "is a file"),
        ({"channels": 2}, "channels=2"),
        ({"frames": 0}, "frames=0"),
        ({"stride": 0}, "stride=0"),
        ({"stride": 2, "target_fps": 8.0}, "set one of them"),
        ({"target_fps": -1.0}, "target_fps=-1.0"),
        ({"crop": "left"}, "crop='left'"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"cache_dir": str(videos / "a.mp4")}, "cache_dir"),
    ]:
        with pytest.raises(UserError, match=words):
            opened(**changes)


def test_the_index_is_remembered(videos, opened, monkeypatch):
    make_mp4(videos / "a.mp4")
    make_mp4(videos / "flat.mp4", video=np.full((9, 24, 32, 3), 7, np.uint8))
    first = opened()

    def inspect(*_):
        raise AssertionError("a file is opened again")

    monkeypatch.setattr(Here, "inspect", inspect)
    assert opened().report == first.report


# ---- split ----


def stub(name, frames=FRAMES):
    info = video_io.VideoInfo(
        name, "mp4", "h264", 24, 32, 0, np.arange(frames), 1, np.zeros(1, int)
    )
    return folder.VideoFile(name, 1, info, None, (), 0, frames)


SHAPE = folder.ClipShape(4, 24, 32)


def names(files):
    return {file.name for file in files}


def test_split_is_by_file_stable_and_near_its_share():
    digest = hashlib.sha256(b"cats/a.mp4").hexdigest()  # on every machine
    assert folder._hash("cats/a.mp4") == int(digest[:16], 16) / 2**64
    files = [stub(f"{n}.mp4") for n in range(400)]
    train, out = folder.split_files(files, 0.1, SHAPE)
    assert names(train) | names(out) == names(files)
    assert not names(train) & names(out)
    assert 20 <= len(out) <= 60
    fewer, fewer_out = folder.split_files(files[:300], 0.1, SHAPE)
    assert names(fewer_out) <= names(out)  # more files move none of the old ones
    assert names(folder.split_files(files, 0.3, SHAPE)[1]) >= names(out)
    assert folder.split_files(files[::-1], 0.1, SHAPE)[1][0].name in names(out)


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_both_parts_get_a_file(share):
    for count in (2, 3):
        train, out = folder.split_files(
            [stub(str(n)) for n in range(count)], share, SHAPE
        )
        assert train and out


def test_a_small_folder_keeps_most_of_its_files():
    unlucky = sorted(
        (stub(str(n)) for n in range(200)), key=lambda f: folder._hash(f.name)
    )
    assert (
        len(folder.split_files(unlucky[:7], 0.1, SHAPE)[1]) == 2
    )  # all below the share


def test_one_file_is_split_in_time_or_not_at_all():
    (train,), (out,) = folder.split_files([stub("a", 100)], 0.1, SHAPE)
    assert (train.start, train.stop, out.start, out.stop) == (0, 90, 90, 100)
    (train,), (out,) = folder.split_files([stub("a", 8)], 0.1, SHAPE)
    assert (train.stop, out.start) == (4, 4)  # at least a clip
    train, out = folder.split_files([stub("a", 7)], 0.1, SHAPE)
    assert len(train) == 1 and not out
    assert folder.split_files([stub("a", 4)], 0.1, SHAPE)[1] == ()
    assert folder.split_files([stub("a", 100)], 0.0, SHAPE)[1] == ()


def test_one_file_that_slows_down_is_not_split():
    """Its end alone would be slower than the rate asked for."""
    pts = np.cumsum([0] + [1] * 90 + [9] * 9)
    info = dataclasses.replace(stub("a", 100).info, pts=pts, time_base=Fraction(1, 40))
    file = dataclasses.replace(stub("a", 100), info=info)
    shape = folder.ClipShape(4, 24, 32, fps=10.0)
    train, out = folder.split_files([file], 0.1, shape)
    assert len(train) == 1 and not out
    assert folder.split_files([file], 0.5, shape)[1]


def test_parts_of_one_file_share_no_frame(videos, opened):
    make_mp4(videos / "a.mp4", frames=30)
    source = opened(validation_fraction=0.3)
    seen = {}
    for held_out in (False, True):
        part = source.split(held_out)
        for index in range(len(part)):
            for seed in range(30):
                for frames in (1, 4):
                    video = part.load(index, rng(seed), frames)["video"]
                    seen.setdefault(held_out, set()).update(number(video).tolist())
    assert seen == {False: set(range(21)), True: set(range(21, 30))}


# ---- clips ----


@pytest.mark.parametrize("frames", [4, 5, 9, 12, 100])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_cover_every_start_once(frames, stride):
    shape = folder.ClipShape(4, 24, 32, stride=stride)
    file = stub("a", frames)
    room = frames - 3 * stride
    if room < 1:
        with pytest.raises(video_io.BadVideo):
            folder.clip_ranges(file, shape)
        return
    covered = [
        s for low, high in folder.clip_ranges(file, shape) for s in range(low, high)
    ]
    assert covered == list(range(room))
    widths = [high - low for low, high in folder.clip_ranges(file, shape)]
    assert max(widths) - min(widths) <= 1 and max(widths) <= 3 * stride + 1


def test_load_is_a_function_of_index_and_rng(videos, opened):
    make_mp4(videos / "a.mp4", 1)
    make_mp4(videos / "b.mp4", 2)
    source = opened(validation_fraction=0.0, crop="random", height=8, width=8)
    clips = set()
    for index in range(len(source)):
        for seed in range(6):
            one, two = (source.load(index, rng(seed), 4)["video"] for _ in range(2))
            assert one.shape == (4, 8, 8, 3) and one.dtype == np.uint8
            assert (one == two).all() and one.flags.c_contiguous
            clips.add(one.tobytes())
    assert len(clips) > 10


@pytest.mark.parametrize("crop, least, most", [("center", 1, 1), ("random", 4, 9)])
def test_one_clip_of_a_file_is_cropped_as_asked(videos, opened, crop, least, most):
    """A clip as long as its file starts at one place; 24 x 32 has nine squares."""
    make_mp4(videos / "a.mp4", frames=4)
    source = opened(validation_fraction=0.0, crop=crop, height=24, width=24)
    found = {source.load(0, rng(seed), 4)["video"].tobytes() for seed in range(12)}
    assert least <= len(found) <= most


@pytest.mark.parametrize("cache_gib", [0.0, 0.01])
def test_with_children_and_in_a_worker_all_is_the_same(videos, opened, cache_gib):
    make_mp4(videos / "a.mp4", 1)
    make_mp4(videos / "b.mp4", 2)
    expected = opened(cache_gib=0.0).load(0, rng(), 4)["video"]
    source = opened(cache_gib=cache_gib)
    source._store.guard = SandboxedDecoder()
    worker = pickle.loads(pickle.dumps(source))
    for one in (source, worker):
        assert (one.load(0, rng(), 4)["video"] == expected).all()
        assert one.split(True).names == source.split(True).names
        one._store.guard.close()


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"target_fps": 4.0}])
def test_clips_are_the_frames_asked_for(videos, opened, changes):
    make_mp4(videos / "a.mp4", frames=20, fps=8)
    source = opened(validation_fraction=0.0, **changes)
    step = 2 if changes else 1
    starts = set()
    for index in range(len(source)):
        for seed in range(40):
            shown = number(source.load(index, rng(seed), 4)["video"])
            assert (np.diff(shown) == step).all()
            starts.add(int(shown[0]))
    assert starts == set(range(20 - 3 * step))
    images = {
        int(number(source.load(i, rng(seed), 1)["video"])[0])
        for i in range(len(source))
        for seed in range(40)
    }
    assert images == set(range(20))


def test_cached_and_sought_clips_are_equal(videos, opened):
    make_mp4(videos / "a.mp4", 1)
    make_frames(videos / "b", 2)
    (videos / "c.gif").parent.mkdir(exist_ok=True)
    video_io.write_gif(videos / "c.gif", footage(3), 8, scale=1)
    cached = opened(validation_fraction=0.0)
    sought = opened(validation_fraction=0.0, cache_gib=0.0)
    assert len(cached._store.cached) == 3 and not sought._store.cached
    for index in range(len(cached)):
        pair = [s.load(index, rng(index), 4)["video"] for s in (cached, sought)]
        assert (pair[0] == pair[1]).all()


def test_the_cache_takes_what_is_dear_to_seek_in(videos, opened, tmp_path):
    make_mp4(videos / "short.mp4", frames=8)
    make_mp4(videos / "long.mp4", frames=40)  # one keyframe: dear
    size = video_io.FrameCache.entry_bytes((40, HEIGHT, WIDTH))
    source = opened(validation_fraction=0.0, cache_gib=size / 2**30)
    assert list(source._store.cached) == ["long.mp4"]
    for index in range(len(source)):
        source.load(index, rng(), 4)
    held = [p for p in (tmp_path / "cache" / "frames").iterdir() if p.name != "lock"]
    assert [path.stat().st_size for path in held] == [size]


@pytest.mark.parametrize("cache_gib", [0.0, 0.01])
def test_a_file_that_turns_out_broken_is_a_bad_clip(videos, opened, cache_gib):
    make_mp4(videos / "a.mp4", 1, frames=30)
    make_mp4(videos / "b.mp4", 2)
    source = opened(validation_fraction=0.0, cache_gib=cache_gib)
    path = videos / "a.mp4"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # cut after it was indexed
    bad = [name for name in source.names if name.startswith("a.mp4")]
    if not cache_gib:  # the first windows can still be read
        bad = bad[-2:]
    for name in bad:
        for _ in range(2):
            with pytest.raises(BadClip, match="frame") as caught:
                source.load(source.names.index(name), rng(), 4)
            assert caught.value.name == name
    assert source.load(len(source) - 1, rng(), 4)["video"].any()  # b.mp4


def test_blank_stretches_are_drawn_again(videos, opened):
    video = footage(1, frames=40)
    video[8:] = 0
    make_mp4(videos / "a.mp4", video=video)
    source = opened(validation_fraction=0.0)
    blank = 0
    for index in range(len(source)):
        try:
            assert not video_io.is_flat(source.load(index, rng(), 4)["video"])
        except BadClip as error:
            assert "constant" in str(error)
            blank += 1
    assert 0 < blank < len(source)


def test_a_full_disk_is_the_users_to_know(videos, opened, tmp_path, monkeypatch):
    make_mp4(videos / "a.mp4")
    source = opened(validation_fraction=0.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Here, "fill_entry", full)
    with pytest.raises(UserError, match="no space left.*cache_gib=0"):
        source.load(0, rng(), 4)


def test_grey_and_flip(videos, opened):
    make_mp4(videos / "a.mp4")
    make_mp4(videos / "b.mp4")
    colour = opened(validation_fraction=0.0)
    grey = opened(validation_fraction=0.0, channels=1)
    one = colour.load(0, rng(), 4)["video"].astype(float)
    luma = one @ [0.299, 0.587, 0.114]
    assert np.abs(grey.load(0, rng(), 4)["video"][..., 0] - luma).max() <= 0.51
    assert colour.flip
    (videos / "a.txt").write_text("a ball rolls to the Left side")
    assert not opened(validation_fraction=0.0).flip
    (videos / "a.txt").write_text("brightly lit")
    for label in ("move_left", "b"):
        make_mp4(videos / label / "c.mp4")
    assert not opened(validation_fraction=0.0).flip
    (videos / "move_left").rename(videos / "move_up")
    assert opened(validation_fraction=0.0).flip


def test_slow_files_are_dropped_and_frames_have_no_clock(videos, opened):
    make_mp4(videos / "slow.mp4", fps=4)
    make_frames(videos / "frames")
    source = opened(validation_fraction=0.0, target_fps=8.0)
    assert names(source.files) == {"frames"}
    assert (
        "4 frames per second are below the 8" in dict(source.report.skipped)["slow.mp4"]
    )
    assert (np.diff(number(source.load(0, rng(), 4)["video"])) == 1).all()


def test_fingerprint_fields_tell_files_apart(videos, opened):
    make_mp4(videos / "a.mp4", 1, frames=20)
    one = opened(validation_fraction=0.0)
    assert len(set(one.names)) == len(one) == len(one.sizes) > 1
    make_mp4(videos / "a.mp4", 2, frames=20)
    assert opened(validation_fraction=0.0).sizes != one.sizes


def test_find_is_sorted_and_the_same_everywhere(videos):
    for name in ("b.mp4", "a/z.mp4", "a/b/y.gif"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_text("x")
    found = layout.find_videos(videos)
    assert found.videos == ("a/b/y.gif", "a/z.mp4", "b.mp4")
    assert json.loads(json.dumps(found.videos)) == list(found.videos)
