"""Clips of several sizes: their data sets, and batches of one size each, in turn.

data/packing.py puts clips of all sizes into one batch.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain

from vdm_jax.data import pipeline
from vdm_jax.data.pipeline import Batches
from vdm_jax.data.source import Source
from vdm_jax.data.workers import Batch
from vdm_jax.errors import UserError


def at_size(config: Any, row: Sequence[int]) -> Any:
    """Return the config of the data set of a row of config.mixed_sizes.rows."""
    config = copy.deepcopy(config)
    frames, height, width = row[:3]
    with config.unlocked():
        config.video.update(frames=frames, height=height, width=width)
        if config.data.latents_dir:
            folder = latents_folder(Path(config.data.latents_dir), row)
            config.data.latents_dir = str(folder)
        del config["mixed_sizes"]
    return config


def latents_folder(folder: Path, row: Sequence[int]) -> Path:
    """Return where the latents of a row of config.mixed_sizes.rows are: 8x64x64."""
    return folder / "x".join(map(str, row[:3]))


def in_turn(config: Any) -> list[Any]:
    """Return the configs of the batches of a stream, which take turns.

    With mixed_sizes.buffer_tokens=0 there is one for each of its rows, with the row's
    size and number of clips and an order of its own. Other streams have one.

    Raises:
      UserError: as `check`; a size twice; or another batch_size than the largest.
    """
    if "mixed_sizes" not in config:
        return [config]
    check(config)
    if config.mixed_sizes.buffer_tokens:
        return [config]
    rows, batch_size = config.mixed_sizes.rows, config.data.batch_size
    if len({tuple(row[:3]) for row in rows}) < len(rows):
        raise UserError(
            f"config.mixed_sizes.rows={rows}: one row for each size, because a batch "
            "has one with buffer_tokens=0"
        )
    if (most := max(row[3] for row in rows)) != batch_size:
        raise UserError(
            f"config.data.batch_size={batch_size}: with mixed_sizes.buffer_tokens=0 "
            f"it is the most clips of a row, {most}"
        )
    configs = [at_size(config, row) for row in rows]
    for number, own in enumerate(configs):
        own.seed = (own.seed + number) % 2**32
        own.data.batch_size = rows[number][3]
    return configs


def clips_per_batch(section: Any) -> float:
    """Return the clips of a batch; of batches that take turns their mean.

    section: config.mixed_sizes.
    """
    counts = [count for *_, count in section.rows]
    return sum(counts) / (1 if section.buffer_tokens else len(counts))


def check(config: Any) -> None:
    """Raise UserError for fields that clips of several sizes need otherwise."""
    data, video, section = config.data, config.video, config.mixed_sizes
    if not section.rows or any(len(row) != 4 for row in section.rows):
        raise UserError(
            f"config.mixed_sizes.rows={section.rows}: rows of (frames, height, width, "
            "clips in a batch), one or more"
        )
    own = (video.frames, video.height, video.width)
    if tuple(section.rows[0][:3]) != own:
        raise UserError(
            f"config.mixed_sizes.rows: the first is {section.rows[0][:3]}, not the "
            f"size of config.video, {own}: it is the model's default"
        )
    longest = max(row[0] for row in section.rows)
    if longest > video.frames:
        raise UserError(
            f"config.mixed_sizes.rows: {longest} frames, more than config.video.frames="
            f"{video.frames}: no size has more"
        )
    for section in ("stage", "control"):
        if section in config:
            raise UserError(
                f"config.{section} with config.mixed_sizes: clips of several sizes "
                "train no model that is conditioned on videos"
            )
    if data.joint_image_frames:
        raise UserError(
            f"config.data.joint_image_frames={data.joint_image_frames} with "
            "config.mixed_sizes: pictures are a size of one frame there; set it to 0"
        )
    if config.diffusion.resolution_base:
        raise UserError(
            f"config.diffusion.resolution_base={config.diffusion.resolution_base} with "
            "config.mixed_sizes, where all sizes have one noise schedule: set it to 0"
        )


def check_sources(config: Any, sources: Sequence[Source]) -> None:
    """Raise UserError for sources of the sizes that differ in labels or in dtype."""
    vocabularies = {source.split(False).label_vocabulary for source in sources}
    if config.data.label_vocabulary and len(vocabularies) > 1:
        raise UserError(
            f"config.mixed_sizes with labels: clips of {sources[0].name} have other "
            "labels than its pictures: train on texts, or on clips alone"
        )
    dtypes = {str(getattr(source, "dtype", "")) for source in sources}
    if len(dtypes) > 1:
        raise UserError(
            f"{config.data.latents_dir} has latents in {' and '.join(sorted(dtypes))}: "
            "write those of all sizes with one --dtype"
        )


@dataclasses.dataclass
class InTurn:
    """Loads a batch by its number. batches: those of each size, by number."""

    batches: Sequence[Any]

    def __call__(self, number: int) -> Batch:
        turn, size = divmod(number, len(self.batches))
        return self.batches[size][turn]


def train_batches(
    config: Any,
    sources: Sequence[Source],
    rows: Sequence[Sequence[int] | None] | None = None,
) -> Batches:
    """Return an iterator of batches of the training parts, of one size each, in turn.

    A batch is as one of `pipeline.train_batches`.

    sources: of each row of config.mixed_sizes.rows.
    rows: of the batches of each size, those that this process loads; None: all.

    Raises:
      UserError: as `in_turn` and `pipeline.train_batches`.
    """
    configs = in_turn(config)
    rows = rows or [None] * len(configs)
    batches = [
        pipeline.train_dataset(*each)
        for each in zip(configs, sources, rows, strict=True)
    ]
    numbers = grain.MapDataset.range(pipeline.MAX_EXAMPLES)
    return Batches(numbers.map(InTurn(batches)), config.data.workers)
