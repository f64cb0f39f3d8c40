"""Batches of a source, with Grain.

The stream is a function of (config, source, batch number) only: the order is a seeded
permutation of each epoch, and the randomness of an example is seeded by (seed, position
in the stream). Therefore a position is the whole state of the iterator, and the global
batches are the same for any number of threads, workers and processes.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from vdm_jax.data.source import BadClip, Source
from vdm_jax.data.workers import PREFETCH_BATCHES, Batch, WorkerPool, prefetch
from vdm_jax.errors import UserError

Example = dict[str, Any]  # a Clip

FRAMES = {
    "video",
    "latents",
    "silhouette",
}  # arrays of a clip whose first axis is its frames
MAX_RETRIES = 100  # consecutive unusable items before loading fails
READ_THREADS = 2  # that load batches ahead without worker processes
MAX_EXAMPLES = 2**48  # Grain's own infinity overflows with batches of one


@dataclasses.dataclass
class LoadBatch:
    """Loads a batch: (batch number, global item indices) -> the rows of this process.

    Attributes:
      max_bad_fraction: of unusable items, above which loading fails.
      joint_image_frames: independent images per video.
      rows: those of each global batch that are loaded; None: all.
      bad: name -> error of the unusable items so far.
    """

    source: Source
    seed: int
    frames: int
    max_bad_fraction: float
    joint_image_frames: int = 0
    flip: bool = False
    rows: Sequence[int] | None = None
    bad: dict[str, BadClip] = dataclasses.field(default_factory=dict)

    def __call__(self, number: int, indices: Sequence[int]) -> Batch:
        first = number * len(indices)
        rows = range(len(indices)) if self.rows is None else self.rows
        examples = [self._example(first + row, int(indices[row])) for row in rows]
        batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
        if self.joint_image_frames:
            mask = np.arange(self.frames + self.joint_image_frames) < self.frames
            batch["frame_mask"] = np.tile(mask, (len(examples), 1))
        return batch

    def _example(self, position: int, index: int) -> Example:
        """Load a clip, with independent images appended along its frames.

        Labels and captions are stacked: of the video, then of each image.
        """
        clip = self.clip(position, 0, index, self.frames)
        if not self.joint_image_frames:
            return clip
        slots = range(1, self.joint_image_frames + 1)
        clips = [clip, *(self.clip(position, slot, None, 1) for slot in slots)]
        joined = {
            k: np.concatenate([c[k] for c in clips]) for k in clip.keys() & FRAMES
        }
        conditions = clip.keys() - FRAMES
        return joined | {k: np.stack([c[k] for c in clips]) for k in conditions}

    def clip(self, position: int, slot: int, index: int | None, frames: int) -> Example:
        """Load item `index` (None: a random one); replace unusable items at random.

        Every attempt has its own generator, so that the stream does not depend on how
        many numbers a failing load has drawn.
        """
        last = None
        for attempt in range(MAX_RETRIES):
            rng = np.random.default_rng((self.seed, position, slot, attempt))
            if index is None:
                index = int(rng.integers(len(self.source)))
            try:
                clip: Example = {**self.source.load(index, rng, frames)}
            except BadClip as error:
                self._skip(error)
                index = None
                last = error
                continue
            if self.flip and "video" in clip and rng.random() < 0.5:
                clip["video"] = clip["video"][:, :, ::-1]
            return clip
        raise UserError(
            f"{self.source.name}: {MAX_RETRIES} consecutive clips are unusable, the "
            f"last was {last}"
        )

    def _skip(self, error: BadClip) -> None:
        """Print an unusable item once. Raises UserError if there are too many."""
        if self.bad.setdefault(error.name, error) is not error:  # atomic without lock
            return
        bad, items = len(self.bad), len(self.source)
        print(f"skipped {error} ({bad} of {items} clips)", file=sys.stderr, flush=True)
        if bad > self.max_bad_fraction * items:
            raise UserError(
                f"{self.source.name}: {bad} of {items} clips are unusable, more than "
                f"config.data.max_bad_fraction={self.max_bad_fraction}; the last was "
                f"{error}"
            )


def _dataset(load: LoadBatch, batch_size: int) -> grain.MapDataset[Batch]:
    """Return the infinite sequence of batches, by number."""
    items = shuffled(len(load.source), load.seed)
    return items.batch(batch_size, batch_fn=list).map_with_index(load)


def shuffled(length: int, seed: int) -> grain.MapDataset[int]:
    """Return the items of endless epochs, each in an order of its own."""
    items = grain.MapDataset.range(length).shuffle(seed)
    return items.repeat(MAX_EXAMPLES // length)


class Batches:
    """An infinite iterator of batches whose state is their count."""

    def __init__(self, dataset: grain.MapDataset[Batch], workers: int):
        self._dataset, self._workers = dataset, workers
        self._count = 0
        self._iterator = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            rest = self._dataset[self._count :]
            if self._workers:
                self._iterator = WorkerPool(rest, self._workers)
            else:
                self._iterator = prefetch(rest, READ_THREADS, PREFETCH_BATCHES)
        batch = next(self._iterator)
        self._count += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Return the state as plain data, valid for any number of processes."""
        return {"batches": self._count}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with the batch that followed `get_state`."""
        self.close()
        self._count = int(state["batches"])

    def close(self) -> None:
        """Stop threads and workers. `next` starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(config, source: Source, rows: Sequence[int] | None = None) -> Batches:
    """Return an iterator of batches of the training part.

    rows: those of each global batch that this process loads; None: all.

    A batch is a dict, with k = config.data.joint_image_frames:
      video: uint8 [b, f + k, h, w, c]; the last k frames are independent images. In
        its place "latents" [b, f + k, h', w', 2 k'] of a source of stored latents.
      frame_mask: bool [b, f + k], False for the images; only if k > 0.
      label: int32 [b, attributes], only if the source has labels.
      caption: str [b].
    If k > 0, label and caption are [b, 1 + k, ...]: of the video, then of each image.

    Raises:
      UserError: fewer clips than a batch, a flip that would make labels wrong, or (from
        `next`) too many unusable clips.
    """
    return Batches(train_dataset(config, source, rows), config.data.workers)


def train_dataset(
    config, source: Source, rows: Sequence[int] | None = None
) -> grain.MapDataset[Batch]:
    """Return the infinite sequence of `train_batches`, by number."""
    data = config.data
    source = source.split(False)
    check_flip(config, source)
    check_length(source, data.batch_size)
    load = LoadBatch(
        source, config.seed, config.video.frames, data.max_bad_fraction,
        data.joint_image_frames, data.flip, rows,
    )  # fmt: skip
    return _dataset(load, data.batch_size)


def clip_batches(config, part: Source, batch_size: int) -> Batches:
    """Return an iterator of batches of one part, in the order of training.

    There are no joint images. config.data.flip mirrors half of the clips.

    Raises:
      UserError: a flip that would make labels wrong, or (from `next`) too many unusable
        clips.
    """
    data = config.data
    check_flip(config, part)
    load = LoadBatch(
        part, config.seed, config.video.frames, data.max_bad_fraction, flip=data.flip
    )
    return Batches(_dataset(load, batch_size), data.workers)


def check_length(
    part: Source, number: int, field: str = "config.data.batch_size"
) -> None:
    """Raise UserError for fewer clips than the `number` of a batch, set by `field`."""
    if len(part) < number:
        raise UserError(
            f"{part.name} has {len(part)} clips for training, fewer than one batch of "
            f"{field}={number}: lower it or add clips"
        )


def check_flip(config, source: Source) -> None:
    """Raise UserError for mirrored clips whose labels or captions would be wrong."""
    if config.data.flip and not source.flip:
        raise UserError(
            f"config.data.flip=True: labels or captions of {source.name} depend on "
            "left and right; set it to False"
        )


def fixed_clips(config, part: Source, n: int, seed: int = 0) -> Iterator[Batch]:
    """Yield the first n clips of a fixed shuffle of one part, in batches of one.

    There are no joint images and no flips. The last item is followed by a new shuffle.
    """
    frames = config.video.frames
    max_bad = config.data.max_bad_fraction
    dataset: Any = _dataset(LoadBatch(part, seed, frames, max_bad), batch_size=1)
    return map(dataset.__getitem__, range(n))


def held_out_batch(config, source: Source, n: int, seed: int = 0) -> Batch:
    """Return `fixed_clips` of the held-out part as one batch.

    Raises:
      UserError: nothing is held out, or too many unusable clips.
    """
    held_out = source.split(True)
    if not len(held_out):
        raise UserError(
            f"{source.name} has no held-out clip of {config.video.frames} frames: use "
            "fewer, or a larger config.data.validation_fraction"
        )
    clips = list(fixed_clips(config, held_out, n, seed))
    return {key: np.concatenate([clip[key] for clip in clips]) for key in clips[0]}


def identity(source: Source) -> dict:
    """Return what tells a part of a data set from others."""
    digest = hashlib.sha256(repr((source.names, source.sizes)).encode())
    return {
        "source": source.name, "items": len(source), "digest": digest.hexdigest(),
    }  # fmt: skip


def _mixed_sizes(config) -> str:
    sizes = "; ".join("x".join(map(str, row)) for row in config.mixed_sizes.rows)
    return f"{sizes} in {config.mixed_sizes.buffer_tokens} tokens"


def fingerprint(config, source: Source) -> dict:
    """Return what must be equal for a resumed run to continue the same stream.

    The number of workers, threads and processes is not part of it.
    """
    data = (
        "batch_size", "joint_image_frames", "stride", "target_fps", "flip", "crop",
        "mean", "variance",
    )  # fmt: skip
    return {
        "seed": config.seed,
        **{field: config.data[field] for field in data},
        **{field: config.video[field] for field in ("frames", "height", "width")},
        **({"mixed_sizes": _mixed_sizes(config)} if "mixed_sizes" in config else {}),
        **identity(source),
        # In earlier versions images had the labels and captions of their video.
        **({"image_conditions": "their own"} if config.data.joint_image_frames else {}),
    }
