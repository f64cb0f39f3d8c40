"""Data sets: the sources of clips, and the batches of the training step."""

import importlib
from collections.abc import Iterable

import numpy as np

from vdm_jax import codec as codecs
from vdm_jax.codec import Codec
from vdm_jax.data import pipeline
from vdm_jax.data.source import Source

# Functions of this package. Only the module of the chosen one is imported.
SOURCES = {
    "shapes": "shapes.open_shapes",
    "sprites": "sprites.open_sprites",
    "bouncing": "bouncing.open_bouncing",
    "clips": "clips.open_clips",
    "folder": "folder.open_folder",
    "tfds": "tfds.open_tfds",
}
STATS_CLIPS = 256  # clips from which mean and variance are computed


def open_source(config) -> Source:
    """Open the training part of the data set config.data.source. Raises UserError."""
    module, function = SOURCES[config.data.source].split(".")
    return getattr(importlib.import_module(f"vdm_jax.data.{module}"), function)(config)


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
    """Return the mean and the variance over z of all clips."""
    if type(codec) is Codec:  # exact, by counting pixels
        counts = sum(np.bincount(c["video"].ravel(), minlength=256) for c in clips)
        values = np.arange(256) / 127.5 - 1
    else:
        params = codec.load_params()
        videos = (clip["video"] / 127.5 - 1 for clip in clips)
        z = [codec.encode_on_host(video, params) for video in videos]
        values = np.concatenate([each.ravel() for each in z])
        counts = None
    mean = np.average(values, weights=counts)
    return mean, np.average((values - mean) ** 2, weights=counts)
