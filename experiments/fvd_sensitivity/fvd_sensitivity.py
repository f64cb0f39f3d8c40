"""FVD of real clips against themselves with increasing distortions.

    python -m experiments.fvd_sensitivity.fvd_sensitivity

Clips of 16 frames at 64x64 from the footage of configs/clips.py, against themselves in
five strengths of blur, of noise and of shuffled frames, and with time reversed. FVD
should be 0 without distortion and rise with its strength. Features are cached, so an
interrupted run resumes. Prints the table; writes fvd_sensitivity.json, and doses.png
with one clip in every distortion and the FVD of all clips.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from configs import clips
from vdm_jax import data, video_io
from vdm_jax.errors import UserError
from vdm_jax.evaluators.clips import TRAINING_CLIPS, training_clips
from vdm_jax.metrics import i3d, perceptual
from vdm_jax.metrics.video_arrays import to_float64, unique_videos

HERE = Path(__file__).parent
FRAMES, SIDE = 16, 64


def real(num: int) -> np.ndarray:
    """Return distinct clips of all scenes, uint8 [num, FRAMES, SIDE, SIDE, 3]."""
    config: Any = clips.get_config().unlock()
    config.video.update(frames=FRAMES, height=SIDE, width=SIDE)
    config.data.update(stride=1, flip=False)
    source = data.open_source(config)
    videos = unique_videos(training_clips(config, source, TRAINING_CLIPS))
    if len(videos) < num:
        raise UserError(f"--num={num}: there are {len(videos)} clips that differ")
    return videos[np.random.default_rng(0).permutation(len(videos))[:num]]


def blurred(videos: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of sigma pixels."""
    return ndimage.gaussian_filter(videos, (0, 0, sigma, sigma, 0), mode="nearest")


def noisy(videos: np.ndarray, sigma: float) -> np.ndarray:
    """Add normal noise of deviation sigma, for pixels in [-1, 1]."""
    noise = np.random.default_rng(0).normal(0, sigma, videos.shape)
    return videos + noise


def shuffled(videos: np.ndarray, fraction: float) -> np.ndarray:
    """Permute a fraction of each clip's frames cyclically, drawn per clip."""
    rng = np.random.default_rng(0)
    videos = videos.copy()
    for video in videos:
        moved = rng.permutation(FRAMES)[: round(fraction * FRAMES)]
        video[moved] = video[np.roll(moved, 1)]
    return videos


KINDS = {
    "blur, pixels": (blurred, (0.5, 1, 2, 4, 8)),
    "noise": (noisy, (0.05, 0.1, 0.2, 0.4, 0.8)),
    "frames out of order": (shuffled, (0.125, 0.25, 0.5, 0.75, 1)),
    "backwards": (lambda videos, _: videos[:, ::-1], (1,)),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=32)
    args = parser.parse_args()
    networks = perceptual.PerceptualNetworks()
    try:
        networks.check()
        videos = real(args.num)
    except UserError as error:
        parser.error(str(error))
    pixels = to_float64(videos)
    reference = networks.i3d_logits("doses", videos)
    rows, strips, labels = [], [videos[0]], ["undistorted: FVD 0"]
    for kind, (distort, doses) in KINDS.items():
        for dose in doses:
            distorted = perceptual.to_uint8_rgb(distort(pixels, dose))
            logits = networks.i3d_logits(f"{kind} {dose}", distorted)
            fvd = i3d.fvd(logits, reference)
            rows.append({"name": kind, "dose": dose, "fvd": fvd})
            strips.append(distorted[0])
            label = f"{kind} {dose:g}" if len(doses) > 1 else kind
            labels.append(f"{label}: FVD {fvd:.0f}")
            print(labels[-1], flush=True)
    itself = i3d.fvd(reference, reference)
    print(f"undistorted: {itself:.1e}")
    result = {
        "rows": rows,
        "itself": itself,
        "clips": args.num,
        "frames": FRAMES,
        "size": f"{SIDE}x{SIDE}",
        "protocol": i3d.PROTOCOL,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU",
        "command": "python -m experiments.fvd_sensitivity.fvd_sensitivity",
    }
    (HERE / "fvd_sensitivity.json").write_text(json.dumps(result, indent=1) + "\n")
    picture = HERE / "doses.png"
    video_io.write_sheet(picture, strips, 4, labels, scale=1, overwrite=True)


if __name__ == "__main__":
    main()
