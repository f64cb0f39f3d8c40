"""Memory of a long ControlVideo.

    python -m experiments.control_video.memory

In megabytes: the largest resident memory of processes that make videos of 32 and of
128 frames of 64x64 by models/sprites and models/control, less the clip, its controls,
the latents and the video, which grow with the length. Four steps: more take no more
memory. Writes memory.json.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.control_video.control_video import read_controlled
from experiments.sprite_videos import parser
from vdm_jax import controls
from vdm_jax.sampling import Control, SamplingInputs, to_uint8
from vdm_jax.systems import Request, control_video

FILE = Path(__file__).with_suffix(".json")
LENGTHS = 32, 128
MEGABYTE = 1e6  # bytes


def sample(frames: int) -> dict[str, Any]:
    """Make a video that follows a clip of noise; return what it took."""
    flags = parser("control_video", 2, controlnet="models/control")
    image, _ = read_controlled(flags.parse_args(["--steps=4"]))
    height, width = image.trained.model.video_shape[1:3]
    size = frames, height, width, 3
    clip = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    hints = controls.control_video(clip, "luma")[None]
    cond = {**image.encode(["a rocket on a red background"]), "control_0": hints}
    request = Request(1, frames, SamplingInputs(cond, controls=(Control(1.0),)))
    options = control_video.Options()
    started = time.perf_counter()
    video = control_video.sample(image.trained, request, image.settings, options)
    seconds = time.perf_counter() - started
    latents = 4 * frames * int(np.prod(image.trained.model.shape[1:]))
    arrays = clip, hints, video, to_uint8(video)
    stored = (sum(array.nbytes for array in arrays) + latents) / MEGABYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
    return {"frames": frames, "peak": peak, "stored": stored, "above": peak - stored,
            "seconds": seconds}  # fmt: skip


def main() -> None:
    """Measure, print, write; with a number of frames, measure this process alone."""
    if len(sys.argv) > 1:
        print(json.dumps(sample(int(sys.argv[1]))))
        return
    rows = []
    for frames in LENGTHS:
        command = [sys.executable, "-m", "experiments.control_video.memory"]
        command.append(str(frames))
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    result = {
        "command": "python -m experiments.control_video.memory",
        "processes": rows,
        "peak of 128 frames over that of 32": rows[1]["above"] / rows[0]["above"],
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
