"""Memory of encoding and decoding long videos of 256x256 pixels.

    python -m experiments.autoencoder.memory

In megabytes. `temporaries`: those of the compiled programs for 32 and for 256 frames,
of a whole video in one program. `processes`: the largest resident memory of a process
that streams a video through models/autoencoder and stores what was decoded, less the
video before and after. Writes memory.json.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import latents
from vdm_jax.sampling import to_uint8

FILE = Path(__file__).with_suffix(".json")
FOLDER = Path("models/autoencoder")
SIDE, LENGTHS = 256, (32, 256)
MEGABYTE = 1e6  # bytes


def temporaries() -> list[dict[str, float]]:
    """Return the temporaries of programs that encode and decode."""
    autoencoder, params = latents.load(FOLDER)
    spec = autoencoder.network.spec
    small = SIDE // spec.factor
    rows = []
    for frames in LENGTHS:
        video = jax.ShapeDtypeStruct((1, frames, SIDE, SIDE, 3), np.float32)
        z = jax.ShapeDtypeStruct((1, frames, small, small, spec.latent_channels), "f4")
        row = {"frames": frames}
        for name, argument in (("encode", video), ("decode", z)):
            program = jax.jit(getattr(autoencoder, name)).lower(params, argument)
            memory = program.compile().memory_analysis()
            assert memory is not None
            row[name] = memory.temp_size_in_bytes / MEGABYTE
        rows.append(row)
        print(row, flush=True)
    return rows


def stream(frames: int) -> dict[str, Any]:
    """Stream a video of noise through the autoencoder; return what it took."""
    autoencoder, params = latents.load(FOLDER)
    rng = np.random.default_rng(0)
    video = rng.random((frames, SIDE, SIDE, 3), np.float32)  # in [0, 1]
    decoded = np.empty(video.shape, np.uint8)
    started, at = time.perf_counter(), 0
    z = np.concatenate(list(autoencoder.stream_encode(params, video)))
    for part in autoencoder.stream_decode(params, z):
        decoded[at : at + len(part)] = to_uint8(part)
        at += len(part)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    stored = (video.nbytes + z.nbytes + decoded.nbytes) / MEGABYTE
    return {"frames": frames, "peak": peak, "stored": stored, "above": peak - stored,
            "seconds": seconds}  # fmt: skip


def main() -> None:
    """Measure, print, write; with a number of frames, measure this process alone."""
    if len(sys.argv) > 1:
        print(json.dumps(stream(int(sys.argv[1]))))
        return
    rows = []
    for frames in LENGTHS:
        command = [sys.executable, "-m", "experiments.autoencoder.memory", str(frames)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    command = "python -m experiments.autoencoder.memory"
    result = {"command": command, "temporaries": temporaries(), "processes": rows}
    result["peak of 256 frames over that of 32"] = rows[1]["above"] / rows[0]["above"]
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
