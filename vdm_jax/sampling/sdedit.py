"""SDEdit: sample from a noised video in place of noise (Meng et al. 2021)."""

import dataclasses

import numpy as np

from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.batches import sample
from vdm_jax.sampling.settings import Settings, make_schedule
from vdm_jax.sampling.types import Run, SamplingInputs


def first_row(steps: int, strength: float) -> int:
    """Return the row of the sampler's table at which an edit starts.

    strength: the fraction of the steps that run, rounded down as in diffusers.

    Raises:
      UserError: it is not in (0, 1], or no step would run.
    """
    if not 0 < strength <= 1 or int(steps * strength) < 1:
        raise UserError(
            f"strength={strength:g}: above 0, at most 1, and at least 1 / steps (of "
            f"{steps} steps {1 / steps:.3g}): the fraction of the steps that run"
        )
    return steps - int(steps * strength)


def edit(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    num: int,
    settings: Settings,
    strength: float,
    inputs: SamplingInputs = SamplingInputs(),
    run: Run = Run(),
) -> np.ndarray:
    """Sample `num` videos [num, f, h, w, c] in [-1, 1] that start from given ones.

    Noise is added to them at the level of the first row that runs, so that their
    composition stays and details change. At strength 1 all steps run, from nearly pure
    noise.

    Args:
      videos: [1 or num, f, h, w, c] in [-1, 1], none smaller than the model's; larger
        ones are sampled by MultiDiffusion.
      strength: in (0, 1].

    Raises:
      UserError: as `sample`, and a strength that is out of range.
    """
    row = first_row(settings.steps, strength)
    level, _ = samplers.grid(make_schedule(model, settings), settings.steps)
    z = model.codec.encode_on_host(videos, params.get("codec"))
    numbers = run.first_video + np.arange(num)
    keys = samplers.video_keys(
        np.uint32(run.seed), np.uint32(run.stage), np.uint32(run.block), numbers
    )
    eps = np.asarray(samplers.normal(keys, 0, 0, z.shape[1:]))
    noised = level.alpha[row] * z + level.sigma[row] * eps
    return sample(
        model,
        params,
        num,
        settings,
        dataclasses.replace(inputs, initial_noise=noised.astype(z.dtype)),
        dataclasses.replace(run, rows=(row, settings.steps), size=videos.shape[1:4]),
    )
