"""Progressive distillation to one step of networks that predict v or eps.

    python -m experiments.prediction_types.prediction_types

The data are eight blurred points on a circle, the network has three layers and predicts
v or eps. Each is trained with its own loss, then distilled from 32 steps to 1 with as
many updates. Prints, for the students and for the teacher's DDIM, the fraction of
samples within three deviations of a point, and the energy distance to data (0 for equal
distributions; Szekely & Rizzo 2013). At t = 1, eps does not determine x, so eps is
measured with x clipped to [-1, 1], in the targets too, as v is, and without clipping.
Writes prediction_types.json.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vdm_jax.diffusion import (
    distillation,
    guidance,
    losses,
    process,
    samplers,
    schedules,
)

SCHEDULE = schedules.Cosine()
WEIGHTINGS = {"v": "snr_plus_one", "eps": "snr"}
KINDS = (("v", 1.0), ("eps", 1.0), ("eps", float("inf")))  # prediction, limit of |x|
START_STEPS, BATCH, NUM = 32, 512, 4000
TEACHER_UPDATES, ROUND_UPDATES = 4000, 1000
RADIUS, DEVIATION, NUM_POINTS = 0.7, 0.04, 8


class Net(nn.Module):
    """A network of points as videos [b, 1, 1, 1, 2], conditioned on logsnr [b]."""

    @nn.compact
    def __call__(self, z, logsnr):
        waves = logsnr[:, None] / 20 * 2.0 ** jnp.arange(5)
        parts = [z.reshape(len(z), 2), jnp.sin(waves), jnp.cos(waves)]
        h = jnp.concatenate(parts, axis=1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(2)(h).reshape(z.shape)


def centres() -> jax.Array:
    """Return the points without blur, [NUM_POINTS, 2]."""
    angle = jnp.arange(NUM_POINTS) * 2 * jnp.pi / NUM_POINTS
    return RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def data(key: jax.Array, n: int) -> jax.Array:
    """Return blurred points as videos [n, 1, 1, 1, 2]."""
    which, blur = jax.random.split(key)
    x = centres()[jax.random.randint(which, (n,), 0, NUM_POINTS)]
    x = x + DEVIATION * jax.random.normal(blur, x.shape)
    return x.reshape(n, 1, 1, 1, 2)


def denoiser(params, output: str) -> process.Denoiser:
    """Return the denoiser of a network by its prediction type."""

    def denoise(z, level, cond):
        logsnr = jnp.broadcast_to(jnp.asarray(level.logsnr, z.dtype), (len(z),))
        return process.PREDICTION_TYPES[output](
            Net().apply(params, z, logsnr), z, level
        )

    return denoise


def teacher_loss(params, output: str, key):
    """Return the loss of training a teacher."""
    x_key, noise_key, t_key = jax.random.split(key, 3)
    x = data(x_key, BATCH)
    t = schedules.stratified_times(t_key, BATCH, x.dtype)
    level = schedules.noise_level_from_angle(SCHEDULE.angle(t))
    eps = jax.random.normal(noise_key, x.shape)
    z = process.diffuse(x, eps, level)
    target = process.velocity(process.Prediction(x, eps), level)
    v = process.velocity(denoiser(params, output)(z, level, None), level)
    return losses.weighted_v_loss(v - target, level, WEIGHTINGS[output]).mean()


def student_loss(params, output: str, key, teacher, n, limit):
    """Return the loss of a round to n steps."""
    x_key, noise_key, i_key = jax.random.split(key, 3)
    x = data(x_key, BATCH)
    at = distillation.student_step(
        SCHEDULE, distillation.sample_step_index(i_key, BATCH, n), n
    )
    level = schedules.noise_level_from_angle(at.start)
    z = process.diffuse(x, jax.random.normal(noise_key, x.shape), level)
    clipped = guidance.clip_x(denoiser(teacher, output), limit)
    target = distillation.progressive_target(clipped, SCHEDULE, z, at, None)
    student = denoiser(params, output)
    weighting = WEIGHTINGS[output]
    return distillation.student_loss(
        student, target, z, at.start, None, weighting
    ).mean()


@functools.partial(jax.jit, static_argnames=("output", "updates", "loss"))
def trained(params, key, output: str, updates: int, loss, *args):
    """Return parameters after `updates` of Adam, whose rate falls to zero."""
    tx = optax.adam(optax.linear_schedule(1e-3, 0.0, updates))

    def body(i, carry):
        params, state = carry
        gradient = jax.grad(loss)(params, output, jax.random.fold_in(key, i), *args)
        change, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    return jax.lax.fori_loop(0, updates, body, (params, tx.init(params)))[0]


@functools.partial(jax.jit, static_argnames=("output", "n"))
def sample(params, output: str, n: int, limit) -> jax.Array:
    """Return samples of DDIM in n steps from fixed noise, [NUM, 2]."""
    sampler = samplers.ddim()
    table = samplers.pad_table(sampler.table(SCHEDULE, n), np.float32)
    z = jax.random.normal(jax.random.key(1), (NUM, 1, 1, 1, 2))
    denoise = guidance.clip_x(denoiser(params, output), limit)
    z, _ = samplers.sample_loop(
        sampler, denoise, sampler.init(z), table, 0, n, lambda i, d: 0, None
    )
    return z.reshape(NUM, 2)


def measure(x: jax.Array, real: jax.Array) -> dict[str, float]:
    """Return the fraction near a point and the energy distance.

    The energy distance is 2 E|x - y| - E|x - x'| - E|y - y'|.
    """

    def pair_distances(a, b):
        return jnp.linalg.norm(a[:, None] - b, axis=-1)

    near = (pair_distances(x, centres()).min(axis=1) < 3 * DEVIATION).mean()
    energy = 2 * pair_distances(x, real).mean() - pair_distances(x, x).mean()
    energy -= pair_distances(real, real).mean()
    return {"near": float(near), "energy": float(energy)}


def main() -> None:
    """Measure teachers and students of every kind, print, write."""
    real = data(jax.random.key(2), NUM).reshape(NUM, 2)
    other = data(jax.random.key(3), NUM).reshape(NUM, 2)
    rows: list[dict] = [{"kind": "real", "student": measure(other, real)}]
    for output, limit in KINDS:
        key = jax.random.key(0)
        zeros = jnp.zeros((1, 1, 1, 1, 2))
        first = Net().init(key, zeros, jnp.zeros(1))
        teacher = student = trained(first, key, output, TEACHER_UPDATES, teacher_loss)
        n = START_STEPS
        while n > 1:
            n //= 2
            round_key, steps = jax.random.fold_in(key, n), jnp.int32(n)
            args = student, steps, limit
            student = trained(
                student, round_key, output, ROUND_UPDATES, student_loss, *args
            )
            row = {
                "kind": output if limit == 1 else f"{output}, not clipped",
                "steps": n,
                "student": measure(sample(student, output, n, limit), real),
                "teacher": measure(sample(teacher, output, n, limit), real),
            }
            rows.append(row)
            print(row, flush=True)
    path = Path(__file__).with_suffix(".json")
    result = {
        "command": "python -m experiments.prediction_types.prediction_types",
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
