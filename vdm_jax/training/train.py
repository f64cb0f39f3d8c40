"""Training, from a config to a finished run: reads downwards."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vdm_jax import data, sampling, sharding
from vdm_jax import model as models
from vdm_jax.data import pipeline
from vdm_jax.diffusion import losses, schedules
from vdm_jax.training import optimizer as optim
from vdm_jax.training import step as steps

BANDS = ((-20.0, -5.0), (-5.0, 0.0), (0.0, 5.0), (5.0, 20.0))  # of logsnr


def make_validation(model: models.Model):
    """(params, batch) -> loss in each band of logsnr, with the same noise every time."""

    @jax.jit
    def validate(params, batch):
        x = model.encode(batch["video"])
        cond = model.conditions(batch)
        out = {}
        for i, (low, high) in enumerate(BANDS):
            time_key, noise_key = jax.random.split(jax.random.key(i))
            spread = losses.stratified_times(time_key, x.shape[0], x.dtype)
            t = model.schedule.time(low + (high - low) * spread)
            step = schedules.step_at(model.schedule, t)
            eps = jax.random.normal(noise_key, x.shape, x.dtype)
            loss, _ = losses.diffusion_loss(model.denoiser(params), x, eps, step, cond)
            out[f"val/loss_{low:+.0f}_{high:+.0f}"] = loss.mean()
        return out

    return validate
