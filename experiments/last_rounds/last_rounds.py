"""Alternatives to the last rounds of progressive distillation, at equal cost.

    python -m experiments.last_rounds.last_rounds --workdir=runs/distilled

From the student of eight steps to students of n = 4, 2 and 1 steps:

- progressive: the rounds of the workdir, each halving the number of steps;
- trajectory: directly from the student of eight steps, 8 / n of whose steps are one of
  the new student's;
- consistency: from each of the eight points one step of the student of eight steps,
  then the new student's own jump to the end of its step, without gradient (Song et al.
  2023; several steps as in Heek et al. 2024).

Budgets are equal: as many network passes as the progressive rounds took, where a
forward pass counts 1 and an update 3. Prints the table and writes last_rounds.json.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.diffusion import distillation, process, schedules
from vdm_jax.distillation.losses import prepare_student_batch
from vdm_jax.evaluators.distillation_page import COLUMNS as SCORE_COLUMNS
from vdm_jax.evaluators.distillations import MAX_STEPS, row_scores
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.runtime import path_type
from vdm_jax.training import optimizer as optim
from vdm_jax.training import step as steps

POINTS = 8
FORWARD, UPDATE = 1, 3  # network passes
SCORES = (
    "all_attributes",
    "template_mse",
    "position_std",
    "frame_fd",
    "motion_fd",
    "rmse_to_teacher",
)
COLUMNS = {
    "row": ("", ""),
    "updates": ("updates", ",d"),
    "training": ("s", ".0f"),
    **{key: SCORE_COLUMNS[key] for key in SCORES},
}


def trajectory(model, teacher, params, x, cond, n: int, keys):
    """Return (z, angle, target) of POINTS / n steps of the teacher as one."""
    del params
    i = distillation.sample_step_index(keys[0], x.shape[0], n)
    angles = [
        jnp.where(j == 0, 0.0, model.schedule.angle(j / POINTS))
        for j in (i * (POINTS // n) - k for k in range(POINTS // n + 1))
    ]
    z = _noisy(keys[1], x, angles[0])
    z_i = z
    denoise = model.denoiser(teacher)
    for angle, next_angle in zip(angles, angles[1:], strict=False):
        level = schedules.noise_level_from_angle(angle)
        v = process.velocity(denoise(z_i, level, cond), level)
        z_i = distillation.rotate(z_i, v, angle - next_angle)
    turn = process.append_dims(angles[0] - angles[-1], z)
    return z, angles[0], (jnp.cos(turn) * z - z_i) / jnp.sin(turn)


def consistency(model, teacher, params, x, cond, n: int, keys):
    """Return (z, angle, target) of one teacher step and the student's own jump."""
    j = distillation.sample_step_index(keys[0], x.shape[0], POINTS)
    length = POINTS // n

    def angle(k):
        return jnp.where(k == 0, 0.0, model.schedule.angle(k / POINTS))

    at = distillation.StudentStep(
        angle(j), angle(j - 1), angle((j - 1) // length * length)
    )
    z = _noisy(keys[1], x, at.start)

    def v(params, z, angle):
        level = schedules.noise_level_from_angle(
            jnp.maximum(angle, model.schedule.angle(0.0))
        )
        return process.velocity(model.denoiser(params)(z, level, cond), level)

    first = v(teacher, z, at.start)
    second = v(params, distillation.rotate(z, first, at.start - at.middle), at.middle)
    return z, at.start, distillation.merge_two_ddim_steps(z, first, second, at)


def _noisy(key, x, angle):
    level = schedules.noise_level_from_angle(angle)
    return process.diffuse(x, jax.random.normal(key, x.shape, x.dtype), level)


def num_updates(method: str, n: int, rounds: list[dict]) -> int:
    """Return the updates that cost what the progressive rounds to n steps cost."""
    progressive = sum(row["updates"] for row in rounds if n <= row["steps"] < POINTS)
    each = {"trajectory": POINTS // n * FORWARD, "consistency": 2 * FORWARD}[method]
    return round(progressive * (UPDATE + 2 * FORWARD) / (UPDATE + each))


def train(method: str, n: int, loaded, count: int, seed: int):
    """Return parameters of a student of n steps after `count` updates, and seconds."""
    model, teacher, config = loaded.model, loaded.params, loaded.config
    target = {"trajectory": trajectory, "consistency": consistency}[method]

    def loss_fn(params, aux_params, batch, key):
        step_key, noise_key, rest = jax.random.split(key, 3)
        x, cond, weight = prepare_student_batch(model, aux_params, batch, rest)
        if model.guidance_range:
            cond = model.with_guidance_weight(cond, weight)
        keys = step_key, noise_key
        z, angle, v = target(model, aux_params, params, x, cond, n, keys)
        loss = distillation.student_loss(model.denoiser(params), v, z, angle, cond)
        return loss.mean(), {}

    tx, rate = optim.make_optimizer(config.train), optim.learning_rate(config.train)
    step = jax.jit(
        steps.make_step(
            loss_fn, tx, lambda number, aux_params: rate(number, count), 0.0
        ),
        donate_argnums=0,
    )
    state = steps.init_state(jax.tree.map(jnp.copy, teacher), tx, False)
    source = data.open_source(config)
    batches = pipeline.train_batches(config, source)
    key = jax.random.key(seed)
    started = 0.0
    for number in range(count):
        batch = next(batches)
        batch = {name: jnp.asarray(batch[name]) for name in ("video", "label")}
        state, _ = step(state, teacher, batch, key)
        if number == 0:
            jax.block_until_ready(state)
            started = time.perf_counter()
    jax.block_until_ready(state)
    batches.close()
    return state.params, time.perf_counter() - started


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=path_type, required=True)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    out = Path(__file__).with_suffix(".json")
    parser.add_argument("--out", type=path_type, default=out)
    return parser.parse_args()


def main() -> None:
    """Measure every method, print, write."""
    args = arguments()
    rounds = json.loads((args.workdir / runs.ROUNDS_FILE).read_text())
    path = {row["steps"]: args.workdir / row["path"] for row in rounds}
    stored = json.loads((args.workdir / runs.DISTILLATION_FILE).read_text())
    eight, teacher = runs.load(path[POINTS]), runs.load(stored["teacher"])
    source = data.open_source(eight.config)
    held_out = pipeline.held_out_batch(eight.config, source, args.num)

    def sample(loaded, params, n: int) -> np.ndarray:
        own = sampling.Settings.from_config(loaded.config.sample)
        settings = dataclasses.replace(own, sampler="ddim", steps=n)
        inputs = sampling.SamplingInputs({"label": held_out["label"]})
        videos = sampling.sample(
            loaded.model, params, args.num, settings, inputs,
            sampling.Run(args.seed),
        )  # fmt: skip
        return sampling.to_uint8(videos)

    reference = sample(teacher, teacher.params, MAX_STEPS)
    rows = []

    def add(method: str, n: int, count: int, seconds: float, videos) -> None:
        row = {"row": f"{method}, {n} steps", "updates": count, "training": seconds}
        rows.append(row | row_scores(videos, reference, held_out, eight.config.data))
        print(rows[-1], flush=True)

    add("student", POINTS, 0, 0.0, sample(eight, eight.params, POINTS))
    for n in (4, 2, 1):
        own = [row for row in rounds if n <= row["steps"] < POINTS]
        student = runs.load(path[n])
        add(
            "progressive",
            n,
            sum(row["updates"] for row in own),
            sum(row["seconds"] for row in own),
            sample(student, student.params, n),
        )
        for method in ("trajectory", "consistency"):
            count = num_updates(method, n, rounds)
            params, seconds = train(method, n, eight, count, args.seed)
            add(method, n, count, seconds, sample(eight, params, n))
    print(format_table(*format_cells(rows, COLUMNS)))
    report = {
        "rows": rows,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        "command": shlex.join(
            ["python", "-m", "experiments.last_rounds.last_rounds", *sys.argv[1:]]
        ),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
