"""Which output of the network lives through progressive distillation to one step?

    python -m experiments.prediction_types.prediction_types

Eight points on a circle, a little blurred, and a network of three layers with output v
or eps, each trained with the loss of its own output, then distilled from 32 steps to 1
with as many updates each. Printed for the students and for the teacher's DDIM is the
share of samples within three deviations of a point, and the energy distance to data (0
is the same; Szekely & Rizzo 2013). Where no signal is left an eps output says nothing
of x: it is shown with x clipped to [-1, 1], in the targets too, as v is here, and
without. Writes a JSON beside this.
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
KINDS = (("v", 1.0), ("eps", 1.0), ("eps", float("inf")))  # output, limit of |x|
START, BATCH, TEACHER, ROUND, NUM = 32, 512, 4000, 1000, 4000
RADIUS, DEVIATION, PLACES = 0.7, 0.04, 8


class Net(nn.Module):
    """Points as videos of one pixel and two channels, [b, 1, 1, 1, 2]; logsnr [b]."""

    @nn.compact
    def __call__(self, z, logsnr):
        waves = logsnr[:, None] / 20 * 2.0 ** jnp.arange(5)
        parts = [z.reshape(len(z), 2), jnp.sin(waves), jnp.cos(waves)]
        h = jnp.concatenate(parts, axis=1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(2)(h).reshape(z.shape)


def centres() -> jax.Array:
    """The places [PLACES, 2]."""
    angle = jnp.arange(PLACES) * 2 * jnp.pi / PLACES
    return RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def data(key: jax.Array, n: int) -> jax.Array:
    """Points as videos [n, 1, 1, 1, 2]."""
    which, blur = jax.random.split(key)
    x = centres()[jax.random.randint(which, (n,), 0, PLACES)]
    x = x + DEVIATION * jax.random.normal(blur, x.shape)
    return x.reshape(n, 1, 1, 1, 2)


def denoiser(params, output: str) -> process.Denoiser:
    """The network by its output."""

    def denoise(z, level, cond):
        logsnr = jnp.broadcast_to(jnp.asarray(level.logsnr, z.dtype), (len(z),))
        return process.PREDICTION_TYPES[output](
            Net().apply(params, z, logsnr), z, level
        )

    return denoise


def teacher_loss(params, output: str, key):
    """Of plain training."""
    x_key, noise_key, t_key = jax.random.split(key, 3)
    x = data(x_key, BATCH)
    t = losses.stratified_times(t_key, BATCH, x.dtype)
    level = schedules.noise_level_from_angle(SCHEDULE.angle(t))
    eps = jax.random.normal(noise_key, x.shape)
    z = process.diffuse(x, eps, level)
    target = process.velocity(process.Prediction(x, eps), level)
    found = process.velocity(denoiser(params, output)(z, level, None), level)
    return losses.weighted_v_loss(found - target, level, WEIGHTINGS[output]).mean()


def student_loss(params, output: str, key, teacher, n, limit):
    """Of a round to n steps."""
    x_key, noise_key, i_key = jax.random.split(key, 3)
    x = data(x_key, BATCH)
    at = distillation.student_step(
        SCHEDULE, distillation.sample_step_index(i_key, BATCH, n), n
    )
    level = schedules.noise_level_from_angle(at.start)
    z = process.diffuse(x, jax.random.normal(noise_key, x.shape), level)
    clipped = guidance.clip_x(denoiser(teacher, output), limit)
    target = distillation.progressive_target(clipped, SCHEDULE, z, at, None)
    student, weighting = denoiser(params, output), WEIGHTINGS[output]
    return distillation.student_loss(
        student, target, z, at.start, None, weighting
    ).mean()


@functools.partial(jax.jit, static_argnames=("output", "updates", "loss"))
def trained(params, key, output: str, updates: int, loss, *args):
    """`updates` of Adam whose rate falls to zero."""
    tx = optax.adam(optax.linear_schedule(1e-3, 0.0, updates))

    def body(i, carry):
        params, state = carry
        gradient = jax.grad(loss)(params, output, jax.random.fold_in(key, i), *args)
        change, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    return jax.lax.fori_loop(0, updates, body, (params, tx.init(params)))[0]


@functools.partial(jax.jit, static_argnames=("output", "n"))
def sample(params, output: str, n: int, limit) -> jax.Array:
    """DDIM in n steps from the same noise, [NUM, 2]."""
    sampler = samplers.ddim()
    table = samplers.pad_table(sampler.table(SCHEDULE, n), np.float32)
    z = jax.random.normal(jax.random.key(1), (NUM, 1, 1, 1, 2))
    denoise = guidance.clip_x(denoiser(params, output), limit)
    z, _ = samplers.sample_loop(
        sampler, denoise, sampler.init(z), table, 0, n, lambda i, d: 0, None
    )
    return z.reshape(NUM, 2)


def measure(x: jax.Array, real: jax.Array) -> dict[str, float]:
    """Share near a point, and the energy distance 2 E|x-y| - E|x-x'| - E|y-y'|."""

    def apart(a, b):
        return jnp.linalg.norm(a[:, None] - b, axis=-1)

    near = (apart(x, centres()).min(axis=1) < 3 * DEVIATION).mean()
    energy = 2 * apart(x, real).mean() - apart(x, x).mean() - apart(real, real).mean()
    return {"near": float(near), "energy": float(energy)}


def main() -> None:
    """Every kind, the teacher and every round."""
    real = data(jax.random.key(2), NUM).reshape(NUM, 2)
    other = data(jax.random.key(3), NUM).reshape(NUM, 2)
    rows: list[dict] = [{"kind": "real", "student": measure(other, real)}]
    for output, limit in KINDS:
        key, zeros = jax.random.key(0), jnp.zeros((1, 1, 1, 1, 2))
        first = Net().init(key, zeros, jnp.zeros(1))
        teacher = student = trained(first, key, output, TEACHER, teacher_loss)
        n = START
        while n > 1:
            n //= 2
            fresh, steps = jax.random.fold_in(key, n), jnp.int32(n)
            student = trained(
                student, fresh, output, ROUND, student_loss, student, steps, limit
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
    found = {
        "command": "python -m experiments.prediction_types.prediction_types",
        "rows": rows,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
