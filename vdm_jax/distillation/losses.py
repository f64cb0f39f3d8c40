"""The two losses of distillation: of guidance, and of the number of steps."""

import jax

from vdm_jax.conditions.clean_frames import frame_weight
from vdm_jax.diffusion import distillation, guidance, process, schedules
from vdm_jax.model import DiffusionModel
from vdm_jax.training.step import LossFn


def guidance_distillation_loss(
    student: DiffusionModel, teacher: DiffusionModel, weighting: str
) -> LossFn:
    """Return the loss of guidance distillation (Meng et al. 2022, section 3.1).

    The target is v of both branches of the teacher, in one call of twice the batch. The
    guidance weight is drawn uniformly from the range of the student, the time uniformly
    from 0 to 1.

    The loss reads aux_params["teacher"]: the parameters of the teacher.
    """

    def loss_fn(params, aux_params, batch, key):
        time_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = prepare_student_batch(student, aux_params, batch, rest)
        t = student.schedule.training_times(time_key, x.shape[0], x.dtype)
        angle = student.schedule.angle(t)
        level = schedules.noise_level_from_angle(angle)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), level)
        combine = guidance.linear(lambda level: weight + 1)
        guided = guidance.cfg(
            teacher.denoiser(aux_params["teacher"]), teacher.unconditional, combine
        )
        target = process.velocity(guided(z, level, cond), level)
        cond = student.with_guidance_weight(cond, weight)
        loss = distillation.student_loss(
            student.denoiser(params), target, z, angle, cond, weighting,
            frame_weight(cond),
        )  # fmt: skip
        return loss.mean(), {}

    return loss_fn


def progressive_distillation_loss(
    model: DiffusionModel, weighting: str, double: bool, clip_x: float = 0.0
) -> LossFn:
    """Return the loss of progressive distillation (Salimans & Ho 2022, algorithm 2).

    The guidance weight of a model that takes one is drawn uniformly from its range.

    The loss reads aux_params["teacher"]: parameters of the same model;
    aux_params["steps"]: those of the student, int []; and aux_params["time_power"]: see
    `diffusion.distillation.sample_step_index`.

    Args:
      double: steps of twice the length, as the stochastic sampler takes them; see
        `diffusion.distillation.student_step`.
      clip_x: limit of the teacher's |x|, 0 for none. A teacher that predicts eps needs
        one: its x = (z - sigma eps) / alpha has no bound where alpha is near 0.
    """

    def loss_fn(params, aux_params, batch, key):
        step_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = prepare_student_batch(model, aux_params, batch, rest)
        if model.guidance_range:
            cond = model.with_guidance_weight(cond, weight)
        n = aux_params["steps"]
        i = distillation.sample_step_index(
            step_key, x.shape[0], n, aux_params["time_power"]
        )
        interval = distillation.student_step(model.schedule, i, n, double)
        level = schedules.noise_level_from_angle(interval.start)
        z = process.diffuse(x, jax.random.normal(noise_key, x.shape, x.dtype), level)
        teacher = model.denoiser(aux_params["teacher"])
        if clip_x:
            teacher = guidance.clip_x(teacher, clip_x)
        target = distillation.progressive_target(
            teacher, model.schedule, z, interval, cond
        )
        loss = distillation.student_loss(
            model.denoiser(params), target, z, interval.start, cond, weighting,
            frame_weight(cond),
        )  # fmt: skip
        return loss.mean(), {}

    return loss_fn


def prepare_student_batch(model: DiffusionModel, aux_params, batch, key):
    """Return videos, conditions with dropout, and guidance weights w = s - 1 [b]."""
    drop_key, weight_key = jax.random.split(key)
    codec_params = aux_params.get("codec")
    x, cond = model.prepare_batch(batch, drop_key, codec_params=codec_params)
    low, high = (scale - 1 for scale in model.guidance_range or (1.0, 1.0))
    weight = jax.random.uniform(weight_key, x.shape[:1], x.dtype, low, high)
    return x, cond, weight
