"""Speed of the data pipeline, relative to plain decoding and to synthetic arrays.

    python -m perf.pipeline

One video, encoded with keyframes at every frame, at every 12th, and at the start only.

- Alone: frames per second of the pipeline (random clips of 8 frames of 32x32, batches
  of 4, in the order of training), over those of plain PyAV, which decodes the same file
  from its start, multithreaded, and resizes every frame to the same size. Cold is the
  first pass, which decodes the files into the cache; warm are later passes.
- In training, with a warm cache: the step of perf/steps.py in the vdp layout, on
  batches from the pipeline and on one synthetic array, alternating.

Prints medians and writes perf/pipeline.json.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from configs import folder
from perf import rows, steps
from vdm_jax import data, video_io
from vdm_jax.data import clips, pipeline

HERE = Path(__file__).parent
_, BATCH, FRAMES, SIDE = steps.SIZE.values()
KEYFRAMES = {"every frame": 1, "every 12th": 12, "the first only": 10_000}
ALONE, IN_TRAINING = 0.8, 1.05  # targets of the ratios


def write_video(path: Path, keyframes: int) -> None:
    """Encode the trailer of Big Buck Bunny at half its size."""
    info = video_io.probe(clips.FOOTAGE["trailer"].asset.verified_path())
    size = info.height // 2, info.width // 2
    with av.open(str(path), "w") as container:
        options = {"crf": "20", "preset": "medium", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = keyframes
        for frame in video_io.decode_frames(info, size=size):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def plain_rate(path: Path) -> float:
    """Return frames per second of PyAV alone, in one pass."""
    started, count = time.perf_counter(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            small = frame.reformat(SIDE * frame.width // frame.height, SIDE, "rgb24")
            small.to_ndarray()
            count += 1
    return count / (time.perf_counter() - started)


def settings(path: Path, cache: Path) -> Any:
    """Return a config of clips of perf/steps.py's size from the folder of a video."""
    config: Any = folder.get_config().unlock()
    config.video.update(frames=FRAMES, height=SIDE, width=SIDE)
    config.data.update(
        path=str(path.parent), cache_dir=str(cache), batch_size=BATCH,
        joint_image_frames=0, stride=1, flip=True,
    )  # fmt: skip
    return config


def rate(batches: pipeline.Batches, count: int) -> float:
    """Return frames per second of so many batches."""
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH * FRAMES / (time.perf_counter() - started)


def alone(path: Path, turns: int) -> dict[str, float]:
    """Return median frames per second of PyAV (bare) and of the pipeline."""
    frames = video_io.probe(path).frames
    a_pass = frames // (BATCH * FRAMES)
    seen: dict[str, list[float]] = {"bare": [], "cold": [], "warm": []}
    for turn in range(turns):
        seen["bare"].append(plain_rate(path))
        config = settings(
            path, path.parent.with_name(f"cache-{path.parent.name}-{turn}")
        )
        batches = pipeline.train_batches(config, data.open_source(config))
        seen["cold"].append(rate(batches, a_pass))
        seen["warm"].append(rate(batches, 5 * a_pass))
        batches.close()
    return {name: statistics.median(found) for name, found in seen.items()}


def in_training(path: Path, turns: int) -> dict[str, float]:
    """Return median seconds per step on synthetic arrays and on the pipeline."""
    update, _, (state, aux_params, synthetic, key), _ = steps.programs("vdp")
    compiled = update.lower(state, aux_params, synthetic, key).compile()
    config = settings(path, path.parent.with_name("cache"))
    batches = pipeline.train_batches(config, data.open_source(config))
    rate(batches, 100)  # fills the cache

    def timed(make) -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = compiled(state, aux_params, {"video": make()}, key)
        metrics["loss"].block_until_ready()
        return time.perf_counter() - started

    kinds = {
        "synthetic": lambda: synthetic["video"],
        "pipeline": lambda: next(batches)["video"],
    }
    seen: dict[str, list[float]] = {name: [] for name in kinds}
    for make in kinds.values():
        timed(make)
    for _ in range(5 * turns):
        for name, make in kinds.items():
            seen[name].append(timed(make))
    batches.close()
    return {name: statistics.median(found) for name, found in seen.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, CPU"
    about: dict[str, Any] = {
        "machine": machine,
        "command": f"python -m perf.pipeline --turns={turns}",
    }
    made = []
    detail: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, keyframes in KEYFRAMES.items():
            path = Path(temporary) / str(keyframes) / "film.mp4"
            path.parent.mkdir()
            write_video(path, keyframes)
            rates = detail[f"keyframes: {name}"] = alone(path, turns)
            print({kind: round(speed) for kind, speed in rates.items()}, flush=True)
            over = f"pipeline, warm, over bare PyAV, keyframes: {name}"
            ratio = rates["warm"] / rates["bare"]
            made.append(
                rows.make_row(over, ratio, target=ALONE, better="higher", **about)
            )
        times = detail["seconds a step"] = in_training(path, turns)
        print({kind: round(seconds, 3) for kind, seconds in times.items()})
        ratio = times["pipeline"] / times["synthetic"]
        name = "step on the pipeline over synthetic"
        row = rows.make_row(name, ratio, target=IN_TRAINING, better="lower", **about)
        made.append(row)
    for row in made:
        print(rows.format_row(row))
    out = HERE / "pipeline.json"
    rows.write(out, made, detail=detail, turns=turns, setting=steps.SIZE)


if __name__ == "__main__":
    main()
