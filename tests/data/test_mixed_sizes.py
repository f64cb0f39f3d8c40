"""Batches of one size each: which clips they have, and in what order."""

import contextlib
import itertools

import numpy as np
import pytest

from tests.data.numbered import assert_same, take
from tests.data.test_packing import Sized
from tests.data.test_packing import config as packed_config
from vdm_jax.data import mixed_sizes
from vdm_jax.errors import UserError

# (frames, height, width, clips)
SIZES = ((3, 4, 6, 2), (1, 6, 4, 4), (2, 2, 4, 3))


def config(**changes):
    changes = {"mixed_sizes__rows": SIZES, "data__batch_size": 4} | changes
    return packed_config(mixed_sizes__buffer_tokens=0, network__kind="unet", **changes)


def batches(value, rows=None, workers=0):
    value.data.workers = workers
    return mixed_sizes.train_batches(value, [Sized(row) for row in SIZES], rows)


def test_sizes_take_turns():
    """Each has as many clips as its row says, each clip once in an epoch of seven."""
    items = [[], [], []]
    for number, batch in enumerate(take(batches(config()), 3 * 7)):
        size = number % 3
        frames, height, width, count = SIZES[size]
        assert batch["video"].shape == (count, frames, height, width, 3)
        assert batch["label"].shape == (count, 1)
        shown = batch["video"][:, 0, 0, 0, 0]
        np.testing.assert_array_equal(shown, batch["label"][:, 0])
        items[size] += batch["caption"].tolist()
    for (*_, count), names in zip(SIZES, items, strict=True):
        assert (np.unique(names, return_counts=True)[1] == count).all()
        assert len(set(names)) == 7
    assert items[0][:7] != items[1][:7] != items[2][:7] != items[0][:7]


def test_the_stream_is_resumed_and_shared():
    """A position is a number of batches; each process loads its own rows of each."""
    whole = take(batches(config()), 8)
    assert_same(take(batches(config(), workers=2), 8), whole)
    with contextlib.closing(batches(config())) as stream:
        list(itertools.islice(stream, 2))
        assert stream.get_state() == {"batches": 2}
        stream.set_state({"batches": 5})
        assert_same(list(itertools.islice(stream, 3)), whole[5:])
    rows = [[[0], [0, 1], [0]], [[1], [2, 3], [1, 2]]]
    parts = [take(batches(config(), own), 8) for own in rows]
    joined = [
        {name: np.concatenate([part[name] for part in both]) for name in both[0]}
        for both in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_stream_of_one_size_or_of_buffers_has_one_config():
    packed, plain = packed_config(), packed_config()
    del plain["mixed_sizes"]
    for value in (packed, plain):
        assert len(mixed_sizes.in_turn(value)) == 1
    assert len(mixed_sizes.in_turn(config())) == 3


def test_clips_of_a_batch():
    assert mixed_sizes.clips_per_batch(config().mixed_sizes) == 3
    assert mixed_sizes.clips_per_batch(packed_config().mixed_sizes) == 6


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mixed_sizes__rows", (), "rows of .frames, height, width, clips"),
        ("mixed_sizes__rows", ((3, 4, 5, 4),), "the first is .3, 4, 5., not the"),
        ("mixed_sizes__rows", (*SIZES, (4, 4, 6, 1)), "4 frames, more than .*frames=3"),
        ("mixed_sizes__rows", (*SIZES, SIZES[1]), "one row for each size"),
        ("data__batch_size", 3, "batch_size=3: .* the most clips of a row, 4"),
        ("data__joint_image_frames", 1, "pictures are a size of one frame"),
        ("diffusion__resolution_base", 64, "set it to 0"),
    ],
)
def test_what_does_not_fit_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        mixed_sizes.in_turn(config(**{field: value}))


def test_pictures_with_fewer_labels_are_refused():
    sources = [Sized(row) for row in SIZES]
    object.__setattr__(sources[1], "label_vocabulary", ())
    with pytest.raises(UserError, match="other labels than its pictures"):
        mixed_sizes.check_sources(config(), sources)
