"""features.json of TFDS: vdm_jax/data/tfds_files.py."""

import json
import re
import shutil
import sys

import pytest

from tests.data.tfds_datasets import (
    CLIPS,
    F,
    change_features,
    config,
    find_clip,
    load_all,
    write,
)
from vdm_jax.data import tfds
from vdm_jax.errors import UserError


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
