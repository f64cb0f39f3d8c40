"""The pictures of the README: each verb of sample.py, what is given beside what comes.

    python experiments/edit_gallery/edit_gallery.py

Writes docs/{extend,interpolate,inpaint,upscale}.gif. On the left what is given (grey where
nothing is), on the right what the model makes of it. The bouncing clip is a held-out
one; the real one is footage that models/clips was trained on. docs/cascade.gif has a
row for each prompt of cascades/shapes and a column for each of its stages.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax import video_io
from vdm_jax.data import bouncing, clips, shapes
from vdm_jax.runtime import path_type

GREY = 90
MADE = 3  # videos beside what is given


def run(out: Path, *flags: str) -> np.ndarray:
    """sample.py; its videos, uint8 [n, f, h, w, 3]."""
    command = [sys.executable, "sample.py", f"--num={MADE}", f"--out={out}", *flags]
    subprocess.run([*command, "--overwrite"], check=True)
    with np.load(out / "samples.npz") as arrays:
        return arrays["videos"]


def show(name: str, given: np.ndarray, made: np.ndarray, fps: float) -> None:
    """A gif with a column of what is given, then one each of what was made."""
    grid = video_io.video_grid(
        np.concatenate([given[None], made]), columns=1 + len(made)
    )
    scale = video_io.display_scale(*made.shape[2:4], short_side=96)
    path = Path("docs") / f"{name}.gif"
    video_io.write_gif(path, grid, fps, scale=scale, overwrite=True)
    print(path, flush=True)


def framed(made: np.ndarray, places) -> np.ndarray:
    """What is given of a video: those frames, grey between them."""
    given = np.full_like(made[0], GREY)
    given[places] = made[0, places]
    return given


def show_cascade(cascade: Path, out: Path) -> None:
    """A gif of every prompt's videos from stage to stage, all as large as the last."""
    flags = f"--cascade={cascade}", f"--prompts={cascade}/prompts.txt"
    command = [sys.executable, "sample.py", *flags, f"--out={out}", "--overwrite"]
    subprocess.run(command, check=True)
    about = json.loads((out / "samples.json").read_text())
    films = []
    for name in about["stages"]:
        place = out if name == about["stages"][-1] else out / name
        with np.load(place / "samples.npz") as arrays:
            films.append(arrays["videos"])
    for axis in (1, 2, 3):
        most = films[-1].shape[axis]
        films = [np.repeat(film, most // film.shape[axis], axis) for film in films]
    rows = np.stack(films, axis=1).reshape(-1, *films[-1].shape[1:])
    grid = video_io.video_grid(rows, columns=len(films))
    path = Path("docs") / "cascade.gif"
    video_io.write_gif(path, grid, about["fps"], scale=2, overwrite=True)
    print(path, flush=True)


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description="The pictures of the README.")
    parser.add_argument("--bouncing", default="models/bouncing")
    parser.add_argument("--out", type=path_type, default=Path("runs/verbs"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    show_cascade(Path("cascades/shapes"), args.out / "cascade")
    source = bouncing.Bouncing(shapes.Geometry(8, 16, 16), held_out=True)
    clip = args.out / "clip.mp4"
    video = source.load(41, np.random.default_rng(0), 8)["video"]
    video_io.write_video(clip, video, 8, overwrite=True)

    on = f"--workdir={args.bouncing}"
    made = run(args.out / "extend", on, f"--extend={clip}", "--num_frames=32")
    show("extend", framed(made, slice(0, 4)), made, 8)
    made = run(
        args.out / "interpolate", on, f"--interpolate={clip}", "--num_cond_frames=2"
    )
    show("interpolate", framed(made, [0, 7]), made, 8)

    real = clips.find_files(clips.parse_names("bunny"))[0]
    on = "--workdir=models/clips"
    height, width = video_io.probe(real).height, video_io.probe(real).width
    mask = np.zeros((height, width, 3), np.uint8)
    middle = slice(height // 4, 3 * height // 4), slice(width // 3, 2 * width // 3)
    mask[middle] = 255
    Image.fromarray(mask).save(args.out / "mask.png")
    mask_flag = f"--mask={args.out}/mask.png"
    made = run(args.out / "inpaint", on, f"--inpaint={real}", mask_flag)
    small, _ = video_io.read_image(args.out / "mask.png", made.shape[2:4])
    show("inpaint", np.where(small > 127, GREY, made[0]).astype(np.uint8), made, 12.5)

    low = video_io.read_clip(real, count=8, fps=12.5, size=(8, 8))
    large = video_io.read_clip(real, count=8, fps=12.5, size=(32, 32))

    def rms(videos: np.ndarray) -> float:
        return float(np.sqrt(np.mean((videos.astype(float) - large) ** 2)))

    flags = (on, f"--upscale={real}", "--downscale_factor=4")
    print(
        f"repeated pixels: RMS {rms(video_io.repeat_pixels(low, 4)):.1f} to the real film"
    )
    made = run(args.out / "upscale-2", *flags, "--reconstruction_weight=2")
    print(f"w_r = 2: RMS {rms(made):.1f}", flush=True)
    made = run(args.out / "upscale", *flags)
    print(f"w_r = 1: RMS {rms(made):.1f}", flush=True)
    show("upscale", video_io.repeat_pixels(low, 4), made, 12.5)


if __name__ == "__main__":
    main()
