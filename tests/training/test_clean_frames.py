"""A model that training gives frames learns to use them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax import sampling
from vdm_jax.conditions.clean_frames import CleanFrames
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.diffusion import schedules
from vdm_jax.diffusion.time_sampling import LogNormal
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import Observation, SamplingInputs, Settings
from vdm_jax.training.step import make_loss

FRAMES, STEPS, BATCH = 4, 800, 64


class Mixer(nn.Module):
    """An MLP of each frame, which reads a weighted mean of all frames."""

    @nn.compact
    def __call__(self, z, inputs, train=False):
        vector = nn.Dense(64)(inputs.vector)
        vector = vector[:, None] if vector.ndim == 2 else vector
        x = nn.gelu(nn.Dense(64)(z.reshape(*z.shape[:2], -1)) + vector)
        weight = nn.softmax(nn.Dense(64)(x), axis=1)
        mean = (weight * nn.Dense(64)(x)).sum(1, keepdims=True)
        x = nn.gelu(nn.Dense(64)(jnp.concatenate([x, mean.repeat(FRAMES, 1)], -1)))
        return nn.Dense(z.shape[-1])(x).reshape(z.shape)


def flow_model():
    """A rectified flow of one pixel."""
    rows = (("clean_frames", CleanFrames((("first", 0.4), ("last", 0.4)))),)
    return DiffusionModel(
        Mixer(),
        ConditioningEncoder(16, 1, rows),
        schedules.Flow(),
        LogNormal(),
        (FRAMES, 1, 1, 1),
        conditions=rows,
        prediction_type="flow",
    )


def train(model):
    """Return parameters after STEPS updates on clips of one grey each, of 0..255."""
    gradient = jax.value_and_grad(make_loss(model, "flow"), has_aux=True)
    optimizer = optax.adam(3e-3)
    params = model.init(jax.random.key(0))

    def update(state, key):
        params, opt_state = state
        grey = jax.random.randint(key, (BATCH, 1, 1, 1, 1), 0, 256).astype(jnp.uint8)
        batch = {"video": jnp.tile(grey, (1, FRAMES, 1, 1, 1))}
        (loss, _), grads = gradient(params, {}, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    keys = jax.random.split(jax.random.key(1), STEPS)
    state = params, optimizer.init(params)
    (params, _), losses = jax.jit(lambda s, k: jax.lax.scan(update, s, k))(state, keys)
    assert losses[-50:].mean() < 0.7 * losses[:50].mean()
    return params


def test_generated_frames_continue_the_given_one():
    """Forward and backward, by one model; without a given frame clips have any grey."""
    model, num = flow_model(), 32
    params = train(model)
    settings = Settings(sampler="ddim", steps=16, batch_size=num)
    greys = np.linspace(-0.9, 0.9, num, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    video = np.tile(greys, (1, FRAMES, 1, 1, 1))
    for frame in (0, FRAMES - 1):
        mask = np.zeros(video.shape, bool)
        mask[:, frame] = True
        inputs = SamplingInputs(observation=Observation(video, mask))
        made = sampling.sample(model, params, num, settings, inputs)
        assert abs(made - video).mean() < 0.1
    free = sampling.sample(model, params, num, settings)
    assert abs(free - video).mean() > 0.4
    assert free.std(1).mean() < 0.15 and free.mean(1).std() > 0.35
