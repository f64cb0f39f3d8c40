"""The library from Python: load a trained model and sample it.

Both functions are reached as `vdm_jax.load` and `vdm_jax.sample`; docs/api.md says
what stays as it is from version to version.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import cascade, runs, sampling
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
    prompt: str = "",
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
      prompt: the text of all videos, "" for none.
      cond: arrays of other conditions, as `sampling.SamplingInputs` has them.
      seed: the same seed gives the same videos.
      settings: fields of `sampling.Settings`, as steps=64; what is left out is as the
        model's config says.

    Raises:
      UserError: a setting that is out of range or does not fit the model.
    """
    stage = cascade.as_stage(trained.model, trained.config)
    encoder = trained.config.conditioning.text_encoder
    alone = cascade.Cascade(Path("the model"), (stage,), encoder)
    prompts = [prompt] * num if prompt else []
    own, _ = cascade.encode_conditions(
        alone, num, label=label, prompts=prompts, seed=seed
    )
    videos = sampling.sample(
        trained.model,
        trained.params,
        num,
        stage.with_settings(**settings).settings,
        sampling.SamplingInputs({**own, **(cond or {})}),
        sampling.Run(seed),
    )
    return sampling.to_uint8(videos)
