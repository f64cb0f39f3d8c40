"""Batches are a function of seed and position: vdm_jax/data/pipeline.py."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from tests.data.numbered import (
    Numbered,
    assert_same,
    config,
    items_of,
    stream,
    take,
)
from vdm_jax import data
from vdm_jax.data import pipeline, shapes, workers
from vdm_jax.errors import UserError


def test_shapes_and_types():
    batch = stream(shapes.Shapes(shapes.Geometry(3, 8, 8)), 1)[0]
    assert {k: (v.shape, v.dtype.kind) for k, v in batch.items()} == {
        "video": ((4, 3, 8, 8, 3), "u"),
        "label": ((4, 4), "i"),
        "caption": ((4,), "U"),
    }
    assert batch["video"].dtype == np.uint8 and batch["label"].dtype == np.int32


def test_the_seed_determines_the_stream():
    a, b = stream(Numbered(), 6), stream(Numbered(), 6)
    assert_same(a, b)
    assert (items_of(a) != items_of(stream(Numbered(), 6, seed=1))).any()
    one = [stream(Numbered(items=1), 6, batch_size=1, seed=seed) for seed in (0, 1)]
    noise = [[b["video"][0, 0, 0, 0, 1] for b in batches] for batches in one]
    assert noise[0] != noise[1]  # also within the examples


def test_training_uses_the_training_part_of_any_split():
    assert_same(stream(Numbered().split(True), 3), stream(Numbered(), 3))


def test_every_epoch_has_every_item_once_in_a_new_order():
    items = items_of(stream(Numbered(items=10), 10)).reshape(4, 10)  # 10 batches of 4
    np.testing.assert_array_equal(np.sort(items), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(epoch) for epoch in items.tolist()}) == 4


def test_an_item_gives_another_random_clip_in_the_next_epoch():
    batches = stream(Numbered(items=4), 8)
    noise = [tuple(b["video"][:, 0, 0, 0, 1]) for b in batches]
    assert len(set(noise)) == 8


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_global_batch_in_order(count):
    source, whole = Numbered(), stream(Numbered(), 5, joint_image_frames=1, flip=True)
    made = config(joint_image_frames=1, flip=True)
    parts = [
        take(pipeline.train_batches(made, source, rows), 5)
        for rows in np.split(np.arange(4), count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_process_loads_only_its_own_rows():
    source = Numbered()
    batches = pipeline.train_batches(config(), source, [2, 3])
    taken = take(batches, 2)
    assert len(source.loaded) <= 2 * (2 + workers.PREFETCH_BATCHES)
    assert set(items_of(taken)) <= set(source.loaded)


@pytest.mark.parametrize("done", [0, 1, 7])
def test_resume_continues_the_stream(done):
    made = config(joint_image_frames=1)
    whole = stream(Numbered(), done + 4, joint_image_frames=1)
    batches = pipeline.train_batches(made, Numbered())
    list(itertools.islice(batches, done))
    state = json.loads(json.dumps(batches.get_state()))
    batches.close()
    fresh = pipeline.train_batches(made, Numbered())
    next(fresh)  # an iterator in another state
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(take(fresh, 4), whole[done:])


def test_resume_with_another_number_of_processes():
    whole = stream(Numbered(), 6)
    half = pipeline.train_batches(config(), Numbered(), [2, 3])
    list(itertools.islice(half, 3))
    state = half.get_state()
    half.close()
    one = pipeline.train_batches(config(), Numbered())
    one.set_state(state)
    assert_same(take(one, 3), whole[3:])


def test_joint_images_are_appended_to_the_unchanged_video():
    plain, joint = stream(Numbered(), 10), stream(Numbered(), 10, joint_image_frames=2)
    others = set()
    for a, b in zip(plain, joint, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"][:, :3])
        np.testing.assert_array_equal(b["frame_mask"], [[1, 1, 1, 0, 0]] * 4)
        assert b["frame_mask"].dtype == bool and "frame_mask" not in a
        others |= set(b["video"][:, 3:, 0, 0, 0].ravel().tolist())
    assert others == set(range(10))  # from all items
    shown = np.concatenate([b["video"][:, :, 0, 0, 0] for b in joint])
    assert (
        shown[:, 3:] == shown[:, :1]
    ).mean() < 0.3  # independent of the video's item
    first = joint[0]
    assert first["label"].shape[:2] == first["caption"].shape == (4, 3)
    np.testing.assert_array_equal(first["label"][:, 0], plain[0]["label"])
    # Item i has label i and pixels i: an image has its own label.
    np.testing.assert_array_equal(
        first["label"][:, 1:, 0], first["video"][:, 3:, 0, 0, 0]
    )
    alone = stream(Numbered(items=1), 6, batch_size=1, joint_image_frames=2)
    noise = np.concatenate([b["video"][:, 2:, 0, 0, 1] for b in alone])
    assert (np.ptp(noise, axis=1) > 0).all()  # each image has its own generator
    assert (noise[:, 0] != noise[:, 1]).any() and (noise[:, 1] != noise[:, 2]).any()


def test_flips_mirror_half_of_the_clips_and_keep_labels():
    batches = stream(Numbered(), 20, flip=True)
    left = np.concatenate([b["video"][:, :, :, 0, 2].min((1, 2)) for b in batches])
    right = np.concatenate([b["video"][:, :, :, -1, 2].min((1, 2)) for b in batches])
    assert ((left == 255) ^ (right == 255)).all()
    assert 30 < (right == 255).sum() < 50  # of 80
    for batch, plain in zip(batches, stream(Numbered(), 20), strict=True):
        np.testing.assert_array_equal(batch["label"], plain["label"])


def test_a_flip_that_would_make_labels_wrong_is_rejected():
    source = shapes.Shapes(shapes.Geometry(3, 8, 8))
    with pytest.raises(UserError, match="captions of shapes depend on left and right"):
        pipeline.train_batches(config(flip=True), source)


def test_a_bad_item_is_replaced_and_reported_once(capfd):
    bad = stream(Numbered(bad=(3, 7)), 10)
    captured = capfd.readouterr().err
    for item in (3, 7):
        assert captured.count(f"item {item}: broken") == 1
    assert "of 10 clips" in captured
    good = stream(Numbered(), 10)
    changed = np.isin(items_of(good), (3, 7))
    assert changed.any() and not np.isin(items_of(bad), (3, 7)).any()
    for a, b, skip in zip(bad, good, changed.reshape(10, 4), strict=True):
        np.testing.assert_array_equal(a["video"][~skip], b["video"][~skip])
    assert_same(bad, stream(Numbered(bad=(3, 7)), 10))


def test_bad_images_are_replaced_too():
    joint = stream(Numbered(bad=(3, 7)), 10, joint_image_frames=2)
    assert not np.isin([b["video"][:, :, 0, 0, 0] for b in joint], (3, 7)).any()


def test_more_than_the_maximal_fraction_of_bad_items_stops_the_run(capfd):
    with pytest.raises(UserError, match="3 of 10 clips are unusable.*max_bad_fraction"):
        stream(Numbered(bad=(1, 2, 3)), 30)
    assert len(stream(Numbered(bad=(1, 2)), 30)) == 30


def test_a_source_without_usable_clips_is_an_error(capfd):
    with pytest.raises(UserError, match="unusable"):
        stream(Numbered(bad=tuple(range(10))), 1, max_bad_fraction=1.0)


@pytest.mark.parametrize("items", [0, 1, 3])
def test_fewer_clips_than_a_batch_is_an_error(items):
    with pytest.raises(UserError, match=rf"has {items} clips .*batch_size=4"):
        pipeline.train_batches(config(), Numbered(items=items))
    assert len(stream(Numbered(items=1), 3, batch_size=1)) == 3


def test_the_held_out_batch_is_fixed_and_held_out():
    made = config(joint_image_frames=2, flip=True)
    a = pipeline.held_out_batch(made, Numbered(), 8)
    b = pipeline.held_out_batch(made, Numbered().split(True), 3)
    assert_same([{k: v[:3] for k, v in a.items()}], [b])
    items = a["video"][:, 0, 0, 0, 0] - 100
    assert sorted(items[:5]) == list(range(5))  # each once, then the next shuffle
    assert a["video"].shape == (8, 3, 8, 8, 3) and "frame_mask" not in a
    assert (a["video"][:, :, :, 0, 2] == 255).all()  # no flips
    other = pipeline.held_out_batch(made, Numbered(), 8, seed=1)
    assert (a["video"] != other["video"]).any()


def test_nothing_held_out_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Whole(Numbered):
        def __len__(self):
            return 0 if self.held_out else self.items

    with pytest.raises(UserError, match="numbered has no held-out clip"):
        pipeline.held_out_batch(config(), Whole(), 2)


def test_the_fingerprint_distinguishes_streams_and_is_json():
    base = pipeline.fingerprint(config(), Numbered())
    assert json.loads(json.dumps(base)) == base
    for change in (
        {"seed": 1},
        {"batch_size": 2},
        {"joint_image_frames": 1},
        {"stride": 2},
        {"target_fps": 4.0},
        {"flip": True},
        {"crop": "random"},
    ):
        assert pipeline.fingerprint(config(**change), Numbered()) != base, change
    assert pipeline.fingerprint(config(workers=3), Numbered()) == base
    assert pipeline.fingerprint(config(), Numbered(items=11)) != base

    @dataclasses.dataclass(frozen=True)
    class Replaced(Numbered):
        sizes = (1, 3)

    assert pipeline.fingerprint(config(), Replaced()) != base


def test_resolve_fills_in_unset_fields():
    source = shapes.Shapes(shapes.Geometry(3, 8, 8))
    made = data.resolve(config(), source)
    assert made.data.label_vocabulary == shapes.ATTRIBUTES
    clips = [
        c["video"] / 127.5 - 1
        for c in pipeline.fixed_clips(made, source, data.STATS_CLIPS)
    ]
    assert made.data.mean == pytest.approx(np.mean(clips))
    assert made.data.variance == pytest.approx(np.var(clips))
    given = data.resolve(
        config(mean=0.5, variance=2.0, label_vocabulary=(("x",),)), source
    )
    assert (given.data.mean, given.data.variance) == (0.5, 2.0)
    assert given.data.label_vocabulary == (("x",),)
