"""What is prepared: vdm_jax/data/prepare_items.py, tars.py and sample_fields.py."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.folders import InProcessDecoder, footage, make_mp4
from vdm_jax.clip_shards import items
from vdm_jax.clip_shards.items import ClipFormat, ItemReader
from vdm_jax.data import prepare_items, tars
from vdm_jax.errors import UserError
from vdm_jax.video_io import FrameSelection


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(items, "SandboxedDecoder", InProcessDecoder)


@pytest.fixture
def mp4(tmp_path):
    """Return a video of 25 frames per second, with a keyframe at the start only."""
    path = tmp_path / "videos" / "a.mp4"
    video = footage(0, 1).repeat(60, 0)
    video[:, :8, :8] = 4 * np.arange(60)[:, None, None, None]
    make_mp4(path, fps=25, video=video)
    return path


def records(item, tmp_path, frames=1):
    shape = ClipFormat(FrameSelection(frames), (24, 32), True)
    return list(ItemReader(shape, str(tmp_path / "cache")).records(item))


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_line_of_a_manifest_is_the_frames_between_its_times(mp4, tmp_path):
    path = write_rows(
        tmp_path / "set.jsonl",
        {"file": "videos/a.mp4", "start": 1.32, "end": 2.12, "caption": "one",
         "label": "cat", "scores": {"aesthetic": 5.5}},
        {"file": str(mp4), "captions": ["two", "three"], "label": "ape",
         "scores": {"motion": 1}, "unknown": [1]},
    )  # fmt: skip
    found = prepare_items.jsonl_items(path, 0.0)
    assert found.label_vocabulary == ["ape", "cat"]
    assert found.scores == ["aesthetic", "motion"] and not found.validation
    first, second = found.train
    assert first.captions == ("one",) and second.captions == ("two", "three")
    assert (first.label, second.label) == (1, 0)
    np.testing.assert_equal((*first.scores, *second.scores), (5.5, np.nan, np.nan, 1))
    made = records(first, tmp_path)
    numbers = [int(record.frame_numbers[0]) for record in made]
    assert numbers == [*range(33, 53)]
    for record in made:
        shown = record.video[:, 1:4, 1:4].mean() / 4
        assert abs(shown - record.frame_numbers[0]) < 0.5
        np.testing.assert_allclose(record.times, record.frame_numbers / 25)
    assert len(records(second, tmp_path)) == 60


def test_every_start_of_a_segment_is_in_one_record(mp4, tmp_path):
    item = items.Item("a", str(mp4), seconds=(0.4, 2.0))
    made = records(item, tmp_path, frames=8)
    starts = [n for record in made for n in record.frame_numbers[:-7].tolist()]
    assert starts == [*range(10, 43)]


def test_files_that_are_missing_are_dropped_by_name(mp4, tmp_path):
    rows = [{"file": "videos/a.mp4"}, {"file": "videos/b.mp4"}]
    found = prepare_items.jsonl_items(write_rows(tmp_path / "set.jsonl", *rows), 0.0)
    assert found.dropped == [("videos/b.mp4", "no such file")] and len(found) == 2


def test_all_lines_of_a_file_are_in_the_same_part(mp4, tmp_path):
    for name in "bcdefgh":
        (mp4.parent / f"{name}.mp4").write_bytes(b"")
    rows = [
        {"file": f"videos/{name}.mp4", "start": start, "end": start + 1}
        for start in range(2)
        for name in "abcdefgh"
    ]
    found = prepare_items.jsonl_items(write_rows(tmp_path / "set.jsonl", *rows), 0.3)
    train, held_out = (
        {item.name for item in p} for p in (found.train, found.validation)
    )
    assert len(train) + len(held_out) == 8 and held_out and not train & held_out


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ('{"caption": "x"}', "each line is"),
        ('{"file": "a", "start": 2, "end": 1}', "start 2 is not below end 1"),
        ('{"file": "a", "start": "x"}', "start and end are seconds"),
        ('{"file": "a", "captions": [1]}', "captions are texts"),
        ('{"file": "a", "label": 1.5}', "a label is a text or a whole number"),
        ('{"file": "a", "scores": {"x": "y"}}', "scores are numbers"),
        ('{"file": "a", "caption": "\\u0000"}', "a text contains a NUL"),
        ('{"file": "a"}', "nothing in it can be used; a: no such file"),
    ],
)
def test_a_line_that_is_no_item_stops_with_its_number(line, message, tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(UserError, match=message) as caught:
        prepare_items.jsonl_items(path, 0.0)
    assert "line 2" in str(caught.value) or "nothing" in message


# --- tars ----------------------------------------------------------------------------


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(seed=0):
    file = io.BytesIO()
    Image.fromarray(footage(seed, 1)[0]).save(file, "png")
    return file.getvalue()


def test_a_sample_of_a_tar_is_its_files_of_one_key(mp4, tmp_path):
    write_tar(
        tmp_path / "b.tar",
        {"1.cls": b"10", "1.mp4": mp4.read_bytes(), "1.txt": b"one\ntwo\n"},
    )
    write_tar(
        tmp_path / "a.tar",
        {
            "v1.5/0.PNG": png(0),
            "v1.5/0.json": b'{"caption": "three", "scores": {"x": 2}}',
            "v1.5/1.png": png(1), "v1.5/1.cls": b"9",
        },
    )  # fmt: skip
    found = prepare_items.tar_items(tmp_path, tars.find(tmp_path), 0.0)
    assert [item.name for item in found.train] == [
        "a.tar/v1.5/0.PNG", "a.tar/v1.5/1.png", "b.tar/1.mp4"
    ]  # fmt: skip
    assert [item.captions for item in found.train] == [("three",), (), ("one", "two")]
    assert found.label_vocabulary == ["9", "10"]  # in the order of numbers
    assert [item.label for item in found.train] == [-1, 0, 1]
    assert found.scores == ["x"] and not found.dropped
    for seed, item in enumerate(found.train[:2]):
        (record,) = records(item, tmp_path)
        np.testing.assert_array_equal(record.video, footage(seed, 1))
        assert not record.times.size
    video = records(found.train[2], tmp_path, frames=60)[0]
    raw = records(items.Item("", str(mp4)), tmp_path, frames=60)[0]
    np.testing.assert_array_equal(video.video, raw.video)


def test_names_are_split_at_the_first_dot_of_the_base_name():
    assert tars.split("22.0/1.1.png") == ("22.0/1", "1.png")
    assert tars.split("Track 2.0 (x).mp4") == ("Track 2", "0 (x).mp4")
    assert tars.split("a/b.MP4") == ("a/b", "mp4")


def test_fields_that_are_not_known_are_named(tmp_path, capsys):
    path = write_tar(
        tmp_path / "a.tar",
        {"22.0/1.1.png": png(), "Track 2.0 (x).mp4": b"x", "3.png": png(),
         "3.seg.png": png(), "4.txt": b"no media"},
    )  # fmt: skip
    samples, bad = tars.read(path)
    assert [sample.name for sample in samples] == ["3.png"]
    assert [name for name, _ in bad] == ["22.0/1", "Track 2"]
    assert all("no video or picture among" in reason for _, reason in bad)
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 files of other fields" in line and "a.tar" in line


@pytest.mark.parametrize("kind", ["in a file", "in a header", "at a border", "damaged"])
def test_the_readable_part_of_a_tar_that_is_cut_short_is_used(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(5)})
    with tarfile.open(path) as tar:
        member = tar.getmembers()[3]
    content = path.read_bytes()
    end = {"in a file": member.offset_data + 20, "in a header": member.offset + 200}
    if kind == "damaged":
        content = bytearray(content)
        content[member.offset + 150] ^= 1
    else:
        content = content[: end.get(kind, member.offset)]
    path.write_bytes(content)
    samples, ((name, reason),) = tars.read(path)
    assert len(samples) == 3 and not name
    assert "cut short" in reason and "after 3 samples" in reason
    found = prepare_items.tar_items(path, [path], 0.0)
    assert found.dropped[0][0] == "a.tar" and len(found) == 4


def test_what_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="nothing in it can be used; a.tar: "):
        prepare_items.tar_items(tmp_path, tars.find(tmp_path), 0.0)
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.mp4"))
    assert tars.read(tmp_path / "b.tar")[1][0][0] == ""


def test_texts_of_a_sample_that_cannot_be_read_drop_it(tmp_path):
    for text in ({"1.json": b"{"}, {"1.txt": b"\xff"}, {"1.json": b"[]"}):
        path = write_tar(tmp_path / "a.tar", {"1.png": png()} | text)
        samples, ((name, _),) = tars.read(path)
        assert not samples and name == "1.png"
