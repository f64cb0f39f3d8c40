"""The compiled programs of sampling, and what decides that another one is compiled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdm_jax import sharding
from vdm_jax.conditions.base import Cond
from vdm_jax.diffusion import guidance as guiding
from vdm_jax.diffusion import samplers
from vdm_jax.diffusion.multidiffusion import average_windows, window_starts
from vdm_jax.diffusion.process import Denoiser, Prediction
from vdm_jax.diffusion.schedules import NoiseLevel
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.reconstruction import observation_residual
from vdm_jax.sampling.types import Observation, Wrap

# Numbers of the noise draws of a step; a sampler's own start at 0.
AUGMENTATION_DRAW = 1  # noise on a given video, next to the initial noise, 0
REPLACEMENT_DRAW = 8  # noise on known pixels, one draw per call
BRANCHES = (lambda both: both[0], lambda both: both[1])  # of (cond, uncond)


@dataclasses.dataclass(frozen=True)
class SamplerProgram:
    """What a compiled program is made for; all else is an argument of it."""

    model: DiffusionModel
    sampler: samplers.Sampler
    mesh: Mesh
    shape: tuple[int, int, int, int]  # (frames, height, width, channels) of z
    # (frames, height, width) of z in one call; less than those of shape: MultiDiffusion
    window: tuple[int, int, int]
    cfg_mode: str = ""  # "" without guidance
    clip_x: float = 0.0
    dynamic_threshold: float = 0.0
    uses_reconstruction: bool = False
    wrap: Wrap | None = None
    shared_noise: bool = False

    def noise(self, keys: jax.Array, step, draw, dtype=None) -> jax.Array:
        """Draw standard normal [b, *shape]; with shared_noise, the same in each frame.

        step, draw: as for `samplers.normal`.
        """
        if not self.shared_noise:
            return samplers.normal(keys, step, draw, self.shape, dtype)
        eps = samplers.normal(keys, step, draw, (1, *self.shape[1:]), dtype)
        return jnp.broadcast_to(eps, (*keys.shape, *self.shape))


def _with_guidance_embedding(
    model: DiffusionModel, denoise: Denoiser, weights: jax.Array
) -> Denoiser:
    """Condition a student on the step's guidance weight; it has one branch only."""

    def guided(z: jax.Array, level: NoiseLevel, cond) -> Prediction:
        w = jnp.broadcast_to(weights[level.step_index, 0, 0], z.shape[:1])
        return denoise(z, level, model.with_guidance_weight(cond, w))

    return guided


def _with_control_scales(denoise: Denoiser, scales: jax.Array) -> Denoiser:
    """Multiply the residuals of ControlNets by the step's scales [rows, controls]."""

    def controlled(z: jax.Array, level: NoiseLevel, cond) -> Prediction:
        return denoise(z, level, {**cond, "control_scales": scales[level.step_index]})

    return controlled


def _denoise_in_windows(program: SamplerProgram, denoise: Denoiser) -> Denoiser:
    """Denoise all of z in windows that overlap by half, each with its own videos."""
    window = program.window
    conditions = program.model.video_conditions

    def crop_cond(cond, start):
        for _, condition in conditions:
            cond = cond | condition.crop(cond, start, window)
        return cond

    starts = window_starts(program.shape[:3], window)
    return average_windows(denoise, window, starts, crop_cond)


def _with_branches(
    program: SamplerProgram, model: DiffusionModel, denoise: Denoiser, weights
) -> Denoiser:
    """Return a model's denoiser with classifier-free guidance.

    Its condition is that of both branches, (cond, uncond), which are evaluated in one
    call of twice the batch.
    """
    if "control_scales" in weights:
        denoise = _with_control_scales(denoise, weights["control_scales"])
    if model.guidance_range:
        denoise = _with_guidance_embedding(model, denoise, weights["guidance_weight"])
    if program.window != program.shape[:3]:
        denoise = _denoise_in_windows(program, denoise)
    if program.cfg_mode:
        combine = guiding.CFG_MODES[program.cfg_mode](weights["guidance_scale"])
        return guiding.branches(denoise, BRANCHES, combine)
    return lambda z, level, both: denoise(z, level, both[0])


def _guided_denoiser(
    program: SamplerProgram, params, observation, weights, noise
) -> Denoiser:
    """Wrap the network in every guidance, in the order that `guidance` says.

    observation: what is known of z, or None.
    """
    model = program.model

    def branches(part: DiffusionModel) -> Denoiser:
        return _with_branches(program, part, part.denoiser(params), weights)

    denoise = model.in_calls(branches)
    if program.uses_reconstruction:
        assert observation is not None
        w_r = guiding.snr_dependent_weight(*weights["reconstruction"])
        decode = functools.partial(model.codec.decode, params=params.get("codec"))
        residual = observation_residual(observation, decode)
        denoise = guiding.reconstruction_guidance(denoise, residual, w_r)
    if program.dynamic_threshold:
        denoise = guiding.dynamic_threshold(denoise, program.dynamic_threshold)
    elif program.clip_x:
        denoise = guiding.clip_x(denoise, program.clip_x)
    if observation is not None and observation.strength is not None:
        denoise = guiding.clean(denoise, observation.video, observation.strength)
    elif observation is not None:

        def replacement_noise(level: NoiseLevel) -> jax.Array:
            return noise(level.step_index, REPLACEMENT_DRAW + level.call)

        denoise = guiding.replace_known(
            denoise, observation.video, observation.mask, replacement_noise
        )
    return program.wrap(denoise, params) if program.wrap else denoise


@functools.partial(jax.jit, static_argnames="program", donate_argnames="carry")
def run_steps(
    params, conditions: tuple[Cond, Cond, Observation | None], keys, carry, table,
    start, stop, weights, *, program: SamplerProgram,
):  # fmt: skip
    """Run the sampler's rows start..stop for one batch; return the new carry.

    conditions: of the batch, those of its unconditional branch, and what is known.
    """
    keys, carry, (cond, uncond, observation) = sharding.constrain_batch(
        (keys, carry, conditions), program.mesh
    )
    dtype = carry[0].dtype

    def noise(i, draw):
        return program.noise(keys, i + 1, draw, dtype)

    denoise = _guided_denoiser(program, params, observation, weights, noise)
    with sharding.activation_rules(program.mesh):
        return samplers.sample_loop(
            program.sampler, denoise, carry, table, start, stop, noise, (cond, uncond)
        )


@functools.partial(jax.jit, static_argnames=("program", "name"))
def augment_video(keys, video, t, codec_params, *, name: str, program: SamplerProgram):
    """Return the arrays of a video condition for given videos, with noise of time t."""
    condition = program.model.condition(name)
    eps = samplers.normal(keys, 0, AUGMENTATION_DRAW, program.shape, video.dtype)
    times = jnp.broadcast_to(t.astype(video.dtype), video.shape[:1])
    return sharding.constrain_batch(
        condition.from_observation(video, times, eps, codec_params), program.mesh
    )


@functools.partial(jax.jit, static_argnames="program")
def init_carry(videos, initial_noise, seed, stage, block, *, program: SamplerProgram):
    """Return the videos' random keys, and the sampler's first carry.

    videos: numbers of the videos, int [b]. initial_noise: z to start from, or None for
    noise that the keys decide.
    """
    keys = samplers.video_keys(seed, stage, block, videos)
    z = program.noise(keys, 0, 0) if initial_noise is None else initial_noise
    return sharding.constrain_batch((keys, program.sampler.init(z)), program.mesh)
