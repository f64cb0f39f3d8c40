"""Data sets: where clips come from, and how they reach the training step."""

import importlib

import numpy as np

from vdm_jax.data import pipeline
from vdm_jax.data.source import Source
from vdm_jax.errors import UserError

# Modules here, imported when asked for.
SOURCES = ("shapes", "bouncing", "clips", "folder", "tfds")
STATS_CLIPS = 256  # clips behind the mean and the variance


def open_source(config) -> Source:
    """The data set that config.data.source names, as its training part.

    Raises:
      UserError: an unknown name, or what the source says of its settings and files.
    """
    name = config.data.source
    if name not in SOURCES:
        raise UserError(f"config.data.source={name!r}: one of {', '.join(SOURCES)}")
    module = importlib.import_module(f"vdm_jax.data.{name}")
    return getattr(module, f"open_{name}")(config)


def resolve(config, source: Source):
    """Fills in what config.data leaves None from the data; returns the config.

    attributes: the label vocabulary of the source, none for a model that is told by
    text instead. mean, variance: scalars over the pixels, in [-1, 1], of some training
    clips; the same on every process.
    """
    data = config.data
    if data.label_vocabulary is None:
        data.label_vocabulary = (
            () if config.conditioning.text_dim else source.label_vocabulary
        )
    if data.mean is None or data.variance is None:
        part, counts = source.split(False), np.zeros(256)
        for clip in pipeline.fixed_clips(config, part, min(STATS_CLIPS, len(part))):
            counts += np.bincount(clip["video"].ravel(), minlength=256)
        level = np.arange(256) / 127.5 - 1
        mean = np.average(level, weights=counts)
        variance = np.average((level - mean) ** 2, weights=counts)
        data.mean = float(mean) if data.mean is None else data.mean
        data.variance = float(variance) if data.variance is None else data.variance
    return config
