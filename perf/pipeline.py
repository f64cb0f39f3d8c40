"""What the data pipeline costs: beside bare decoding, and beside synthetic arrays.

    python -m perf.pipeline

One film, written with a keyframe at every frame, at every 12th, and at the start only.

- Alone: frames a second of the pipeline (random clips of 8 frames of 32x32, batches of
  4, in the order of training), over those of bare PyAV, which decodes the same file
  from its start, with as many threads as it likes, and shrinks every frame to the same
  size. Cold: the first pass, which decodes the files into the cache; warm: later ones.
- In training, with a warm cache: the step of perf/race.py at the peer's layout,
  on batches from the pipeline and on one synthetic array, step by step in turns.

Prints medians and writes perf/pipeline.json.
"""

import argparse
import json
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
from perf import race
from vdm_jax import data, video_io
from vdm_jax.data import clips, pipeline

HERE = Path(__file__).parent
_, BATCH, FRAMES, SIDE = race.SIZE.values()
KEYFRAMES = {"every frame": 1, "every 12th": 12, "the first only": 10_000}
ALONE, IN_TRAINING = 0.8, 1.05  # targets


def film(path: Path, keyframes: int) -> None:
    """The trailer of Big Buck Bunny at half its size, coded anew."""
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


def bare(path: Path) -> float:
    """Frames a second of PyAV alone, one pass."""
    started, count = time.perf_counter(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            small = frame.reformat(SIDE * frame.width // frame.height, SIDE, "rgb24")
            small.to_ndarray()
            count += 1
    return count / (time.perf_counter() - started)


def settings(path: Path, cache: Path) -> Any:
    """Clips of the race's setting out of the folder that holds the film."""
    config: Any = folder.get_config().unlock()
    config.video.update(frames=FRAMES, height=SIDE, width=SIDE)
    config.data.update(
        path=str(path.parent), cache_dir=str(cache), batch_size=BATCH, joint_image_frames=0,
        stride=1, flip=True,
    )  # fmt: skip
    return config


def rate(batches: pipeline.Batches, count: int) -> float:
    """Frames a second of that many batches."""
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH * FRAMES / (time.perf_counter() - started)


def alone(path: Path, turns: int) -> dict[str, float]:
    """Medians of frames a second: bare, and the pipeline cold and warm."""
    frames = video_io.probe(path).frames
    a_pass = frames // (BATCH * FRAMES)
    seen: dict[str, list[float]] = {"bare": [], "cold": [], "warm": []}
    for turn in range(turns):
        seen["bare"].append(bare(path))
        config = settings(
            path, path.parent.with_name(f"cache-{path.parent.name}-{turn}")
        )
        batches = pipeline.train_batches(config, data.open_source(config))
        seen["cold"].append(rate(batches, a_pass))
        seen["warm"].append(rate(batches, 5 * a_pass))
        batches.close()
    return {name: statistics.median(found) for name, found in seen.items()}


def in_training(path: Path, turns: int) -> dict[str, float]:
    """Median seconds of a step on synthetic arrays and on the pipeline's batches."""
    update, _, (state, frozen, synthetic, key), _ = race.programs("peer")
    compiled = update.lower(state, frozen, synthetic, key).compile()
    config = settings(path, path.parent.with_name("cache"))
    batches = pipeline.train_batches(config, data.open_source(config))
    rate(batches, 100)  # the cache is warm

    def timed(make) -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = compiled(state, frozen, {"video": make()}, key)
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
    about = {"machine": machine, "command": "python -m perf.pipeline"}
    rows = []

    def row(name: str, target: float, result: float, better: str) -> None:
        found = {"name": name, "target": target, "result": result, "better": better}
        rows.append(found | about)
        print(f"{name}: {result:.2f}, target {target}", flush=True)

    detail: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, keyframes in KEYFRAMES.items():
            path = Path(temporary) / str(keyframes) / "film.mp4"
            path.parent.mkdir()
            film(path, keyframes)
            found = detail[f"keyframes: {name}"] = alone(path, turns)
            print({kind: round(speed) for kind, speed in found.items()}, flush=True)
            over = f"pipeline, warm, over bare PyAV, keyframes: {name}"
            row(over, ALONE, found["warm"] / found["bare"], "higher")
        found = detail["seconds a step"] = in_training(path, turns)
        print({kind: round(seconds, 3) for kind, seconds in found.items()})
        ratio = found["pipeline"] / found["synthetic"]
        row("step on the pipeline over synthetic", IN_TRAINING, ratio, "lower")
    result = {"rows": rows, "detail": detail, "turns": turns, "setting": race.SIZE}
    (HERE / "pipeline.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
