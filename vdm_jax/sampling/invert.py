"""DDIM inversion: from videos to the noise that DDIM makes them of."""

import numpy as np

from vdm_jax import sharding
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.batches import sample_batches
from vdm_jax.sampling.program import SamplerProgram
from vdm_jax.sampling.settings import Settings, check_settings
from vdm_jax.sampling.types import Conditions, SamplingInputs

INVERSION_SAMPLER = samplers.ddim_inversion()


def invert(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    settings: Settings = Settings(),
    *,
    cond: Conditions | None = None,
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
    mesh = sharding.make_mesh()
    shape = model.shape
    program = SamplerProgram(model, INVERSION_SAMPLER, mesh, shape, shape[:3])
    z = model.codec.encode_on_host(videos, params.get("codec"))
    inputs = SamplingInputs(cond or {}, initial_noise=z)
    return sample_batches(program, params, len(videos), settings, inputs)
