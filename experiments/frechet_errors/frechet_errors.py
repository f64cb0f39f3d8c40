"""Coverage of intervals of two standard errors of a Frechet distance.

    python -m experiments.frechet_errors.frechet_errors

Gaussian features whose distances are known; 200 data sets per row, 50 for each of four
references. The true deviation and the mean, which the intervals should cover in .95 of
the cases, are estimated from 250 further sets per reference. `frechet_error` is
compared with the plain bootstrap. "equal": white features of one distribution. "apart":
variances 1 / i, another mean, 1.3 times the deviation. With 4 features per video, those
of a video are correlated. Prints rows as they are finished; writes frechet_errors.json.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np

from vdm_jax.metrics import frechet
from vdm_jax.metrics.kernel import kernel_distance

SIZES = [(d, n, 1) for d in (16, 64, 256) for n in (48, 100, 200)] + [(64, 48, 4)]
REFERENCES, SETS, FRESH_SETS = 4, 50, 250


def populations(kind: str, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and deviations of the features of a, and deviations of b."""
    if kind == "equal":
        return np.zeros(d), np.ones(d), np.ones(d)
    deviations = np.arange(1, d + 1) ** -0.5
    signs = np.where(np.arange(d) % 2, -1, 1)
    return 0.3 * deviations * signs, 1.3 * deviations, deviations


def expected_kernel(mean1, variance1, mean2, variance2) -> float:
    """Return E (x . y / d + 1)^3 of Gaussians with diagonal covariances."""
    dot = mean1 @ mean2
    d = len(mean1)
    second = (variance1 + mean1**2) @ (variance2 + mean2**2)
    second += dot**2 - (mean1**2) @ (mean2**2)
    third = dot**3 + 6 * (mean1 * variance1) @ (mean2 * variance2)
    single = variance2 @ mean1**2 + variance1 @ mean2**2 + variance1 @ variance2
    third += 3 * dot * single
    return float(1 + 3 * dot / d + 3 * second / d**2 + third / d**3)


def bootstrap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the deviation of the distance over videos drawn with replacement."""
    rng = np.random.default_rng(0)
    n = len(a)
    return float(
        np.std(
            [distance(a[rng.integers(n, size=n)], b) for _ in range(frechet.NUM_HALVES)]
        )
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance of features [n, k, d]."""
    return frechet.frechet_of_features(*(x.reshape(-1, x.shape[-1]) for x in (a, b)))


def covered(values: np.ndarray, errors: np.ndarray, mean: float) -> list[bool]:
    """Return whether intervals of 1.96 standard errors cover the mean."""
    return (np.abs(values - mean) <= 1.96 * errors).tolist()


def true_distances(mean, deviations, reference_deviations) -> dict[str, float]:
    """Return both distances of the populations."""
    variance1, variance2 = deviations**2, reference_deviations**2
    first, second = (mean, variance1), (0 * mean, variance2)
    kernels = [
        expected_kernel(*x, *y)
        for x, y in ((first, first), (second, second), (first, second))
    ]
    distance = mean @ mean + ((deviations - reference_deviations) ** 2).sum()
    return {
        "true distance": float(distance),
        "true kernel": kernels[0] + kernels[1] - 2 * kernels[2],
    }


def measure(kind: str, d: int, n: int, k: int) -> dict:
    """Return a row."""
    rng = np.random.default_rng([d, n, k])
    mean, deviations, reference_deviations = populations(kind, d)

    def draw(mean, deviations) -> np.ndarray:
        if k == 1:
            return mean + deviations * rng.standard_normal((n, 1, d))
        shared, own = rng.standard_normal((n, 1, d)), rng.standard_normal((n, k, d))
        return mean + deviations * (0.95**0.5 * shared + 0.05**0.5 * own)

    coverage: dict[str, list] = {}
    ratios: dict[str, list] = {}
    means: dict[str, list] = {}
    for _ in range(REFERENCES):
        b = draw(np.zeros(d), reference_deviations)
        fresh = [draw(mean, deviations) for _ in range(FRESH_SETS)]
        fresh_values = {
            "distance": np.array([distance(a, b) for a in fresh]),
            "infinite": np.array([frechet.frechet_infinity(a, b, 2) for a in fresh]),
            "kernel": np.array([kernel_distance(a, b)[0] for a in fresh]),
        }
        sets = [draw(mean, deviations) for _ in range(SETS)]
        values = np.array([distance(a, b) for a in sets])
        infinite = np.array([frechet.frechet_infinity(a, b) for a in sets])
        errors = np.array([frechet.frechet_error(a, b) for a in sets])
        kernel, kernel_errors = np.array([kernel_distance(a, b) for a in sets]).T
        measured = {
            "distance": (fresh_values["distance"], values, errors),
            "bootstrap": (
                fresh_values["distance"], values,
                np.array([bootstrap(a, b) for a in sets]),
            ),
            "infinite": (fresh_values["infinite"], infinite, errors),
            "kernel": (fresh_values["kernel"], kernel, kernel_errors),
        }  # fmt: skip
        for name, (others, own, error) in measured.items():
            # The fresh sets' extrapolation uses fewer halves, so it varies more.
            deviation = np.std(own if name == "infinite" else others)
            ratios.setdefault(name, []).append(np.mean(error) / deviation)
            coverage.setdefault(name, []).extend(covered(own, error, np.mean(others)))
            means.setdefault(name, []).append(np.mean([*others, *own]))
    return {
        "kind": kind, "d": d, "n": n, "k": k,
        **true_distances(mean, deviations, reference_deviations),
        **{f"mean {name}": float(np.mean(x)) for name, x in means.items()
           if name != "bootstrap"},
        **{f"{name} error over deviation": float(np.mean(x))
           for name, x in ratios.items()},
        **{f"{name} coverage": float(np.mean(x)) for name, x in coverage.items()},
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    rows = []
    for kind in ("equal", "apart"):
        for d, n, k in SIZES:
            rows.append(row := measure(kind, d, n, k))
            print(", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}"
                            for name, x in row.items()), flush=True)  # fmt: skip
    result = {
        "rows": rows,
        "data sets": REFERENCES * SETS,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU",
        "command": "python -m experiments.frechet_errors.frechet_errors",
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
