"""Convergence order of samplers, by schedule.

    python -m experiments.sampler_order.sampler_order
    python -m experiments.sampler_order.sampler_order --gaussian

models/shapes with its default guidance, labels of held-out clips, the same noise for
all. Prints the root mean square difference, in pixels of [-1, 1], from the limit of the
same schedule, which is DPM-Solver++ in 512 steps, at equal NFE (Heun's sampler has two
per step). The order is the slope of the logarithm from one NFE to the next. Writes
images.json.

--gaussian measures Gaussian pixels with their exact denoiser instead, in float64: the
deviation of samples minus that of the known limit, relative to the data's. Writes
gaussian.json.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np

from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.diffusion import process, samplers, schedules

NFES = (8, 16, 32, 64)
LIMIT_STEPS = 512
SAMPLERS = [
    ("ddim", "cosine"),
    ("dpm", "cosine"),
    ("ddim", "karras"),
    ("dpm", "karras"),
    ("heun", "karras"),
]


STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)
SCHEDULES = {"cosine": schedules.Cosine(), "karras": schedules.Karras()}


def deviation(sampler: samplers.Sampler, schedule, steps: int, s: float) -> float:
    """Return the deviation of samples, linear in the noise, for data N(0, s^2)."""
    table = sampler.table(schedule, steps)

    def denoise(z, level, cond):
        variance = (level.alpha * s) ** 2 + level.sigma**2
        return process.from_x(level.alpha * s**2 / variance * z, z, level)

    carry = sampler.init(np.ones(1))
    for i in range(steps):
        row = {key: value[i] for key, value in table.items()}
        level = schedules.NoiseLevel(i, row["logsnr"], row["alpha"], row["sigma"])
        carry = sampler.step(denoise, carry, level, row, lambda draw: 0.0, None)
    return float(carry[0][0])


def gaussian() -> list[dict]:
    """Return the rows of --gaussian."""
    rows = []
    for s in (1.0, 0.5, 0.1):
        for sampler in ("ddim", "dpm", "heun"):
            for name, schedule in SCHEDULES.items():
                start = schedules.noise_level(schedule, np.ones(()))
                limit = s / np.hypot(start.alpha * s, start.sigma)
                built = samplers.SAMPLERS[sampler]()
                errors = [
                    abs(deviation(built, schedule, n, s) - limit) / s for n in STEPS
                ]
                row = {"sampler": sampler, "schedule": name, "deviation": s}
                orders = -np.diff(np.log2(errors))
                row |= {"steps": STEPS, "error": errors, "order": orders.tolist()}
                rows.append(row)
                print(
                    f"{s:g}, {sampler}, {name}:",
                    *(f"{error:.1e}" for error in errors),
                    "order",
                    *(f"{order:.2f}" for order in orders),
                )
    return rows


def write(name: str, result: dict, command: str) -> None:
    """Write NAME.json next to this file."""
    cores = len(os.sched_getaffinity(0))
    result |= {"machine": f"{platform.machine()}, {cores} cores, CPU"}
    result |= {"command": command}
    path = Path(__file__).parent / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gaussian", action="store_true")
    parser.add_argument("--workdir", default="models/shapes")
    parser.add_argument("--num", type=int, default=8)
    args = parser.parse_args()
    command = "python -m experiments.sampler_order.sampler_order"
    if args.gaussian:
        return write("gaussian", {"rows": gaussian()}, f"{command} --gaussian")
    loaded = runs.load(args.workdir)
    source = data.open_source(loaded.config)
    batch = pipeline.held_out_batch(loaded.config, source, args.num)
    cond = {name: batch[name] for name in loaded.model.batch_arrays}

    def sample(sampler: str, schedule: str, steps: int) -> np.ndarray:
        settings = sampling.Settings(
            steps=steps, sampler=sampler, sampling_schedule=schedule,
            batch_size=args.num,
            guidance_scale=loaded.config.sample.guidance_scale,
        )  # fmt: skip
        inputs = sampling.SamplingInputs(cond)
        return sampling.sample(loaded.model, loaded.params, args.num, settings, inputs)

    def rmse(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    limits = {name: sample("dpm", name, LIMIT_STEPS) for name in ("cosine", "karras")}
    between = rmse(limits["cosine"], limits["karras"])
    print(f"between the limits: {between:.4f}", flush=True)
    rows = []
    for sampler, schedule in SAMPLERS:
        nfe_per_step = 2 if sampler == "heun" else 1
        differences = [
            rmse(sample(sampler, schedule, nfe // nfe_per_step), limits[schedule])
            for nfe in NFES
        ]
        orders = -np.diff(np.log2(differences))
        rows.append(
            {
                "sampler": sampler, "schedule": schedule, "nfe": NFES,
                "difference": differences, "order": orders.tolist(),
            }
        )  # fmt: skip
        print(
            f"{sampler}, {schedule}:",
            *(
                f"{nfe} NFE {rms:.4f}"
                for nfe, rms in zip(NFES, differences, strict=True)
            ),
            "order",
            *(f"{order:.2f}" for order in orders),
            flush=True,
        )
    result = {"rows": rows, "between the limits": between, "videos": args.num}
    write("images", result, command)


if __name__ == "__main__":
    main()
