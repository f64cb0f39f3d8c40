"""Error of DDIM inversion followed by DDIM, on real clips.

    python -m experiments.inversion.inversion --workdir=models/shapes

Prints the root mean square difference from the clips, in pixels of [-1, 1], by the
number of steps, and the slope of its logarithm, which is -1 for a first-order method.
Writes inversion.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.metrics.tables import format_table

FILE = Path(__file__).with_suffix(".json")
STEPS = (16, 32, 64, 128, 256, 512)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="DDIM inversion, then DDIM.")
    parser.add_argument("--workdir", default="models/shapes")
    parser.add_argument("--num", type=int, default=32)
    args = parser.parse_args()
    loaded = runs.load(args.workdir)
    model, params, config = loaded.model, loaded.params, loaded.config
    source = data.open_source(config)
    batch = pipeline.held_out_batch(config, source, args.num)
    videos = np.asarray(model.normalize(batch["video"]))
    cond = {name: batch[name] for name in model.batch_arrays}
    rms, deviations = [], []
    for steps in STEPS:
        settings = sampling.Settings(
            sampler="ddim", steps=steps, clip_x=0.0, batch_size=args.num
        )
        z = sampling.invert(model, params, videos, settings, cond=cond)
        inputs = sampling.SamplingInputs(cond, initial_noise=z)
        samples = sampling.sample(model, params, args.num, settings, inputs)
        rms.append(float(np.sqrt(np.mean((samples - videos) ** 2))))
        deviations.append(float(z.std()))
        print(f"{steps} steps: {rms[-1]:.4f}; inverted noise has mean {z.mean():+.3f}, "
              f"deviation {deviations[-1]:.3f}", flush=True)  # fmt: skip
    slopes = np.diff(np.log(rms)) / np.diff(np.log(STEPS))
    rows = [
        [str(n), f"{r:.4f}", f"{slope:.2f}" if slope < 0 else "–"]
        for n, r, slope in zip(STEPS, rms, [0, *slopes], strict=True)
    ]
    print(format_table(["steps", "RMS", "slope"], rows))
    command = f"python -m experiments.inversion.inversion --workdir={args.workdir}"
    result = {
        "command": f"{command} --num={args.num}",
        "steps": STEPS,
        "rms": rms,
        "slopes": list(slopes),
        "deviation of the noise": deviations,
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
