"""Prepared folders: vdm_jax/data/prepare.py, prepared.py and vdm_jax/clip_shards."""

import hashlib
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data import numbered, tasks
from tests.data.folders import InProcessDecoder, footage, make_frames, make_mp4, number
from tests.run_command import ROOT
from vdm_jax import data, video_io
from vdm_jax.clip_shards import engines, items, shard
from vdm_jax.data import __main__ as command
from vdm_jax.data import pipeline, prepare_items, prepared, tfds_files
from vdm_jax.data import prepare as prepare_command
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError

SIZE = ("--num_frames=4", "--height=16", "--width=16")
NO_RATE = ("--fps=0",)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    for module in (items, prepare_items):
        monkeypatch.setattr(module, "SandboxedDecoder", InProcessDecoder)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six files of two labels, one of them frames, one longer, and a broken one."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(5):
        make_mp4(root / "ab"[i % 2] / f"{i}.mp4", seed=i, frames=12 + 4 * i)
    make_frames(root / "b" / "frames", seed=9)
    (root / "a" / "0.txt").write_text("one\ntwo\n")
    (root / "a" / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture
def prepare(tmp_path):
    """Return a function that runs the command in this process."""

    def run(source, out="out", *flags, status=0):
        cache = f"--cache_dir={tmp_path / 'cache'}"
        words = [str(source), f"--out={tmp_path / out}", *SIZE, cache, "--workers=0"]
        words += [] if any(f.startswith("--fps") for f in flags) else NO_RATE
        assert command.main(["prepare", *words, *flags]) == status
        return tmp_path / out

    return run


def config(path, source="tfds", frames=4, size=16, width=0, batch_size=3, **changes):
    made = numbered.config(
        source=source, path=str(path), batch_size=batch_size, validation_fraction=0.1,
        cache_dir=str(path.parent / "cache"), cache_gib=0.01, tfds_name="", caption="",
        edited_caption="", latents_dir="", **changes,
    ).unlock()  # fmt: skip
    made.video.update(frames=frames, height=size, width=width or size)
    return made


def tree(folder):
    """Return the bytes of every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "changes",
    [{}, {"crop": "random", "joint_image_frames": 2}, {"stride": 1, "flip": True}],
)
def test_batches_are_those_of_the_folder_bit_for_bit(videos, prepare, changes):
    crop = f"--config.data.crop={changes.get('crop', 'center')}"
    out = prepare(videos, "out", crop, "--shards=3")
    raw = config(videos, "folder", **changes)
    made = config(out, **changes)
    raw.data.cache_dir = made.data.cache_dir
    first, second = data.open_source(raw), data.open_source(made)
    assert first.label_vocabulary == second.label_vocabulary == (("a", "b"),)
    for held_out in (False, True):
        part, again = first.split(held_out), second.split(held_out)
        assert len(part) == len(again) > 0
    numbered.assert_same(
        numbered.take(pipeline.train_batches(raw, first), 12),
        numbered.take(pipeline.train_batches(made, second), 12),
    )
    a, b = (pipeline.held_out_batch(c, s, 2) for c, s in ((raw, first), (made, second)))
    numbered.assert_same([a], [b])


def test_tfds_reads_the_folder_without_tensorflow(videos, prepare):
    out = prepare(videos)
    code = """
import json, sys
import tensorflow_datasets as tfds
splits = tfds.builder_from_directory(sys.argv[1]).as_data_source()
rows = {name: [dict(file=r["file"].decode(), label=int(r["label"]),
                    captions=[c.decode() for c in r["captions"]],
                    frames=r["frame_numbers"].tolist(), times=r["times"].tolist(),
                    shape=r["video"].shape, first=r["video"][0].tolist())
               for r in split] for name, split in splits.items()}
print(json.dumps([rows, "tensorflow" in sys.modules]))
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(out)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    splits, tensorflow = json.loads(answer.stdout.splitlines()[-1])
    assert not tensorflow
    result = prepared.read_manifest(out)["result"]
    assert result["clips"] == {name: len(rows) for name, rows in splits.items()}
    rows = splits["train"] + splits["validation"]
    for row in rows:
        assert row["label"] == "ab".index(row["file"][0])
        assert row["captions"] == (["one", "two"] if "0.mp4" in row["file"] else [])
        assert row["shape"] == [len(row["frames"]), 16, 16, 3]
        first = row["frames"][0]
        assert row["frames"] == [*range(first, first + len(row["frames"]))]
        if "mp4" in row["file"]:  # of 8 frames per second
            np.testing.assert_allclose(row["times"], np.array(row["frames"]) / 8)
            pixels = np.array(row["first"], np.uint8)
            centre = video_io.read_frames(
                video_io.probe(videos / row["file"]), [first], (16, 16)
            )
            expected = video_io.crop(centre, (16, 16))[0]
            np.testing.assert_array_equal(pixels, expected)
    starts = {(row["file"], f) for row in rows for f in row["frames"][:-3]}
    assert {f for name, f in starts if name == "a/4.mp4"} == set(range(25))


def test_frames_are_those_nearest_to_the_rate(tmp_path, prepare):
    """Of 24 frames per second, 8 are kept: every third; of 16 frames of a record."""
    for i in range(2):
        make_mp4(tmp_path / "videos" / f"{i}.mp4", i, 40, fps=24, video=slow(40))
    out = prepare(tmp_path / "videos", "out", "--fps=8", "--height=24", "--width=32")
    made = config(out, target_fps=8.0, size=24, width=32)
    source = data.open_source(made)
    for index in range(len(source)):
        clip = source.load(index, np.random.default_rng(index), 4)["video"]
        found = number(clip)
        np.testing.assert_array_equal(np.diff(found), 3)
    made.data.target_fps = 0.0
    with pytest.raises(UserError, match="target_fps=8.0, not config.data.target_fps=0"):
        data.open_source(made)


def slow(frames):
    """Return grey frames that show their number."""
    video = footage(0, 1).repeat(frames, 0)
    video[:, :8, :8] = 6 * np.arange(frames)[:, None, None, None]
    return video


def test_a_short_side_leaves_size_and_crop_to_training(videos, prepare):
    out = prepare(videos, "out", "--short_side=20")
    source = data.open_source(config(out, size=16, crop="random"))
    _, record = source.parts[0].read(0)
    stored, *_ = tfds_files.read_example("", record, source.layout, "video")
    assert stored.shape[1:3] == (20, 27)  # of 24 x 32
    rng = np.random.default_rng(0)
    assert source.load(0, rng, 4)["video"].shape == (4, 16, 16, 3)
    with pytest.raises(
        UserError, match="clips of 20 or less, not of config.video's 24"
    ):
        data.open_source(config(out, size=24))


def test_shards_are_parts_of_one_permutation_and_the_order_undoes_it(videos, prepare):
    outs = [
        prepare(videos, f"out{s}", "--shards=4", f"--config.seed={s}") for s in (0, 1)
    ]
    made = []
    for out in outs:
        summaries = [
            json.loads(p.read_text()) for p in sorted(out.glob("shards/train*"))
        ]
        shards = [[*dict.fromkeys(summary["items"])] for summary in summaries]
        sizes = [*map(len, shards)]
        assert len(sizes) == 4 and max(sizes) - min(sizes) <= 1
        assert sorted(sum(shards, [])) == [*range(5)]
        made.append(shards)
    assert made[0] != made[1]
    first, second = (data.open_source(config(out)) for out in outs)
    for index in range(len(first)):
        a, b = (s.load(index, np.random.default_rng(0), 4) for s in (first, second))
        np.testing.assert_array_equal(a["video"], b["video"])


def test_what_was_dropped_and_the_statistics_are_recorded(videos, prepare):
    out = prepare(videos)
    (dropped,) = map(json.loads, (out / "dropped.jsonl").read_text().splitlines())
    assert dropped["file"] == "a/broken.mp4" and "not a video" in dropped["reason"]
    pixels = []
    for held_out in (False, True):
        part = data.open_source(config(out)).split(held_out)
        for index in range(len(part)):
            _, record = part.parts[held_out].read(index)
            example = tfds_files.messages.Example.FromString(record)
            content = example.features.feature["video/value"].bytes_list.value[0]
            pixels.append(np.frombuffer(content, np.uint8))
    values = np.concatenate(pixels) / 127.5 - 1
    result = prepared.read_manifest(out)["result"]
    np.testing.assert_allclose(
        [result["mean"], result["variance"]], [values.mean(), values.var()], rtol=1e-6
    )
    for line in (out / "SHA256SUMS").read_text().splitlines():
        sha256, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    assert (out / "contact_sheet.png").stat().st_size


def test_the_bytes_of_a_record_do_not_depend_on_the_process(videos, prepare):
    """A map of protobuf is in the order of its keys, or in that of a process."""
    part = data.open_source(config(prepare(videos))).parts[0]
    for index in range(len(part.index)):
        _, record = part.read(index)
        example = tfds_files.messages.Example.FromString(record)
        assert example.SerializeToString(deterministic=True) == record
        names = sorted(example.features.feature)
        places = [record.index(b"\n" + bytes([len(n)]) + n.encode()) for n in names]
        assert places == sorted(places)


def test_the_source_can_be_pickled_and_nothing_may_be_held_out(videos, prepare):
    out = prepare(videos, "out", "--validation_fraction=0")
    made = config(out)
    made.data.validation_fraction = 0.0
    source = pickle.loads(pickle.dumps(data.open_source(made)))
    assert len(source) and not len(source.split(True))
    assert source.load(0, np.random.default_rng(0), 1)["video"].shape == (1, 16, 16, 3)


def test_jpeg_frames_are_close_to_the_raw_ones(tmp_path, prepare):
    for i in range(3):
        make_mp4(tmp_path / "videos" / f"{i}.mp4", i, video=smooth())
    words = "--height=24", "--width=32"
    pair = [
        data.open_source(
            config(
                prepare(tmp_path / "videos", kind, *words, f"--encoding={kind}"),
                size=24,
                width=32,
            )  # fmt: skip
        )
        for kind in ("raw", "jpeg")
    ]
    for index in range(len(pair[0])):
        rngs = [np.random.default_rng(index) for _ in pair]
        a, b = (s.load(index, r, 4)["video"] for s, r in zip(pair, rngs, strict=True))
        error = np.mean((a.astype(float) - b) ** 2)
        assert 0 < error < 255**2 / 10**3.5  # 35 dB


def smooth():
    """Return frames of gradients that move."""
    at = np.arange(12)[:, None, None, None] * 4
    y, x = np.mgrid[:24, :32]
    return (60 + 3 * np.stack([y, x, (x + y) // 2], -1) + at).astype(np.uint8)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_data_set_of_tfds_is_prepared_again(
    tfds_folder, prepare, by_name, monkeypatch
):
    from tests.data.tfds_datasets import CLIPS

    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    source = "images" if by_name else tfds_folder / "images" / "1.0.0"
    out = prepare(source, "out", "--height=8", "--width=12", "--shards=2")
    made = config(out, size=8, width=12)
    opened = data.open_source(made)
    assert opened.label_vocabulary == (("ape", "bee", "cat"),) and not opened.flip
    found = set()
    for held_out in (False, True):
        part = opened.split(held_out)
        for index in range(len(part)):
            clip = part.load(index, np.random.default_rng(0), 1)
            number = int(clip["caption"].removeprefix("clip "))
            assert clip["label"].tolist() == [number % 3]
            assert any((frame == clip["video"][0]).all() for frame in CLIPS[number])
            found.add(number)
    assert found == set(range(9))


def test_a_full_disk_is_one_line_and_the_same_command_continues(
    tmp_path, prepare, capsys
):
    for i in range(4):
        make_mp4(tmp_path / "videos" / f"{i}.mp4", i, 40)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        out = prepare(tmp_path / "videos", status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not be written (file too large" in line and "run again" in line
    assert not list(out.glob("clips-*"))
    again = prepare(tmp_path / "videos")
    assert tree(again) == tree(prepare(tmp_path / "videos", "whole"))


# --- stops, damage, bad input --------------------------------------------------------


class Killed(BaseException):
    """A kill: nothing after it runs, so temporary files stay."""


@pytest.fixture
def kill_at(monkeypatch):
    """Return a function: the n-th rename of a file is a kill. None: it never is."""
    replace, unlink = os.replace, Path.unlink
    state = {"left": None}

    def killed_replace(source, target):
        if state["left"] is not None:
            state["left"] -= 1
            if state["left"] < 0:
                raise Killed
        replace(source, target)

    def kept_unlink(path, missing_ok=False):
        if state["left"] is None or state["left"] >= 0:
            unlink(path, missing_ok)

    monkeypatch.setattr(os, "replace", killed_replace)
    monkeypatch.setattr(Path, "unlink", kept_unlink)
    return lambda number: state.update(left=number)


def test_a_kill_between_any_two_steps_is_completed_to_the_same_bytes(
    videos, prepare, kill_at
):
    expected = tree(prepare(videos, "whole", "--shards=2"))
    stops = 0
    for step in range(100):
        kill_at(step)
        try:
            out = prepare(videos, f"out{step}", "--shards=2")
        except Killed:
            stops += 1
        else:
            break
        kill_at(None)
        out = prepare(videos, f"out{step}", "--shards=2")
        assert tree(out) == expected
    # manifest; 2 + 1 shards, and what is in each; 4 descriptions; manifest; sheet
    assert stops == 1 + 2 * 3 + 4 + 1 + 1


def test_the_same_command_makes_only_what_is_missing_or_damaged(
    videos, prepare, monkeypatch
):
    out = prepare(videos)
    expected = tree(out)
    shards = sorted(out.glob("clips-*"))
    damages = {
        "flipped": lambda path: flip(path, 200),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:1000]),
        "gone": lambda path: path.unlink(),
    }
    for path, damage in zip(shards, damages.values(), strict=False):
        damage(path)
    (out / "shards" / "validation-00000.json").write_text("{")
    times = {path: path.stat().st_mtime_ns for path in shards if path.exists()}
    assert tree(prepare(videos)) == expected
    again = [path for path in shards if path.stat().st_mtime_ns != times.get(path)]
    assert again == [*shards[:3], out / shards[-1].name]
    monkeypatch.setattr(shard, "_Writer", None)  # nothing is decoded
    assert tree(prepare(videos)) == expected


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_shard_is_named_in_training_and_a_cut_one_at_its_start(
    videos, prepare
):
    out = prepare(videos, "out", "--shards=1")
    source = data.open_source(config(out))
    path = next(out.glob("clips-train*"))
    flip(path, 3000)
    bad = []
    for index in range(len(source)):
        try:
            source.load(index, np.random.default_rng(0), 4)
        except BadClip as error:
            bad.append(str(error))
    assert len(bad) == 1 and path.name in bad[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="out is damaged .* completes it"):
        data.open_source(config(out))


def test_bad_input_is_one_line(videos, prepare, tmp_path, capsys):
    out = prepare(videos)

    def refused(message, *words):
        capsys.readouterr()
        prepare(*words, status=2)
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line), line

    refused("another video, .4, 16, 16. and not .4, 24, 24.", videos, "out",
            "--height=24", "--width=24")  # fmt: skip
    refused("another seed, 0 and not 1", videos, "out", "--config.seed=1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused("has other files .notes.txt.: give a new folder", videos, "other")
    refused("at most 5 shards", videos, "few", "--shards=6")
    refused("1 of 7 files cannot be used, more than", videos, "few",
            "--max_bad_fraction=0.1")  # fmt: skip
    refused("does not exist", tmp_path / "absent", "few")
    with prepare_command.locked(out):
        refused("another command is writing", videos, "out")
    manifest = prepared.read_manifest(out)
    del manifest["result"]
    (out / prepared.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not complete: the same command"):
        data.open_source(config(out))


def test_a_folder_must_fit_the_config(videos, prepare):
    out = prepare(videos)
    for message, made in {
        "clips of 16x16, not of config.video's 24x24": config(out, size=24),
        "clips of 4 frames, fewer than config.video.frames=5": config(out, frames=5),
        "data.stride=1, not config.data.stride=2": config(out, stride=2),
        "cropped to their center": config(out, crop="random"),
    }.items():
        with pytest.raises(UserError, match=message):
            data.open_source(made)
    shorter = data.open_source(config(out, frames=2))
    assert shorter.load(0, np.random.default_rng(0), 2)["video"].shape[0] == 2


# --- engines -------------------------------------------------------------------------


def test_workers_have_no_jax_and_results_come_in_any_order():
    engine = engines.LocalProcesses(2)
    for modules in engine.map(tasks.modules_of_a_writer, range(2)):
        assert "tensorflow_datasets" in modules
        assert not {"jax", "grain", "tensorflow"} & modules
    assert {*engine.map(abs, [-3, 1, 2])} == {1, 2, 3}


def test_an_error_of_a_task_is_raised_and_a_killed_worker_is_one_line():
    engine = engines.LocalProcesses(2)
    with pytest.raises(ValueError, match="invalid literal"):
        list(engine.map(int, ["x", "1"]))
    with pytest.raises(UserError, match="a worker process was killed"):
        list(engine.map(tasks.end_by_a_signal, [0, 1]))


@pytest.mark.slow
def test_kills_of_the_command_are_completed_to_the_same_bytes(videos, tmp_path):
    """Its workers end with it, wherever it is killed."""

    def start(out):
        words = [sys.executable, "-m", "vdm_jax.data", "prepare", str(videos), *SIZE,
                 *NO_RATE, f"--out={tmp_path / out}", "--workers=2"]  # fmt: skip
        return subprocess.Popen(words, stderr=subprocess.DEVNULL, cwd=ROOT)

    assert start("whole").wait() == 0
    expected = tree(tmp_path / "whole")
    for _ in range(100):
        process = start("out")
        found = len([*(tmp_path / "out").glob("shards/*.json")])
        while process.poll() is None and found == len(
            [*(tmp_path / "out").glob("shards/*.json")]
        ):
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    assert tree(tmp_path / "out") == expected
