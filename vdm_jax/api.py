"""The library from Python: load a trained model and sample it.

Both functions are reached as `vdm_jax.load` and `vdm_jax.sample`; docs/api.md says
what stays as it is from version to version.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import runs, sampling
from vdm_jax.runs import TrainedModel

__all__ = ["TrainedModel", "load", "sample"]


def load(workdir: str | Path) -> TrainedModel:
    """Load a run, a distillation or a shipped model.

    workdir: the folder that train.py or distill.py wrote, or one of models/.

    Returns:
      A tuple with the fields model, params, config, step and checksum.

    Raises:
      UserError: the folder holds no trained model.
    """
    return runs.load(workdir)


def sample(
    trained: TrainedModel,
    num: int = 4,
    *,
    label: str = "",
    cond: sampling.Conditions | None = None,
    seed: int = 0,
    **settings: Any,
) -> np.ndarray:
    """Sample videos, uint8 [num, frames, height, width, channels].

    Args:
      trained: the value of `load`.
      num: of videos.
      label: names of the label's values, separated by commas, for all videos; "" draws
        labels, "none" leaves them open.
      cond: arrays of other conditions, as `sampling.sample` takes them.
      seed: the same seed gives the same videos.
      settings: fields of `sampling.Settings`, as steps=64; what is left out is as the
        model's config says.

    Raises:
      UserError: a setting that is out of range or does not fit the model.
    """
    defaults = sampling.Settings.from_config(trained.config.sample)
    labels = sampling.draw_labels(trained.model, num, label, seed)
    drawn = {} if labels is None else {"label": labels}
    videos = sampling.sample(
        trained.model,
        trained.params,
        num,
        dataclasses.replace(defaults, **settings),
        cond={**drawn, **(cond or {})},
        seed=seed,
    )
    return sampling.to_uint8(videos)
