"""Clips of data sets of TFDS: vdm_jax/data/tfds.py."""

import pickle
import shutil

import numpy as np
import pytest

from tests.data.tfds_datasets import (
    CLIPS,
    STORAGES,
    TENSOR,
    F,
    change_features,
    config,
    find_clip,
    load_all,
    png,
    write,
)
from vdm_jax.data import pipeline, tfds
from vdm_jax.data.source import BadClip
from vdm_jax.errors import UserError


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("stride", [1, 2])
def test_clips_labels_and_captions_equal_the_written_ones(tfds_folder, kind, stride):
    frames = 4 if stride == 1 else 3
    source = tfds.open_tfds(
        config(tfds_folder, kind, frames=frames, stride=stride, validation_fraction=0.0)
    )
    assert source.label_vocabulary == (("ape", "bee", "cat"),)
    seen = set()
    for clip in load_all(source, frames):
        index = int(clip["caption"].removeprefix("clip "))
        assert clip["label"].tolist() == [index % 3]
        assert find_clip(clip["video"], CLIPS[index], stride) is not None
        assert clip["video"].dtype == np.uint8 and clip["label"].dtype == np.int32
        seen.add(index)
    assert seen == set(range(9))


def test_clips_and_single_frames_are_drawn_from_the_whole_video(tfds_folder):
    source = tfds.open_tfds(config(tfds_folder, "raw", validation_fraction=0.0))
    clip = CLIPS[int(load_all(source)[0]["caption"][5:])]
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    starts = {find_clip(source.load(0, rng, 4)["video"], clip) for rng in rngs}
    assert starts == set(range(len(clip) - 3))
    images = {find_clip(source.load(0, rng, 1)["video"], clip) for rng in rngs}
    assert images == set(range(len(clip)))


@pytest.mark.parametrize("crop, starts", [("center", {2}), ("random", set(range(5)))])
def test_crops_are_centered_or_random(tfds_folder, crop, starts):
    """Crop 8x12 to 8x8; clips are as long as their record."""
    settings = config(
        tfds_folder, "raw", frames=6, width=8, crop=crop, validation_fraction=0.0
    )
    source = tfds.open_tfds(settings)
    at = [clip["caption"] for clip in load_all(source, 6)].index("clip 0")
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    videos = [source.load(at, rng, 6)["video"] for rng in rngs]
    found = [
        [i for i in range(5) if (video == CLIPS[0][:, :, i : i + 8]).all()]
        for video in videos
    ]
    assert {i for (i,) in found} == starts


def test_every_caption_of_a_record_is_drawn(tmp_path):
    features = {"video": TENSOR, "captions": F.Sequence(F.Text())}
    example = {"video": CLIPS[0], "captions": ["one", "two", "three"]}
    write(tmp_path, "captioned", F.FeaturesDict(features), lambda i: example)
    source = tfds.open_tfds(config(tmp_path, "captioned"))
    rngs = [np.random.default_rng(seed) for seed in range(40)]
    captions = {source.load(0, rng, 4)["caption"] for rng in rngs}
    assert captions == {"one", "two", "three"}


def test_the_source_can_be_pickled(tfds_folder):
    made = config(tfds_folder, "images")
    source = tfds.open_tfds(made)
    again = pickle.loads(pickle.dumps(source))
    for a, b in zip(load_all(source), load_all(again), strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
    batches = pipeline.train_batches(made, source)
    batch = next(batches)
    batches.close()
    assert batch["video"].shape == (2, 4, 8, 12, 3)
    other = config(tfds_folder, "raw")
    assert pipeline.fingerprint(made, again) == pipeline.fingerprint(made, source)
    assert pipeline.fingerprint(made, tfds.open_tfds(other)) != pipeline.fingerprint(
        made, source
    )


def test_a_sequence_of_dicts_is_a_video(tmp_path):
    """bair_robot_pushing_small has two cameras and actions in a sequence."""
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
        assert any(find_clip(clip["video"], whole) is not None for whole in CLIPS[:3])
        assert clip["caption"] == "" and "label" not in clip


def test_grey_tensors_and_grey_models(tmp_path):
    """moving_mnist has frames of one channel and only a test split."""
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
        assert any(find_clip(b["video"], clip) is not None for clip in clips)


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


@pytest.mark.parametrize(
    "names, captions, flip",
    [
        (["wave", "jump"], False, True),
        (["wave", "turn_left"], False, False),
        (["wave", "jump"], True, False),
    ],
)
def test_flips_are_off_if_labels_or_captions_depend_on_sides(
    tmp_path, names, captions, flip
):
    features = {"video": TENSOR, "label": F.ClassLabel(names=names)}
    example = {"video": CLIPS[0], "label": 0}
    if captions:
        features["caption"], example["caption"] = F.Text(), "to the left"
    write(tmp_path, "sides", F.FeaturesDict(features), lambda i: example)
    assert tfds.open_tfds(config(tmp_path, "sides")).flip == flip


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
def test_records_without_the_declared_features_are_bad_clips(
    tfds_folder, tmp_path, change
):
    directory = tmp_path / "raw" / "1.0.0"
    shutil.copytree(tfds_folder / "raw" / "1.0.0", directory)
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


def test_postscript_frames_are_not_executed(tmp_path):
    """Pillow would run PostScript in an interpreter."""
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
