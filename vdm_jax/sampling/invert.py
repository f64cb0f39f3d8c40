"""DDIM inversion: from videos to the noise that DDIM makes them of."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.batches import sample, sample_batches
from vdm_jax.sampling.program import SamplerProgram
from vdm_jax.sampling.settings import Settings, check_settings
from vdm_jax.sampling.types import (
    Conditions,
    Progress,
    Run,
    SamplingInputs,
    no_progress,
)


def invert(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    settings: Settings = Settings(),
    *,
    cond: Conditions | None = None,
    at_end: bool = False,
    mesh: Mesh | None = None,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Return the noise [n, f, h, w, c] from which DDIM samples `videos`, in [-1, 1].

    It reads steps, sampling_schedule (or the sampler that chooses it), batch_size and
    mesh of the settings: nothing is guided or clipped. A student with a guidance
    embedding gets settings.guidance_scale.

    at_end: as for `samplers.ddim_inversion`. mesh, progress: as for `Run`.

    Raises:
      UserError: settings out of range, or a model conditioned on a video.
    """
    if model.video_conditions:
        raise UserError("inversion is not for super-resolution stages")
    check_settings(model, len(videos), 0, settings)
    mesh = mesh or sharding.mesh_from_text(settings.mesh)
    shape = model.shape
    sampler = samplers.ddim_inversion(at_end)
    program = SamplerProgram(model, sampler, mesh, shape, shape[:3])
    z = model.codec.encode_on_host(videos, params.get("codec"))
    inputs = SamplingInputs(cond or {}, initial_noise=z)
    run = Run(progress=progress)
    return sample_batches(program, params, len(videos), settings, inputs, run)


def edit_by_inversion(
    model: DiffusionModel,
    params: Params,
    videos: np.ndarray,
    num: int,
    settings: Settings = Settings(),
    inputs: SamplingInputs = SamplingInputs(),
    run: Run = Run(),
) -> np.ndarray:
    """Sample `num` videos [num, f, h, w, c] in [-1, 1] from a given one's inversion.

    The inversion has no text and no guidance (Tune-A-Video, Wu et al. 2022,
    arXiv:2212.11565, section 3.3), and keeps the motion and the composition.
    run.progress counts the steps of the inversion, then those of the sampling.

    videos: [1, f, h, w, c] in [-1, 1], of the model's size.

    Raises:
      UserError: as `sample`, a video of another size, or a sampler but DDIM.
    """
    if settings.sampler != "ddim":
        raise UserError(
            f"sampler={settings.sampler!r}: an edit by inversion is sampled by ddim, "
            "whose inverse it starts from"
        )
    if videos.shape[1:] != model.video_shape:
        f, h, w, _ = model.video_shape
        raise UserError(
            f"an edit by inversion has the model's {f} frames of {h}x{w}, not "
            f"{videos.shape[1]} of {videos.shape[2]}x{videos.shape[3]}: give no "
            "--num_frames and no --tiles"
        )
    needed = {name for _, c in model.conditions for name in c.required}
    cond = {name: inputs.cond[name][:1] for name in needed & inputs.cond.keys()}
    noise = invert(
        model, params, videos, settings, cond=cond, at_end=True, mesh=run.mesh,
        progress=run.progress,
    )  # fmt: skip
    noise = np.broadcast_to(noise, (num, *noise.shape[1:]))
    inputs = dataclasses.replace(inputs, initial_noise=noise)
    return sample(model, params, num, settings, inputs, run)
