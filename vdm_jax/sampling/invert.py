"""DDIM inversion: from videos to the noise that DDIM makes them of."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.batches import DEFAULT_SETTINGS, sample_batches
from vdm_jax.sampling.program import ProgramKey
from vdm_jax.sampling.settings import Settings, check_settings
from vdm_jax.sampling.types import Conditions, SamplingInputs

INVERSION_SAMPLER = samplers.ddim_inversion()


def invert(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    cond: Conditions | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Return the noise [n, f, h, w, c] from which DDIM samples `videos`, in [-1, 1].

    It reads steps, sampling_schedule (or the sampler that chooses it) and batch_size of
    the settings: nothing is guided or clipped. A student with a guidance embedding
    gets settings.guidance_scale.

    Raises:
      UserError: settings out of range, or a model conditioned on a video.
    """
    if model.video_conditions:
        raise UserError("inversion is not for super-resolution stages")
    check_settings(model, len(videos), 0, settings)
    return sample_batches(
        ProgramKey(model, INVERSION_SAMPLER, mesh or sharding.make_mesh()),
        params,
        len(videos),
        settings,
        SamplingInputs(
            cond or {}, initial_noise=np.asarray(model.codec.encode(videos))
        ),
        progress=progress,
    )
