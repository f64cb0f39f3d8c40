"""Data sets: the sources of clips, and the batches of the training step."""

import copy
import importlib
from collections.abc import Iterable, Sequence

import numpy as np

from vdm_jax import codec as codecs
from vdm_jax.codec import Codec
from vdm_jax.data import mixed_sizes, packing, pipeline, stored_latents
from vdm_jax.data.source import Source
from vdm_jax.errors import UserError

# Functions of this package. Only the module of the chosen one is imported.
SOURCES = {
    "shapes": "shapes.open_shapes",
    "sprites": "sprites.open_sprites",
    "pictures": "pictures.open_pictures",
    "bouncing": "bouncing.open_bouncing",
    "clips": "clips.open_clips",
    "folder": "folder.open_folder",
    "one_clip": "one_clip.open_one_clip",
    "tfds": "tfds.open_tfds",
}
COMPUTED = ("shapes", "bouncing")  # without files
STATS_CLIPS = 256  # clips from which mean and variance are computed


def open_source(config) -> Source:
    """Open the training part of the data set config.data.source, or its latents.

    Where config.data.path is a folder of latents, it becomes data.latents_dir, and the
    data set that the latents are of data.path.

    Raises UserError.
    """
    captions = config.data.caption or config.data.edited_caption
    if captions and config.data.source != "one_clip":
        raise UserError(
            "config.data.caption goes with data.source='one_clip', not with "
            f"{config.data.source!r}, whose clips have captions of their own"
        )
    stored_latents.resolve_path(config.data)
    path = config.data.path
    if "mixed_sizes" in config:
        return open_source(mixed_sizes.at_size(config, config.mixed_sizes.rows[0]))
    if config.data.latents_dir:
        return stored_latents.open_latents(config)
    if path and config.data.source in COMPUTED:
        raise UserError(
            f"config.data.path={path}: no folder of latents, and data.source="
            f"{config.data.source!r} reads no other files"
        )
    module, function = SOURCES[config.data.source].split(".")
    return getattr(importlib.import_module(f"vdm_jax.data.{module}"), function)(config)


def open_sizes(config, source: Source) -> list[Source]:
    """Return the data set at each size of config.mixed_sizes.rows, or at its only one.

    source: the data set at the first of them.

    Raises:
      UserError: one cannot be opened, or they do not fit each other.
    """
    if "mixed_sizes" not in config:
        return [source]
    _, *others = config.mixed_sizes.rows
    opened = [open_source(mixed_sizes.at_size(config, row)) for row in others]
    mixed_sizes.check_sources(config, [source, *opened])
    return [source, *opened]


def train_batches(
    config, sources: Sequence[Source], rows: Sequence[Sequence[int]] | None = None
) -> pipeline.Batches:
    """Return an iterator of batches of a data set.

    sources: of `open_sizes`.
    rows: of each batch that takes turns (`mixed_sizes.in_turn`), those that this
      process loads; None: all.

    Raises the errors of `train_batches` of pipeline, of packing or of mixed_sizes.
    """
    own = rows[0] if rows else None
    if "mixed_sizes" not in config:
        return pipeline.train_batches(config, sources[0], own)
    if config.mixed_sizes.buffer_tokens:
        return packing.train_batches(config, sources, own)
    return mixed_sizes.train_batches(config, sources, rows)


def open_videos(config) -> Source:
    """Open the data set itself, also where training reads its latents.

    Raises UserError.
    """
    config = copy.deepcopy(config)
    stored_latents.resolve_path(config.data)
    config.data.latents_dir = ""
    return open_source(config)


def resolve(config, source: Source):
    """Fill in fields of config.data that are None from the data; return the config.

    label_vocabulary: that of the source; () for a model that is conditioned on text.
    mean, variance: scalars over z of some training clips, which is their pixels in
    [-1, 1] without another codec. They are the same in every process.
    """
    data = config.data
    if data.label_vocabulary is None:
        data.label_vocabulary = (
            () if config.conditioning.text_dim else source.label_vocabulary
        )
    if data.mean is None or data.variance is None:
        part = source.split(False)
        clips = pipeline.fixed_clips(config, part, min(STATS_CLIPS, len(part)))
        mean, variance = _statistics(codecs.from_config(config), clips)
        data.mean = float(mean) if data.mean is None else data.mean
        data.variance = float(variance) if data.variance is None else data.variance
    return config


def _statistics(codec: Codec, clips: Iterable[pipeline.Batch]) -> tuple[float, float]:
    """Return the mean and the variance over z of all clips, drawn where z is random."""
    if type(codec) is Codec:  # exact, by counting pixels
        counts = sum(np.bincount(c["video"].ravel(), minlength=256) for c in clips)
        values = np.arange(256) / 127.5 - 1
        mean = np.average(values, weights=counts)
        return mean, np.average((values - mean) ** 2, weights=counts)
    params = None
    each = []
    for clip in clips:
        if "latents" in clip:
            moments = clip["latents"]
        else:
            params = params or codec.load_params()
            moments = codec.moments_on_host(clip["video"] / 127.5 - 1, params)
        each.append(stored_latents.statistics(moments))
    mean, square = np.mean(each, axis=(0, 2))
    return mean, square - mean**2
