"""Classes of real clips by I3D, and seconds per clip.

    python -m experiments.i3d_classes.i3d_classes

A clip of 32 consecutive frames, cropped to the middle square, from every scene of the
clips of vdm_jax/data/clips.py that are installed. Prints the seconds for 16 frames in
batches of 1, 2 and 4, wall-clock and processor time, and the three most probable
classes of each clip. Writes i3d_classes.png of the clips in PICTURE, which have a
licence and show no person.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy import special

from vdm_jax import video_io
from vdm_jax.data import clips
from vdm_jax.errors import UserError
from vdm_jax.metrics import i3d

FRAMES = 32
SHOWN_SIDE = 96  # pixels of a frame in the picture
PICTURE = "bunny 50, trailer 271, trailer 866, trailer 1067, trailer 1163, city 42"


def scenes() -> list[tuple[str, np.ndarray]]:
    """Return name with first frame, and video uint8 [32, 224, 224, 3], per scene."""
    videos = []
    for name, footage in clips.FOOTAGE.items():
        if footage.asset.find() is None:
            print(f"{name} is not installed: left out", flush=True)
            continue
        info = video_io.probe(footage.asset.verified_path())
        for start, stop in footage.scenes or ((0, info.frames),):
            if stop - start >= FRAMES:
                first = (start + stop - FRAMES) // 2
                size = (i3d.SIZE, i3d.SIZE)
                numbers = range(first, first + FRAMES)
                video = video_io.read_frames(info, numbers, size)
                videos.append((f"{name} {first}", video_io.crop(video, size)))
    return videos


def class_names() -> list[str]:
    """Return the names of the 400 classes, in the order of the logits."""
    lines = Path(__file__).with_name("kinetics400.txt").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def top_classes(logits: np.ndarray, count: int = 3) -> str:
    """Return the most probable classes with their probabilities, as one line."""
    names = class_names()
    p = special.softmax(logits.astype(np.float64))
    order = np.argsort(-p)[:count]
    return ", ".join(f"{names[i]} {p[i]:.2f}" for i in order)


def seconds(params, batch: int, turns: int = 3) -> tuple[float, float]:
    """Return the least wall-clock and processor seconds per clip of 16 frames."""
    videos = np.zeros((batch, 16, 64, 64, 3), np.uint8)
    i3d.logits(params, videos, batch)  # compiles
    times = []
    for _ in range(turns):
        started = time.perf_counter(), time.process_time()
        i3d.logits(params, videos, batch)
        times.append(
            (time.perf_counter() - started[0], time.process_time() - started[1])
        )
    clock, processor = np.min(times, axis=0) / batch
    return clock, processor


def main() -> None:
    """Print times and classes, write the picture."""
    parser = argparse.ArgumentParser(description="Classes of real clips by I3D.")
    parser.add_argument("--out", default="experiments/i3d_classes/i3d_classes.png")
    args = parser.parse_args()
    try:
        params = i3d.load()
    except UserError as error:
        parser.error(str(error))
    for batch in (1, 2, 4):
        clock, processor = seconds(params, batch)
        print(
            f"batch {batch}: {clock:.1f} s a clip of 16 frames, {processor:.1f} s of "
            "processor time",
            flush=True,
        )
    shown, labels = [], []
    for name, video in scenes():
        label = f"{name}: {top_classes(i3d.logits(params, video[None])[0])}"
        print(label, flush=True)
        if name in PICTURE.split(", "):
            shown.append(video_io.resize(video, (SHOWN_SIDE, SHOWN_SIDE)))
            labels.append(label)
    video_io.write_sheet(args.out, shown, columns=6, labels=labels, overwrite=True)


if __name__ == "__main__":
    main()
