"""A folder of Stable Diffusion 1.5's size, read in place: time, memory and agreement.

    python -m experiments.sd_real_size.reference --folder=DIR   # torch, diffusers
    python -m experiments.sd_real_size.sd_real_size --folder=DIR

Two steps of DDIM at 512x512 from the noise of DIR.npz, without guidance, in float32.
Prints seconds, peak memory and the largest differences; writes sd_real_size.json.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import jax
import numpy as np

from experiments.sd_real_size.case import PROMPT, STEPS
from vdm_jax import cascade, runs, runtime, sampling
from vdm_jax.runtime import path_type

FILE = Path(__file__).with_suffix(".json")


def peak_gib() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=path_type, required=True)
    folder = parser.parse_args().folder
    theirs = np.load(folder.with_suffix(".npz"))
    rows: dict = {"command": f"python -m {__spec__.name} --folder=DIR"}

    def note(part: str, started: float) -> None:
        rows[f"{part}_seconds"] = round(time.perf_counter() - started, 1)
        rows[f"{part}_peak_gib"] = round(peak_gib(), 2)
        print(part, rows[f"{part}_seconds"], "s", rows[f"{part}_peak_gib"], "GiB")

    started = time.perf_counter()
    read = cascade.read_model(folder)
    cond, _ = cascade.encode_conditions(read, 1, prompts=[PROMPT])
    note("text", started)
    started = time.perf_counter()
    loaded = runs.load(folder)
    jax.block_until_ready(loaded.params)
    note("load", started)
    model, params = loaded.model, loaded.params
    rows["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
    settings = sampling.Settings(
        STEPS, "ddim", guidance_scale=1.0, clip_x=0.0, batch_size=1
    )
    noise = np.moveaxis(theirs["noise"], 1, -1)[:, None]
    inputs = sampling.SamplingInputs(cond, initial_noise=noise)
    started = time.perf_counter()
    z = sampling.generate(model, params, 1, settings, inputs)
    note("sample", started)
    started = time.perf_counter()
    video = model.codec.decode_on_host(z, params["codec"])
    note("decode", started)
    image = np.clip(video[:, 0] / 2 + 0.5, 0, 1)
    latents = np.moveaxis(theirs["latents"], 1, -1)[:, None]
    rows["latent_difference"] = float(abs(z - latents).max())
    rows["latent_deviation"] = float(latents.std())
    rows["image_difference"] = float(abs(image - theirs["image"]).max())
    rows["image_deviation"] = float(theirs["image"].std())
    rows["diffusers_seconds"] = round(float(theirs["seconds"]), 1)
    rows["diffusers_peak_gib"] = round(float(theirs["peak"]), 2)
    print(json.dumps(rows, indent=1))
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    runtime.configure_jax()
    main()
