"""Directories, splits, features and records of TFDS: vdm_jax/data/tfds_files.py."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from tests.data.tfds_datasets import (
    CLIPS,
    STORAGES,
    TENSOR,
    F,
    change_features,
    config,
    find_clip,
    load_all,
    write,
)
from vdm_jax.data import tfds, tfds_files
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError


def test_a_test_split_is_the_held_out_part(tfds_folder):
    source = tfds.open_tfds(config(tfds_folder, "raw"))
    assert (len(source), len(source.split(True))) == (9, 3)
    assert source.split(True).names == ("raw-test.array_record-00000-of-00001",)


@pytest.mark.parametrize(
    "fraction, num_held_out", [(0.25, 2), (0.5, 4), (0.0, 0), (0.9, 4)]
)
def test_without_a_test_split_every_kth_record_is_held_out(
    tfds_folder, fraction, num_held_out
):
    source = tfds.open_tfds(config(tfds_folder, "images", validation_fraction=fraction))
    parts = [
        {clip["caption"] for clip in load_all(source.split(part))}
        for part in (False, True)
    ]
    assert len(parts[1]) == num_held_out and not parts[0] & parts[1]
    assert parts[0] | parts[1] == {f"clip {i}" for i in range(9)}


def test_a_flipped_byte_is_a_bad_clip_with_shard_and_record(tmp_path):
    video, _ = STORAGES["bytes"]
    features = F.FeaturesDict({"video": video})
    directory = write(
        tmp_path, "three", features, lambda i: {"video": CLIPS[i]}, shards=3
    )
    made = config(tmp_path, "three", validation_fraction=0.0)
    whole, pixels = load_all(tfds.open_tfds(made)), CLIPS[0].tobytes()
    (shard,) = [p for p in sorted(directory.iterdir()) if pixels in p.read_bytes()]
    records = list(ArrayRecordDataSource(str(shard)))
    (place,) = [i for i, record in enumerate(records) if pixels in record]
    content = bytearray(shard.read_bytes())
    content[content.index(pixels) + 20] ^= 1
    shard.write_bytes(bytes(content))

    source = tfds.open_tfds(made)
    bad = []
    for index in range(9):
        try:
            clip = source.load(index, np.random.default_rng((0, index)), 4)
            np.testing.assert_array_equal(clip["video"], whole[index]["video"])
        except BadClip as error:
            bad.append(error)
            assert find_clip(whole[index]["video"], CLIPS[0]) is not None
    assert [error.name for error in bad] == [f"{shard.name} record {place}"]
    assert "hash mismatch" in bad[0].reason


CHANGES = {
    "no features": lambda d: (d / "features.json").unlink(),
    "garbage info": lambda d: (d / "dataset_info.json").write_bytes(b"\x00\xff{"),
    "garbage features": lambda d: (d / "features.json").write_text("[1, 2"),
    "other json": lambda d: (d / "features.json").write_text('{"a": 1}'),
    "no shard": lambda d: (d / "raw-train.array_record-00000-of-00001").unlink(),
    "empty shard": lambda d: (d / "raw-train.array_record-00000-of-00001").write_bytes(
        b""
    ),
    "half a shard": lambda d: truncate(d / "raw-train.array_record-00000-of-00001"),
    "wrong count": lambda d: change_info(d, lambda s: s.update(shardLengths=["8"])),
    "no split": lambda d: change_info(d, None),
}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_info(directory, change):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    if change is None:
        info["splits"] = []
    else:
        change(next(s for s in info["splits"] if s["name"] == "train"))
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("damage", CHANGES)
def test_corrupt_metadata_are_a_user_error(tfds_folder, tmp_path, damage):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    CHANGES[damage](directory)
    with pytest.raises(UserError) as caught:
        tfds.open_tfds(config(tmp_path, "raw"))
    assert "\n" not in str(caught.value)


def test_other_formats_are_reported_with_the_command(tfds_folder, tmp_path):
    write(tmp_path, "table", F.FeaturesDict({"video": TENSOR}),
          lambda i: {"video": CLIPS[i]}, file_format="parquet")  # fmt: skip
    with pytest.raises(UserError, match="parquet format.*--file_format=array_record"):
        tfds.open_tfds(config(tmp_path, "table"))


@pytest.mark.parametrize("name", ["", "../x", "a b", "raw:1", "raw@", "a/b/c"])
def test_invalid_names_are_rejected(tmp_path, name):
    with pytest.raises(UserError, match=r"NAME\[/CONFIG\]"):
        tfds.open_tfds(config(tmp_path, name))


def test_a_missing_data_set_is_reported_with_the_command(
    tfds_folder, tmp_path, monkeypatch
):
    for name in ("ucf101", "moving_mnist", "bair_robot_pushing_small"):
        message = f"no prepared data set {name} .*needs tensorflow.*tfds build {name} "
        with pytest.raises(UserError, match=message):
            tfds.open_tfds(config(tmp_path, name))
    message = r"no prepared data set raw:2.0.0 .*it has raw/1.0.0"
    with pytest.raises(UserError, match=message):
        tfds.open_tfds(config(tfds_folder, "raw:2.0.0"))
    assert len(tfds.open_tfds(config(tfds_folder, "raw:1.0.0@video"))) == 9
    with pytest.raises(UserError, match="add one of @video"):
        tfds.open_tfds(config(tfds_folder, "raw@film"))
    with pytest.raises(UserError, match="target_fps: examples of TFDS have no frame"):
        tfds.open_tfds(config(tfds_folder, "raw", target_fps=8.0))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    assert len(tfds.open_tfds(config("", "raw"))) == 9


def test_configs_and_versions_are_folders(tfds_folder, tmp_path):
    """The newest version is chosen by number; a config must be chosen by the user."""
    for version in ("1.0.0", "1.2.0", "1.10.0"):
        shutil.copytree(
            tfds_folder / "raw" / "1.0.0", tmp_path / "many" / "big" / version
        )
    with pytest.raises(UserError, match="it has many/big/1.0.0 many/big/1.10"):
        tfds_files.find_dataset("many", str(tmp_path))
    assert tfds_files.find_dataset("many/big", str(tmp_path)) == (
        tmp_path / "many/big/1.10.0",
        "",
    )
    assert tfds_files.find_dataset("many/big:1.2.0", str(tmp_path))[0].name == "1.2.0"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("features.json", "[" * 100_000),
        ("features.json", '{"sequence": {"feature": ' * 3000 + "{}" + "}}" * 3000),
        ("features.json", "[]"),
        ("dataset_info.json", "null"),
        ("dataset_info.json", "1" * 5000),
    ],
)
def test_invalid_json_is_a_user_error(tfds_folder, tmp_path, file, text):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    (directory / file).write_text(text)
    with pytest.raises(UserError, match="cannot be read|is the video. add one of none"):
        tfds.open_tfds(config(tmp_path, "raw"))


def set_split(value):
    return lambda info, features: info["splits"].__setitem__(0, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda info, features: info.update(name=None),
        lambda info, features: info.update(name="a\0b"),
        set_split([]),
        set_split({}),
        lambda info, features: features.update(featuresDict="\ud800"),
        lambda info, features: features["featuresDict"].update(features="\ud800"),
        lambda info, features: features["featuresDict"]["features"]["video"].update(
            tensor=[]
        ),
    ],
)
def test_invalid_values_are_a_user_error(tfds_folder, tmp_path, change):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    paths = [directory / "dataset_info.json", directory / "features.json"]
    contents = [json.loads(path.read_text()) for path in paths]
    change(*contents)
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(
        UserError,
        match="cannot be read .*prepare the data set again|add one of none",
    ) as caught:
        tfds.open_tfds(config(tmp_path, "raw"))
    assert "\n" not in str(caught.value)


def as_video_feature(directory):
    """Rewrite features.json as tfds.features.Video would write it.

    Video is stored as Sequence(Image): the records have the same bytes.
    """
    path = directory / "features.json"
    content = json.loads(path.read_text())
    image = content["featuresDict"]["features"]["video"]["sequence"]["feature"]["image"]
    content["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {
            "shape": {"dimensions": ["-1", *image["shape"]["dimensions"]]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    path.write_text(json.dumps(content))


def test_a_video_feature_is_read_without_tensorflow(tfds_folder, tmp_path):
    """TFDS cannot construct the class without tensorflow."""
    copy = tmp_path / "images" / "1.0.0"
    shutil.copytree(tfds_folder / "images" / "1.0.0", copy)
    as_video_feature(copy)
    for clip in load_all(
        tfds.open_tfds(config(tmp_path, "images", validation_fraction=0.0))
    ):
        index = int(clip["caption"][5:])
        assert find_clip(clip["video"], CLIPS[index]) is not None


def test_a_data_set_without_video_is_rejected(tmp_path):
    write(
        tmp_path, "words", F.FeaturesDict({"text": F.Text()}), lambda i: {"text": "a"}
    )
    with pytest.raises(UserError, match="is the video. add one of none"):
        tfds.open_tfds(config(tmp_path, "words"))


def rename_classes(directory, name):
    """Let every feature name a class of a user."""
    path = directory / "features.json"
    text = json.dumps(json.loads(path.read_text()))  # without spaces to be matched
    path.write_text(
        re.sub(r'"pythonClassName": "[^"]*"', f'"pythonClassName": {name}', text)
    )


@pytest.mark.parametrize("name", ["evil.Image", "evil.", "evil", "", "os.path"])
def test_classes_named_in_features_json_are_not_imported(
    tfds_folder, tmp_path, monkeypatch, name
):
    """Not from the data folder, the current folder, or any other place."""
    directory = tmp_path / "images" / "1.0.0"
    shutil.copytree(tfds_folder / "images" / "1.0.0", directory)
    rename_classes(directory, json.dumps(name))
    for place in (tmp_path, directory):
        (place / "evil.py").write_text("raise SystemExit('code of the data has run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = tfds.open_tfds(config(tmp_path, "images", validation_fraction=0.0))
    assert len(load_all(source)) == 9 and "evil" not in sys.modules
    assert source.label_vocabulary == (("ape", "bee", "cat"),)


def test_features_of_unknown_content_are_left_out(tfds_folder, tmp_path, monkeypatch):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    path = directory / "features.json"
    content = json.loads(path.read_text())
    custom = {"pythonClassName": "evil.Graph", "jsonFeature": {"json": "{}"}}
    nested = {"pythonClassName": "x.S", "sequence": {"feature": custom, "length": "-1"}}
    content["featuresDict"]["features"] |= {"graph": custom, "graphs": nested}
    path.write_text(json.dumps(content))
    source = tfds.open_tfds(config(tmp_path, "raw"))
    assert len(load_all(source)) == 9
    path.write_text(json.dumps(custom))
    with pytest.raises(UserError, match="is the video. add one of none"):
        tfds.open_tfds(config(tmp_path, "raw"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "label has 3 values, label.labels.txt 0 different names in 0 lines"),
        (b"a\n", "1 different names in 1 lines"),
        (b"a\na\na\n", "1 different names in 3 lines"),
        (b"a\nb\nc\nd\n", "4 different names in 4 lines"),
        (b"\xff\xfe\xff", "not UTF-16 text"),
        (b"a\nb\n\xff\n", "not UTF-8 text"),
        (b"a\nb\nc\0\n", "a NUL"),
        (None, "Is a directory"),
    ],
)
def test_label_files_must_match_the_number_of_values(
    tfds_folder, tmp_path, content, message
):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    path = directory / "label.labels.txt"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"raw/1.0.0 cannot be read .*{message}"):
        tfds.open_tfds(config(tmp_path, "raw"))


def test_labels_without_a_file_are_numbers(tfds_folder, tmp_path):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    (directory / "label.labels.txt").unlink()
    source = tfds.open_tfds(config(tmp_path, "raw"))
    assert source.label_vocabulary == (("0", "1", "2"),)


@pytest.mark.parametrize("count", ["0", "-3", "1000000000000"])
def test_an_invalid_number_of_label_values_is_rejected(tfds_folder, tmp_path, count):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
    (directory / "label.labels.txt").unlink()
    change_features(
        directory, lambda f: f["label"]["classLabel"].update(numClasses=count)
    )
    with pytest.raises(UserError, match="label has"):
        tfds.open_tfds(config(tmp_path, "raw"))
