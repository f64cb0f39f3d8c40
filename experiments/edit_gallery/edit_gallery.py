"""The pictures of the README: inputs and outputs of each way to sample.

    python -m experiments.edit_gallery.edit_gallery

Writes docs/{extend,interpolate,inpaint,upscale}.gif: on the left the known pixels (grey
where there are none), on the right samples. The bouncing clip is a held-out one; the
real one is footage that models/clips was trained on. docs/cascade.gif has a row for
each prompt of cascades/shapes and a column for each of its stages.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax import video_io
from vdm_jax.data import bouncing, clips, shapes
from vdm_jax.evaluators.clips import read_sample_info, samples_folder
from vdm_jax.runtime import path_type

GREY = 90
NUM = 3  # samples next to the input


def run(out: Path, *flags: str) -> np.ndarray:
    """Run edit.py; return its videos, uint8 [n, f, h, w, 3]."""
    command = [sys.executable, "edit.py", f"--num={NUM}", f"--out={out}", *flags]
    subprocess.run([*command, "--overwrite"], check=True)
    with np.load(out / "samples.npz") as arrays:
        return arrays["videos"]


def show(name: str, known: np.ndarray, samples: np.ndarray, fps: float) -> None:
    """Write a gif with a column of the input, then one per sample."""
    videos = np.concatenate([known[None], samples])
    grid = video_io.video_grid(videos, columns=len(videos))
    scale = video_io.display_scale(*samples.shape[2:4], short_side=96)
    path = Path("docs") / f"{name}.gif"
    video_io.write_gif(path, grid, fps, scale=scale, overwrite=True)
    print(path, flush=True)


def known_frames(samples: np.ndarray, indices) -> np.ndarray:
    """Return a video with these frames of the first sample, the others grey."""
    known = np.full_like(samples[0], GREY)
    known[indices] = samples[0, indices]
    return known


def show_cascade(cascade: Path, out: Path) -> None:
    """Write a gif of every prompt's videos by stage, all at the size of the last."""
    flags = f"--cascade={cascade}", f"--prompts={cascade}/prompts.txt"
    command = [sys.executable, "sample.py", *flags, f"--out={out}", "--overwrite"]
    subprocess.run(command, check=True)
    about = read_sample_info(samples_folder(out))
    videos = []
    for name in about["stages"]:
        with np.load(out / name / "samples.npz") as arrays:
            videos.append(arrays["videos"])
    for axis in (1, 2, 3):
        size = videos[-1].shape[axis]
        videos = [np.repeat(v, size // v.shape[axis], axis) for v in videos]
    rows = np.stack(videos, axis=1).reshape(-1, *videos[-1].shape[1:])
    grid = video_io.video_grid(rows, columns=len(videos))
    path = Path("docs") / "cascade.gif"
    video_io.write_gif(path, grid, about["fps"], scale=2, overwrite=True)
    print(path, flush=True)


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description="The pictures of the README.")
    parser.add_argument("--bouncing", default="models/bouncing")
    parser.add_argument("--out", type=path_type, default=Path("runs/edit_gallery"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    show_cascade(Path("cascades/shapes"), args.out / "cascade")
    source = bouncing.bouncing_shapes(shapes.Geometry(8, 16, 16), held_out=True)
    clip = args.out / "clip.mp4"
    video = source.load(41, np.random.default_rng(0), 8)["video"]
    video_io.write_video(clip, video, 8, overwrite=True)

    model = f"--workdir={args.bouncing}"
    samples = run(args.out / "extend", model, f"--extend={clip}", "--num_frames=32")
    show("extend", known_frames(samples, slice(0, 4)), samples, 8)
    samples = run(
        args.out / "interpolate", model, f"--interpolate={clip}", "--num_cond_frames=2"
    )
    show("interpolate", known_frames(samples, [0, 7]), samples, 8)

    real = clips.find_files(clips.parse_names("bunny"))[0]
    model = "--workdir=models/clips"
    height, width = video_io.probe(real).height, video_io.probe(real).width
    mask = np.zeros((height, width, 3), np.uint8)
    middle = slice(height // 4, 3 * height // 4), slice(width // 3, 2 * width // 3)
    mask[middle] = 255
    Image.fromarray(mask).save(args.out / "mask.png")
    mask_flag = f"--mask={args.out}/mask.png"
    samples = run(args.out / "inpaint", model, f"--inpaint={real}", mask_flag)
    small, _ = video_io.read_image(args.out / "mask.png", samples.shape[2:4])
    known = np.where(small > 127, GREY, samples[0]).astype(np.uint8)
    show("inpaint", known, samples, 12.5)

    info = video_io.probe(real)
    numbers = video_io.FrameSelection(8, fps=12.5).frame_numbers(info, 0).tolist()
    low, large = (
        video_io.crop(video_io.read_frames(info, numbers, size), size)
        for size in ((8, 8), (32, 32))
    )

    def rms(videos: np.ndarray) -> float:
        return float(np.sqrt(np.mean((videos.astype(float) - large) ** 2)))

    flags = (model, f"--upscale={real}", "--downscale_factor=4")
    repeated = video_io.repeat_pixels(low, 4)
    print(f"repeated pixels: RMS {rms(repeated):.1f} to the real video")
    samples = run(args.out / "upscale-2", *flags, "--reconstruction_weight=2")
    print(f"w_r = 2: RMS {rms(samples):.1f}", flush=True)
    samples = run(args.out / "upscale", *flags)
    print(f"w_r = 1: RMS {rms(samples):.1f}", flush=True)
    show("upscale", repeated, samples, 12.5)


if __name__ == "__main__":
    main()
