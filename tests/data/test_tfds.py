"""Data sets that TFDS itself writes here, without tensorflow, and damaged ones."""

import io
import json
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from ml_collections import ConfigDict
from PIL import Image

from vdm_jax import video_io
from vdm_jax.data import pipeline, tfds
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError

core = pytest.importorskip("tensorflow_datasets")
F = core.features

CLIPS = [  # lengths 6, 7, ...; sizes such that nothing needs to be resized
    np.random.default_rng(i).integers(0, 256, (6 + i, 8, 12, 3), np.uint8)
    for i in range(9)
]
TENSOR = F.Tensor(shape=(None, 8, 12, 3), dtype=np.uint8)
PICTURES = F.Sequence(F.Image(shape=(8, 12, 3), encoding_format="png"))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def pictures(clip):
    return [png(frame) for frame in clip]


def write(
    folder,
    name,
    features,
    make,
    splits=(("train", 9),),
    file_format="array_record",
    shards=1,
):
    """Lets TFDS prepare a data set; example i of every split is make(i)."""

    class Builder(core.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.core.Version("1.0.0")
        code_path = None  # nor checksums beside it

        def _info(self):
            return core.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                split: ((i, make(i)) for i in range(count)) for split, count in splits
            }

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    Builder(data_dir=folder, file_format=file_format).download_and_prepare(
        download_config=core.download.DownloadConfig(num_shards=shards)
    )
    return folder / name / "1.0.0"


def config(folder, name, frames=4, **changes):
    made = ConfigDict(
        {
            "seed": 0,
            "video": {"frames": frames, "height": 8, "width": 12, "channels": 3},
            "data": {
                "path": str(folder),
                "tfds_name": name,
                "batch_size": 2,
                "joint_image_frames": 0,
                "stride": 1,
                "target_fps": 0.0,
                "flip": False,
                "crop": "center",
                "workers": 0,
                "max_bad_fraction": 0.2,
                "mean": None,
                "variance": None,
                "validation_fraction": 0.25,
            },
        }
    )
    for field, value in changes.items():
        made["video" if field in made.video else "data"][field] = value
    return made.lock()


KINDS = {
    "raw": (TENSOR, lambda clip: clip),
    "bytes": (
        F.Tensor(shape=(None, 8, 12, 3), dtype=np.uint8, encoding="bytes"),
        lambda clip: clip,
    ),
    "pictures": (PICTURES, pictures),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One data set of each kind, and a test split in one of them."""
    root = tmp_path_factory.mktemp("tfds")
    label = F.ClassLabel(names=["ape", "bee", "cat"])
    for kind, (video, encode) in KINDS.items():
        write(
            root,
            kind,
            F.FeaturesDict({"video": video, "label": label, "caption": F.Text()}),
            lambda i, encode=encode: {
                "video": encode(CLIPS[i]),
                "label": i % 3,
                "caption": f"clip {i}",
            },
            splits=(("train", 9),) + ((("test", 3),) if kind == "raw" else ()),
        )
    return root


def load_all(source, frames=4, seed=0):
    rngs = (np.random.default_rng((seed, i)) for i in range(len(source)))
    return [source.load(i, rng, frames) for i, rng in enumerate(rngs)]


def window_of(video, clip, stride=1):
    """Where in a whole clip these frames are, or None."""
    span = (len(video) - 1) * stride + 1
    for start in range(len(clip) - span + 1):
        if (clip[start : start + span : stride] == video).all():
            return start
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_clips_labels_and_captions_are_those_that_were_written(folder, kind, stride):
    frames = 4 if stride == 1 else 3
    source = tfds.open_tfds(
        config(folder, kind, frames=frames, stride=stride, validation_fraction=0.0)
    )
    assert source.label_vocabulary == (("ape", "bee", "cat"),)
    seen = set()
    for clip in load_all(source, frames):
        index = int(clip["caption"].removeprefix("clip "))
        assert clip["label"].tolist() == [index % 3]
        assert window_of(clip["video"], CLIPS[index], stride) is not None
        assert clip["video"].dtype == np.uint8 and clip["label"].dtype == np.int32
        seen.add(index)
    assert seen == set(range(9))


def test_windows_and_single_frames_are_drawn_from_the_whole_clip(folder):
    source = tfds.open_tfds(config(folder, "raw", validation_fraction=0.0))
    clip = CLIPS[int(load_all(source)[0]["caption"][5:])]
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    starts = {window_of(source.load(0, rng, 4)["video"], clip) for rng in rngs}
    assert starts == set(range(len(clip) - 3))
    images = {window_of(source.load(0, rng, 1)["video"], clip) for rng in rngs}
    assert images == set(range(len(clip)))


@pytest.mark.parametrize("crop, places", [("center", {2}), ("random", set(range(5)))])
def test_a_clip_is_cropped_as_asked(folder, crop, places):
    """8 x 8 of 8 x 12, of clips as long as their record."""
    asked = config(folder, "raw", frames=6, width=8, crop=crop, validation_fraction=0.0)
    source = tfds.open_tfds(asked)
    at = [clip["caption"] for clip in load_all(source, 6)].index("clip 0")
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    videos = [source.load(at, rng, 6)["video"] for rng in rngs]
    found = [
        [i for i in range(5) if (video == CLIPS[0][:, :, i : i + 8]).all()]
        for video in videos
    ]
    assert {i for (i,) in found} == places


def test_every_caption_of_a_record_is_told(tmp_path):
    features = {"video": TENSOR, "captions": F.Sequence(F.Text())}
    example = {"video": CLIPS[0], "captions": ["one", "two", "three"]}
    write(tmp_path, "said", F.FeaturesDict(features), lambda i: example)
    source = tfds.open_tfds(config(tmp_path, "said"))
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    told = {source.load(0, rng, 4)["caption"] for rng in rngs}
    assert told == {"one", "two", "three"}


def test_a_test_split_is_the_held_out_part(folder):
    source = tfds.open_tfds(config(folder, "raw"))
    assert (len(source), len(source.split(True))) == (9, 3)
    assert source.split(True).names == ("raw-test.array_record-00000-of-00001",)


@pytest.mark.parametrize("share, held", [(0.25, 2), (0.5, 4), (0.0, 0), (0.9, 4)])
def test_without_one_every_kth_record_is_held_out(folder, share, held):
    source = tfds.open_tfds(config(folder, "pictures", validation_fraction=share))
    parts = [
        {clip["caption"] for clip in load_all(source.split(part))}
        for part in (False, True)
    ]
    assert len(parts[1]) == held and not parts[0] & parts[1]
    assert parts[0] | parts[1] == {f"clip {i}" for i in range(9)}


def test_the_pipeline_runs_with_workers_pickling(folder):
    made = config(folder, "pictures")
    source = tfds.open_tfds(made)
    again = pickle.loads(pickle.dumps(source))
    for a, b in zip(load_all(source), load_all(again), strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
    batches = pipeline.train_batches(made, source)
    batch = next(batches)
    batches.close()
    assert batch["video"].shape == (2, 4, 8, 12, 3)
    other = config(folder, "raw")
    assert pipeline.fingerprint(made, again) == pipeline.fingerprint(made, source)
    assert pipeline.fingerprint(made, tfds.open_tfds(other)) != pipeline.fingerprint(
        made, source
    )


def as_video_feature(directory):
    """Rewrites features.json to what tfds.features.Video would have put there.

    Video is Sequence(Image) with another name: records are the same bytes.
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


def test_a_video_feature_is_read_without_tensorflow(folder, tmp_path):
    """TFDS itself cannot: the class needs tensorflow."""
    copy = tmp_path / "pictures" / "1.0.0"
    shutil.copytree(folder / "pictures" / "1.0.0", copy)
    as_video_feature(copy)
    for clip in load_all(
        tfds.open_tfds(config(tmp_path, "pictures", validation_fraction=0.0))
    ):
        index = int(clip["caption"][5:])
        assert window_of(clip["video"], CLIPS[index]) is not None


def test_episodes_as_a_sequence_of_dicts(tmp_path):
    """As in bair_robot_pushing_small: two cameras and actions, no dict around."""
    step = {
        "image_aux": F.Image(shape=(8, 12, 3)),
        "image_main": F.Image(shape=(8, 12, 3)),
        "action": F.Tensor(shape=(2,), dtype=np.float32),
    }

    def make(i):
        return [
            {
                "image_aux": png(255 - frame),
                "image_main": png(frame),
                "action": np.zeros(2, np.float32),
            }
            for frame in CLIPS[i]
        ]

    write(tmp_path, "robot", F.Sequence(step), make, (("train", 3), ("test", 2)))
    with pytest.raises(UserError, match="add one of @image_aux, @image_main"):
        tfds.open_tfds(config(tmp_path, "robot"))
    source = tfds.open_tfds(config(tmp_path, "robot@image_main"))
    assert source.label_vocabulary == () and len(source) == 3
    for clip in load_all(source):
        assert any(window_of(clip["video"], whole) is not None for whole in CLIPS[:3])
        assert clip["caption"] == "" and "label" not in clip


def test_bytes_of_a_video_file(tmp_path):
    path = tmp_path / "a.mp4"
    video = np.zeros((9, 32, 48, 3), np.uint8)
    video[:, :, :24] = (np.arange(9) * 25)[:, None, None, None]
    video_io.write_video(path, video, 8)
    content = path.read_bytes()
    features = {"mp4": F.Text(), "video": F.Tensor(shape=(), dtype=np.object_)}
    write(
        tmp_path,
        "files",
        F.FeaturesDict(features),
        lambda i: {"mp4": content, "video": content},
    )
    source = tfds.open_tfds(config(tmp_path, "files"))
    assert set(source.layout.videos.values()) == {"file"} and source.path == ("video",)
    clip = source.load(0, np.random.default_rng(0), 4)["video"]
    source.guard.close()
    expected = video_io.read_clip(path, size=(8, 12)).astype(int)
    distances = [abs(expected[k : k + 4] - clip).max() for k in range(6)]
    assert clip.shape == (4, 8, 12, 3)
    assert sorted(distances)[0] < 4 < sorted(distances)[1]  # one of the six windows


def test_grey_tensors_and_grey_models(tmp_path):
    """As in moving_mnist: 20 frames of one channel, only a test split."""
    clips = [clip[:6, :, :, :1] for clip in CLIPS]
    feature = F.Tensor(shape=(6, 8, 12, 1), dtype=np.uint8)
    features = F.FeaturesDict({"image_sequence": feature})
    write(
        tmp_path,
        "grey",
        features,
        lambda i: {"image_sequence": clips[i]},
        (("test", 9),),
    )
    colour = load_all(tfds.open_tfds(config(tmp_path, "grey")))
    grey = load_all(tfds.open_tfds(config(tmp_path, "grey", channels=1)))
    for a, b in zip(colour, grey, strict=True):
        assert a["video"].shape[-1] == 3 and b["video"].shape[-1] == 1
        np.testing.assert_array_equal(a["video"], np.repeat(b["video"], 3, -1))
        assert any(window_of(b["video"], clip) is not None for clip in clips)


def test_too_short_and_constant_records_are_bad_clips(tmp_path):
    clips = [CLIPS[0], CLIPS[1][:3], np.full_like(CLIPS[2], 40), *CLIPS[3:]]
    features = F.FeaturesDict({"video": TENSOR})
    write(tmp_path, "mixed", features, lambda i: {"video": clips[i]})
    source = tfds.open_tfds(config(tmp_path, "mixed", validation_fraction=0.0))
    reasons = []
    for index in range(9):
        try:
            source.load(index, np.random.default_rng(0), 4)
        except BadClip as error:
            assert error.name.startswith(
                "mixed-train.array_record-00000-of-00001 record "
            )
            reasons.append(error.reason)
    assert sorted(reasons) == ["constant", "too short: 3 frames, a clip spans 4"]


def test_a_flipped_byte_is_a_bad_clip_that_names_shard_and_record(tmp_path):
    video, _ = KINDS["bytes"]
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
            assert window_of(whole[index]["video"], CLIPS[0]) is not None
    assert [error.name for error in bad] == [f"{shard.name} record {place}"]
    assert "hash mismatch" in bad[0].reason


DAMAGES = {
    "no info": lambda d: (d / "dataset_info.json").unlink(),
    "no features": lambda d: (d / "features.json").unlink(),
    "garbage info": lambda d: (d / "dataset_info.json").write_bytes(b"\x00\xff{"),
    "garbage features": lambda d: (d / "features.json").write_text("[1, 2"),
    "other json": lambda d: (d / "features.json").write_text('{"a": 1}'),
    "no shard": lambda d: (d / "raw-train.array_record-00000-of-00001").unlink(),
    "empty shard": lambda d: (d / "raw-train.array_record-00000-of-00001").write_bytes(
        b""
    ),
    "half a shard": lambda d: cut(d / "raw-train.array_record-00000-of-00001"),
    "wrong count": lambda d: change_info(d, lambda s: s.update(shardLengths=["8"])),
    "no split": lambda d: change_info(d, None),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_info(directory, change):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    if change is None:
        info["splits"] = []
    else:
        change(next(s for s in info["splits"] if s["name"] == "train"))
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_is_one_kind_of_error(folder, tmp_path, damage):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    DAMAGES[damage](directory)
    with pytest.raises(UserError) as caught:
        tfds.open_tfds(config(tmp_path, "raw"))
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


def test_other_formats_say_what_to_do(folder, tmp_path):
    write(tmp_path, "table", F.FeaturesDict({"video": TENSOR}),
          lambda i: {"video": CLIPS[i]}, file_format="parquet")  # fmt: skip
    with pytest.raises(UserError, match="parquet format.*--file_format=array_record"):
        tfds.open_tfds(config(tmp_path, "table"))


def test_no_video_in_it(tmp_path):
    write(
        tmp_path, "words", F.FeaturesDict({"text": F.Text()}), lambda i: {"text": "a"}
    )
    with pytest.raises(UserError, match="has no video feature"):
        tfds.open_tfds(config(tmp_path, "words"))


@pytest.mark.parametrize(
    "names, captions, flip",
    [
        (["wave", "jump"], False, True),
        (["wave", "turn_left"], False, False),
        (["wave", "jump"], True, False),
    ],
)
def test_flips_are_refused_where_sides_may_have_a_meaning(
    tmp_path, names, captions, flip
):
    features = {"video": TENSOR, "label": F.ClassLabel(names=names)}
    example = {"video": CLIPS[0], "label": 0}
    if captions:
        features["caption"], example["caption"] = F.Text(), "to the left"
    write(tmp_path, "sides", F.FeaturesDict(features), lambda i: example)
    assert tfds.open_tfds(config(tmp_path, "sides")).flip == flip


@pytest.mark.parametrize("name", ["", "../x", "a b", "raw:1", "raw@", "a/b/c"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(UserError, match=r"NAME\[/CONFIG\]"):
        tfds.open_tfds(config(tmp_path, name))


def test_what_is_not_there_says_how_it_is_prepared(folder, tmp_path, monkeypatch):
    for name in ("ucf101", "moving_mnist", "bair_robot_pushing_small"):
        said = f"no prepared data set {name} .*needs tensorflow.*tfds build {name} "
        with pytest.raises(UserError, match=said):
            tfds.open_tfds(config(tmp_path, name))
    with pytest.raises(UserError, match="no version 2.0.0, but 1.0.0"):
        tfds.open_tfds(config(folder, "raw:2.0.0"))
    assert len(tfds.open_tfds(config(folder, "raw:1.0.0@video"))) == 9
    with pytest.raises(UserError, match="add one of @video"):
        tfds.open_tfds(config(folder, "raw@film"))
    with pytest.raises(UserError, match="target_fps: examples of TFDS have no frame"):
        tfds.open_tfds(config(folder, "raw", target_fps=8.0))
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert len(tfds.open_tfds(config("", "raw"))) == 9


def test_configs_and_versions_are_folders(folder, tmp_path):
    """The newest version by number; a data set with configs asks which."""
    for version in ("1.0.0", "1.2.0", "1.10.0"):
        shutil.copytree(folder / "raw" / "1.0.0", tmp_path / "many" / "big" / version)
    with pytest.raises(UserError, match="one of many/big$"):
        tfds.find_dataset("many", str(tmp_path))
    assert tfds.find_dataset("many/big", str(tmp_path)) == (
        tmp_path / "many/big/1.10.0",
        "",
    )
    assert tfds.find_dataset("many/big:1.2.0", str(tmp_path))[0].name == "1.2.0"


def rename_classes(directory, name):
    """Let every feature name a class of a user's."""
    path = directory / "features.json"
    text = json.dumps(json.loads(path.read_text()))  # without spaces to be matched
    path.write_text(
        re.sub(r'"pythonClassName": "[^"]*"', f'"pythonClassName": {name}', text)
    )


@pytest.mark.parametrize("name", ["evil.Image", "evil.", "evil", "", "os.path"])
def test_a_class_that_features_name_is_not_imported(
    folder, tmp_path, monkeypatch, name
):
    """Neither of the data folder, nor of the current one, nor of anywhere else."""
    directory = tmp_path / "pictures" / "1.0.0"
    shutil.copytree(folder / "pictures" / "1.0.0", directory)
    rename_classes(directory, json.dumps(name))
    for place in (tmp_path, directory):
        (place / "evil.py").write_text("raise SystemExit('code of the data has run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = tfds.open_tfds(config(tmp_path, "pictures", validation_fraction=0.0))
    assert len(load_all(source)) == 9 and "evil" not in sys.modules
    assert source.label_vocabulary == (("ape", "bee", "cat"),)


def test_features_of_unknown_content_are_left_out(folder, tmp_path, monkeypatch):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    path = directory / "features.json"
    content = json.loads(path.read_text())
    custom = {"pythonClassName": "evil.Graph", "jsonFeature": {"json": "{}"}}
    nested = {"pythonClassName": "x.S", "sequence": {"feature": custom, "length": "-1"}}
    content["featuresDict"]["features"] |= {"graph": custom, "graphs": nested}
    path.write_text(json.dumps(content))
    source = tfds.open_tfds(config(tmp_path, "raw"))
    assert len(load_all(source)) == 9
    path.write_text(json.dumps(custom))
    with pytest.raises(UserError, match="no video feature"):
        tfds.open_tfds(config(tmp_path, "raw"))


def change_features(directory, change):
    path = directory / "features.json"
    content = json.loads(path.read_text())
    change(content["featuresDict"]["features"])
    path.write_text(json.dumps(content))


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
def test_json_of_any_kind_is_one_kind_of_error(folder, tmp_path, file, text):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    (directory / file).write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
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
        set_split({"name": "train", "shardLengths": ["9"], "filepathTemplate": "{X}"}),
        lambda info, features: info.update(description="\ud800"),
        lambda info, features: features.update(featuresDict="\ud800"),
        lambda info, features: features["featuresDict"].update(features="\ud800"),
        lambda info, features: features["featuresDict"]["features"]["video"].update(
            tensor=[]
        ),
    ],
)
def test_values_of_any_kind_are_one_kind_of_error(folder, tmp_path, change):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    paths = [directory / "dataset_info.json", directory / "features.json"]
    contents = [json.loads(path.read_text()) for path in paths]
    change(*contents)
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be read .*prepared again") as caught:
        tfds.open_tfds(config(tmp_path, "raw"))
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 different names in 0 lines, features.json says 3"),
        (b"a\n", "1 different names in 1 lines"),
        (b"a\na\na\n", "1 different names in 3 lines"),
        (b"a\nb\nc\nd\n", "4 different names in 4 lines"),
        (b"\xff\xfe\xff", "not UTF-16-LE text"),
        (b"a\nb\n\xff\n", "not UTF-8 text"),
        (b"a\nb\nc\0\n", "a NUL"),
        (None, "not a regular file"),
    ],
)
def test_names_of_labels_are_as_many_as_their_values(folder, tmp_path, content, said):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    path = directory / "label.labels.txt"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"label.labels.txt cannot be read .*{said}"):
        tfds.open_tfds(config(tmp_path, "raw"))


def test_labels_without_a_file_are_numbers(folder, tmp_path):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    (directory / "label.labels.txt").unlink()
    source = tfds.open_tfds(config(tmp_path, "raw"))
    assert source.label_vocabulary == (("0", "1", "2"),)


@pytest.mark.parametrize("count", ["0", "-3", "1000000000000"])
def test_a_number_of_labels_that_no_list_holds(folder, tmp_path, count):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    (directory / "label.labels.txt").unlink()
    change_features(
        directory, lambda f: f["label"]["classLabel"].update(numClasses=count)
    )
    with pytest.raises(UserError, match="label has"):
        tfds.open_tfds(config(tmp_path, "raw"))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["video"]["tensor"]["shape"].update(
            dimensions=["-1", "9", "9", "3"]
        ),
        lambda f: f["label"]["classLabel"].update(numClasses="1"),
        lambda f: f.update(video2=f.pop("video")),
    ],
)
def test_records_that_hold_something_else_are_bad_clips(folder, tmp_path, change):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    if (directory / "label.labels.txt").exists():
        (directory / "label.labels.txt").unlink()
    change_features(directory, change)
    source = tfds.open_tfds(config(tmp_path, "raw"))
    bad = 0
    for index in range(9):
        try:
            source.load(index, np.random.default_rng(0), 4)
        except BadClip as error:
            bad += 1
            assert "\n" not in error.reason
    assert bad >= 6


def test_shards_lie_in_the_folder_of_their_version(folder, tmp_path):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(folder / "raw" / "1.0.0", directory)
    shard = directory / "raw-train.array_record-00000-of-00001"
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    with pytest.raises(UserError, match="lies outside"):
        tfds.open_tfds(config(tmp_path, "raw"))


def test_a_frame_is_a_picture_and_no_program(tmp_path):
    """Pillow would hand PostScript to an interpreter."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n%%EndComments\nshowpage\n"
    features = F.FeaturesDict({"video": F.Sequence(F.Text())})
    directory = write(tmp_path, "ps", features, lambda i: {"video": [eps] * 6})
    picture = {
        "pythonClassName": "",
        "image": {"shape": {"dimensions": ["8", "12", "3"]}, "dtype": "uint8"},
    }
    change_features(directory, lambda f: f["video"]["sequence"].update(feature=picture))
    source = tfds.open_tfds(config(tmp_path, "ps", validation_fraction=0.0))
    with pytest.raises(BadClip, match="not an image"):
        source.load(0, np.random.default_rng(0), 4)
