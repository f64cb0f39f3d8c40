"""How fast samplers come to the limit of many steps, by their noise levels.

    python -m experiments.sampler_order.sampler_order
    python -m experiments.sampler_order.sampler_order --gaussian

models/shapes, guided as it is by default, labels of held-out clips, one start for all:
root mean square difference, in pixels of [-1, 1], to the same levels' limit, which is
DPM-Solver++ in 512 steps, at equal numbers of network calls (Heun's sampler makes two a
step). The order is the slope of the logarithm from a row to the next. Prints the table;
writes experiments/sampler_order/images.json.

--gaussian: of Gaussian pixels and their exact denoiser instead, in float64: how far the
deviation of what comes out is from that of the limit, which is known, relative to the
data's (experiments/sampler_order/gaussian.json).
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

CALLS = (8, 16, 32, 64)
LIMIT = 512
ARMS = [
    ("ddim", "cosine"),
    ("dpm", "cosine"),
    ("ddim", "karras"),
    ("dpm", "karras"),
    ("heun", "karras"),
]


STEPS = (8, 16, 32, 64, 128, 256, 512, 1024)
LEVELS = {"cosine": schedules.Cosine(), "karras": schedules.Karras()}


def deviation(sampler: samplers.Sampler, schedule, steps: int, s: float) -> float:
    """Of what a sampler makes of noise, data being N(0, s^2): it is linear in it."""
    table = sampler.table(schedule, steps)

    def denoise(z, level, cond):
        spread = (level.alpha * s) ** 2 + level.sigma**2
        return process.from_x(level.alpha * s**2 / spread * z, z, level)

    carry = sampler.init(np.ones(1))
    for i in range(steps):
        row = {key: value[i] for key, value in table.items()}
        level = schedules.NoiseLevel(i, row["logsnr"], row["alpha"], row["sigma"])
        carry = sampler.step(denoise, carry, level, row, lambda draw: 0.0, None)
    return float(carry[0][0])


def gaussian() -> list[dict]:
    """Rows of --gaussian."""
    rows = []
    for s in (1.0, 0.5, 0.1):
        for sampler in ("ddim", "dpm", "heun"):
            for name, schedule in LEVELS.items():
                start = schedules.noise_level(schedule, np.ones(()))
                limit = s / np.hypot(start.alpha * s, start.sigma)
                made = samplers.SAMPLERS[sampler]()
                found = [
                    abs(deviation(made, schedule, n, s) - limit) / s for n in STEPS
                ]
                row = {"sampler": sampler, "schedule": name, "deviation": s}
                orders = -np.diff(np.log2(found))
                row |= {"steps": STEPS, "error": found, "order": orders.tolist()}
                rows.append(row)
                print(
                    f"{s:g}, {sampler}, {name}:",
                    *(f"{error:.1e}" for error in found),
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
    labels = pipeline.held_out_batch(loaded.config, source, args.num).get("label")

    def made(sampler: str, schedule: str, steps: int) -> np.ndarray:
        settings = sampling.Settings(
            steps=steps, sampler=sampler, sampling_schedule=schedule, batch_size=args.num,
            guidance_scale=loaded.config.sample.guidance_scale,
        )  # fmt: skip
        return sampling.sample(
            loaded.model, loaded.params, args.num, settings, cond={"label": labels}
        )

    def off(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    limits = {name: made("dpm", name, LIMIT) for name in ("cosine", "karras")}
    between = off(limits["cosine"], limits["karras"])
    print(f"between the limits: {between:.4f}", flush=True)
    rows = []
    for sampler, schedule in ARMS:
        each = 2 if sampler == "heun" else 1
        found = [
            off(made(sampler, schedule, calls // each), limits[schedule])
            for calls in CALLS
        ]
        orders = -np.diff(np.log2(found))
        rows.append(
            {
                "sampler": sampler, "schedule": schedule, "nfe": CALLS,
                "difference": found, "order": orders.tolist(),
            }
        )  # fmt: skip
        print(
            f"{sampler}, {schedule}:",
            *(
                f"{calls} calls {rms:.4f}"
                for calls, rms in zip(CALLS, found, strict=True)
            ),
            "order",
            *(f"{order:.2f}" for order in orders),
            flush=True,
        )
    result = {"rows": rows, "between the limits": between, "videos": args.num}
    write("images", result, command)


if __name__ == "__main__":
    main()
