"""Batches of packed buffers: which clips they have, where, and in what order."""

import contextlib
import itertools
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import dit
from tests.data.numbered import Numbered, assert_same, take
from vdm_jax.data import mixed_sizes, packing
from vdm_jax.errors import UserError
from vdm_jax.networks.packing import num_tokens, unpack

# (frames, height, width, clips): 18 x 2, 6, 4 x 3 tokens of 2x2 pixels.
SIZES = ((3, 4, 6, 2), (1, 6, 4, 1), (2, 2, 4, 3))


class Sized(Numbered):
    """Clips of a size, whose item is in channel 0."""

    def __init__(self, row, items=7):
        super().__init__(items=items)
        object.__setattr__(self, "size", row[1:3])

    def split(self, held_out):
        return self

    def load(self, index, rng, frames):
        clip = super().load(index, rng, frames)
        clip["video"] = np.full((frames, *self.size, 3), index, np.uint8)
        clip["video"][..., 1] = np.arange(frames)[:, None, None]
        return clip


def config(**changes) -> Any:
    value = ConfigDict(
        {
            "seed": 0,
            "video": {"frames": 3, "height": 4, "width": 6, "channels": 3},
            "data": {
                "batch_size": 2, "flip": False, "workers": 0, "max_bad_fraction": 0.2,
                "label_vocabulary": (("x",),), "joint_image_frames": 0,
                "latents_dir": "",
            },
            "codec": {"kind": "identity", "path": "", "tile": 0},
            "network": {"kind": "dit", "positions": "rope", "patch_size": 2},
            "conditioning": {"frame_index_embedding": False},
            "diffusion": {"resolution_base": 0},
            "mixed_sizes": {"rows": SIZES, "buffer_tokens": 28},
        }
    )  # fmt: skip
    for path, change in changes.items():
        section, name = path.split("__")
        value[section][name] = change
    return value


def batches(value, rows=None):
    return packing.train_batches(value, [Sized(row) for row in SIZES], rows)


def clips_of(batch):
    """Return (size, video, caption) of all clips of a batch, found by its arrays."""
    found = []
    for row in range(len(batch["video"])):
        z = batch["video"][row]
        segments, positions = batch["segments"][row], batch["positions"][row]
        for i in range(1, segments.max() + 1):
            own = segments == i
            f, h, w = positions[own].max(0) + 1
            size = (int(f), 2 * int(h), 2 * int(w))
            (video,) = unpack(z[own], [size], 2)
            assert batch["frames"][row, i - 1] == f
            found.append((size, video, batch["caption"][row, i - 1]))
    return found


def test_a_batch_has_the_clips_of_each_size():
    """Each whole, with its own caption and label; tokens of no video are 0."""
    layout = packing.layout(config())
    assert layout.padding == pytest.approx(1 - (36 + 6 + 12) / 56)
    assert (
        layout.describe() == "6 clips in 2 buffers of 28 tokens, 3.6% of them padding"
    )
    batch = take(batches(config()), 1)[0]
    clips = clips_of(batch)
    sizes = sorted(size for size, _, _ in clips)
    assert sizes == sorted(row[:3] for row in SIZES for _ in range(row[3]))
    for (frames, height, width), video, caption in clips:
        item = int(caption[1:])
        assert video.shape == (frames, height, width, 3)
        assert (video[..., 0] == item).all()
        assert (video[..., 1] == np.arange(frames)[:, None, None]).all()
    assert not batch["video"][batch["segments"] == 0].any()
    assert (batch["label"][..., 0] >= 0).all()


def test_the_mix_of_the_config_has_little_padding():
    """Below 5%, in buffers of at most four times the tokens of the longest clip."""
    config: Any = dit.get_config("packed")
    layout = packing.layout(config)
    longest = max(num_tokens(size, layout.patch_size) for size in layout.sizes)
    assert layout.padding < 0.05 and layout.tokens <= 4 * longest


def test_every_epoch_of_a_size_has_every_clip_once():
    """Seven items; two, one and three of them in a batch."""
    items = {row[:3]: [] for row in SIZES}
    for batch in take(batches(config()), 7):
        for size, _, caption in clips_of(batch):
            items[size].append(caption)
    for row in SIZES:
        names, counts = np.unique(items[row[:3]], return_counts=True)
        assert len(names) == 7 and (counts == row[3]).all()


def test_the_stream_is_resumed_and_shared():
    """A position is a number of batches; each process loads its own buffers."""
    whole = take(batches(config()), 6)
    with contextlib.closing(batches(config())) as stream:
        list(itertools.islice(stream, 2))
        stream.set_state({"batches": 4})
        assert_same(list(itertools.islice(stream, 2)), whole[4:])
    parts = [take(batches(config(), [row]), 6) for row in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in both]) for name in both[0]}
        for both in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_sizes_have_orders_of_their_own():
    value = config(mixed_sizes__rows=SIZES[:1] * 2, data__batch_size=4)
    batch = take(packing.train_batches(value, [Sized(SIZES[0])] * 2), 1)[0]
    assert len({caption for *_, caption in clips_of(batch)}) > 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mixed_sizes__rows", (), "rows of .frames, height, width, clips"),
        ("mixed_sizes__rows", ((3, 4, 6),), "rows of .frames, height, width, clips"),
        ("mixed_sizes__rows", ((3, 4, 5, 1),), "the first is .3, 4, 5., not the"),
        ("mixed_sizes__rows", (*SIZES, (1, 4, 5, 1)), "5 must be a multiple of 2"),
        ("mixed_sizes__rows", (*SIZES, (4, 4, 6, 1)), "4 frames, more than .*frames=3"),
        ("mixed_sizes__buffer_tokens", 17, "a video of 18 tokens in a buffer of 17"),
        ("data__batch_size", 3, "6 clips fills 2 buffers of 28 tokens: set"),
        ("data__joint_image_frames", 1, "pictures are a size of one frame"),
        ("network__kind", "unet", "'unet'.*for 'dit' with 'rope'"),
        ("network__positions", "sincos", "for 'dit' with 'rope'"),
        ("diffusion__resolution_base", 64, "set it to 0"),
        ("conditioning__frame_index_embedding", True, "set it to False"),
        ("codec__kind", "patch", "set config.data.latents_dir"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        packing.layout(config(**{field: value}))


def test_pictures_with_fewer_labels_are_refused():
    sources = [Sized(row) for row in SIZES]
    object.__setattr__(sources[1], "label_vocabulary", ())
    with pytest.raises(UserError, match="other labels than its pictures"):
        mixed_sizes.check_sources(config(), sources)
    open_labels = config(data__label_vocabulary=())
    batch = take(packing.train_batches(open_labels, sources), 1)[0]
    assert "label" not in batch and batch["caption"].shape == (2, 3)


def test_latents_of_two_dtypes_are_refused():
    sources = [Sized(row) for row in SIZES]
    object.__setattr__(sources[0], "dtype", np.dtype("float32"))
    object.__setattr__(sources[1], "dtype", np.dtype("float16"))
    with pytest.raises(UserError, match="latents in float16 and float32"):
        mixed_sizes.check_sources(config(), sources[:2])


def test_fewer_clips_than_a_batch_has_are_refused():
    """The same clip would be in a batch twice."""
    sources = [Sized(row, items=2) for row in SIZES]
    with pytest.raises(UserError, match="2 clips for training.*mixed_sizes.rows=3"):
        packing.train_batches(config(), sources)


def test_large_seeds_are_seeds():
    value = config()
    value.seed = 2**32 - 1
    assert len(take(batches(value), 1)) == 1
