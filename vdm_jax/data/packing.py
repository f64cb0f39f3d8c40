"""Batches of packed buffers: clips of several sizes, their tokens one after the other.

Every batch has the same number of clips of each size (config.mixed_sizes.rows), so that
one layout of the buffers holds for all, and a position in the stream is a number of
batches, as in data/pipeline.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from vdm_jax import codec as codecs
from vdm_jax.data import mixed_sizes, pipeline
from vdm_jax.data.pipeline import Batches, LoadBatch
from vdm_jax.data.source import Source
from vdm_jax.data.workers import Batch
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks import packing

Size = tuple[int, int, int]  # (frames, height, width)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which clips of a batch are in which buffer.

    Attributes:
      sizes: of each clip's z, in the order of config.mixed_sizes.rows.
      row: of config.mixed_sizes.rows that each clip is of.
      buffers: clips of each buffer, by number.
      patch_size: of the network.
      tokens: of a buffer.
    """

    sizes: tuple[Size, ...]
    row: tuple[int, ...]
    buffers: tuple[tuple[int, ...], ...]
    patch_size: int
    tokens: int

    @property
    def places(self) -> int:
        """Return how many videos the fullest buffer has."""
        return max(map(len, self.buffers))

    @property
    def padding(self) -> float:
        """Return the share of tokens that are of no video."""
        used = sum(packing.num_tokens(size, self.patch_size) for size in self.sizes)
        return 1 - used / (self.tokens * len(self.buffers))

    def describe(self) -> str:
        """Return the number of clips and buffers, and the padding, as one line."""
        return (
            f"{len(self.sizes)} clips in {len(self.buffers)} buffers of {self.tokens} "
            f"tokens, {self.padding:.1%} of them padding"
        )


def layout(config: Any) -> Layout:
    """Return the layout of a config's batches.

    Raises:
      UserError: a size that the patches do not divide, sizes that do not fit into the
        buffers of a batch, or a network that reads no packed buffers.
    """
    _check(config)
    section, codec = config.mixed_sizes, codecs.from_config(config)
    p, sizes, rows = config.network.patch_size, [], []
    for row, (*size, count) in enumerate(section.rows):
        frames, height, width, _ = codec.z_shape((*size, config.video.channels))
        for pixels, side in zip(size[1:], (height, width), strict=True):
            factor = pixels // side
            why = f"the codec's {factor} * patch_size"
            check_multiple("mixed_sizes.rows: a side", pixels, factor * p, why)
        sizes += [(frames, height, width)] * count
        rows += [row] * count
    lengths = [packing.num_tokens(size, p) for size in sizes]
    buffers = packing.first_fit(lengths, section.buffer_tokens)
    number = config.data.batch_size
    if len(buffers) != number:
        raise UserError(
            f"config.mixed_sizes.rows: a batch of {len(sizes)} clips fills "
            f"{len(buffers)} buffers of {section.buffer_tokens} tokens: set "
            f"config.data.batch_size to that, not {number}, or give other clips or "
            "buffers"
        )
    return Layout(
        tuple(sizes), tuple(rows), tuple(map(tuple, buffers)), p, section.buffer_tokens
    )


def _check(config: Any) -> None:
    """Raise UserError for fields that packed buffers need otherwise."""
    mixed_sizes.check(config)
    kind, positions = config.network.kind, config.network.get("positions")
    if kind != "dit" or positions != "rope":
        raise UserError(
            f"config.mixed_sizes with network.kind={kind!r}, positions={positions!r}: "
            "packed buffers are for 'dit' with 'rope'; buffer_tokens=0 makes batches "
            "of one size"
        )
    if config.conditioning.frame_index_embedding:
        raise UserError(
            "config.conditioning.frame_index_embedding with config.mixed_sizes: "
            "positions are rotations there; set it to False"
        )
    if config.codec.kind != "identity" and not config.data.latents_dir:
        raise UserError(
            f"config.codec.kind={config.codec.kind!r} with config.mixed_sizes: packed "
            "buffers are of pixels or of stored latents: set config.data.latents_dir"
        )


def shapes(plan: Layout, name: str, channels: int, dtype: Any) -> dict[str, tuple]:
    """Return (shape, dtype) of the arrays of a batch, apart from its conditions.

    name, channels, dtype: of the clips, which are videos or latents.
    """
    b, n, p = len(plan.buffers), plan.tokens, plan.patch_size
    return {
        name: ((b, n, 1, 1, p * p * channels), dtype),
        "segments": ((b, n), np.int32),
        "positions": ((b, n, 3), np.int32),
        "frames": ((b, plan.places), np.int32),
    }


@dataclasses.dataclass
class LoadBuffers:
    """Loads a batch by its number: the buffers of this process.

    loads, items: of each row of config.mixed_sizes.rows, its clips and their order.
    conditions: names of the arrays of a clip that are kept, apart from its frames.
    """

    plan: Layout
    loads: Sequence[LoadBatch]
    items: Sequence[grain.MapDataset[int]]
    conditions: Sequence[str]
    rows: Sequence[int] | None

    def __call__(self, number: int) -> Batch:
        rows = range(len(self.plan.buffers)) if self.rows is None else self.rows
        buffers = [self._buffer(number, self.plan.buffers[row]) for row in rows]
        return {name: np.stack([b[name] for b in buffers]) for name in buffers[0]}

    def _buffer(self, number: int, members: Sequence[int]) -> Batch:
        plan, clips = self.plan, []
        for i in members:
            row = plan.row[i]
            first, count = plan.row.index(row), plan.row.count(row)
            position = number * count + i - first
            load = self.loads[row]
            index = self.items[row][position]
            assert index is not None  # none is left out
            clips.append(load.clip(position, row, index, load.frames))
        # A place without a video repeats the conditions of another.
        filled = [*clips, *[clips[0]] * (plan.places - len(clips))]
        conditions = {n: np.stack([c[n] for c in filled]) for n in self.conditions}
        return _packed(plan, clips) | conditions


def _packed(plan: Layout, clips: Sequence[dict[str, Any]]) -> Batch:
    """Return the frames of clips as one buffer."""

    def pack(videos):
        return packing.pack(videos, plan.patch_size, plan.tokens, plan.places)

    if "latents" in clips[0]:
        halves = zip(*(np.split(c["latents"], 2, axis=-1) for c in clips), strict=True)
        (mean, where), (deviation, _) = map(pack, halves)
        arrays = {"latents": np.concatenate([mean, deviation], axis=-1)}
    else:
        z, where = pack([clip["video"] for clip in clips])
        arrays = {"video": z}
    names = (field.name for field in dataclasses.fields(where))
    return arrays | {name: getattr(where, name) for name in names}


def train_batches(
    config: Any, sources: Sequence[Source], rows: Sequence[int] | None = None
) -> Batches:
    """Return an iterator of packed batches of the training parts.

    sources: of each row of config.mixed_sizes.rows.
    rows: buffers that this process loads; None: all.

    A batch is a dict, for b buffers of n tokens with s places for videos:
      video: uint8 [b, n, 1, 1, p p c], or "latents" [b, n, 1, 1, 2 p p c].
      segments, positions, frames: those of `networks.inputs.Packing`.
      caption: str [b, s]; label: int32 [b, s, attributes], if data.label_vocabulary.

    Raises:
      UserError: as `layout`; fewer clips of a size than a batch has; a flip that would
        make labels wrong; and (from `next`) too many unusable clips.
    """
    plan, data = layout(config), config.data
    loads, items = [], []
    for row, source in enumerate(source.split(False) for source in sources):
        pipeline.check_flip(config, source)
        frames, *_, count = config.mixed_sizes.rows[row]
        pipeline.check_length(source, count, "mixed_sizes.rows")
        loads.append(
            LoadBatch(
                source, config.seed, frames, data.max_bad_fraction, flip=data.flip
            )
        )
        items.append(pipeline.shuffled(len(source), (config.seed + row) % 2**32))
    conditions = ["caption", "label"] if data.label_vocabulary else ["caption"]
    load = LoadBuffers(plan, loads, items, conditions, rows)
    return Batches(
        grain.MapDataset.range(pipeline.MAX_EXAMPLES).map(load), data.workers
    )
