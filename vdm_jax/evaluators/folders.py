"""Anybody's videos, measured beside real ones: two folders of files, no model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import folder
from vdm_jax.errors import UserError
from vdm_jax.evaluators import models
from vdm_jax.files import make_folder
from vdm_jax.metrics import protocol as protocols
from vdm_jax.metrics import statistics
from vdm_jax.metrics.perceptual import Networks
from vdm_jax.metrics.protocol import Protocol
from vdm_jax.report import page
from vdm_jax.video_io import cache
from vdm_jax.video_io.sandbox import Guard

LARGE = 224  # pixels, which is what the networks see; larger frames cost memory only
SLOW = 8.0  # frames a second in the page, for videos without a clock


def read(
    path: Path,
    num: int,
    frames: int,
    stride: int,
    size: tuple[int, int] | None,
    seed: int = 0,
) -> tuple[np.ndarray, str, float]:
    """(uint8 [n, f, h, w, 3], how they were encoded, frames a second of the first):
    one clip of each video.

    From the first frame on, n at most `num`, drawn by the seed from all of them. size:
    (h, w) to cover and to cut the middle out of; None for the size of the first video,
    shrunk to LARGE at most.
    """
    if (path / models.SAMPLES).is_file():
        videos = _read_samples(path, num, frames, stride, size)
        described = (path / "samples.json").is_file()
        fps = models.told(path)["fps"] if described else SLOW
        return videos, "pixels", fps / stride
    shape, guard = folder.ClipShape(frames, 1, 1, stride=stride), Guard()
    files, found = folder.scan(
        str(path), shape, cache.IndexStore(cache.default_folder()), guard
    )
    for line in found.lines()[1:]:
        print(line)
    clips, fps, dropped = [], None, list(found.dropped)
    for i in np.random.default_rng(seed).permutation(len(files)):
        info = files[i].info
        scale = min(1.0, LARGE / max(info.height, info.width))
        height, width = round(info.height * scale), round(info.width * scale)
        cover = size or (max(1, height), max(1, width))
        numbers = video_io.clip(info, 0, frames, stride)
        try:
            clip = video_io.crop(
                guard.read_frames(info, numbers.tolist(), cover), cover
            )
        except video_io.BadVideo as error:  # damaged behind what its index tells
            dropped.append((files[i].name, error.reason))
            print(f"  {files[i].name}: {error.reason}")
            continue
        clips.append(clip)
        size, fps = cover, fps or info.fps or SLOW
        if len(clips) == num:
            break
    guard.close()
    if fps is None:
        raise UserError(folder.nothing_left(found, dropped))
    return np.stack(clips), "files", fps / stride


def _read_samples(path: Path, num: int, frames: int, stride: int, size) -> np.ndarray:
    videos = models.sampled(path)[:num, ::stride]
    if videos.shape[1] < frames:
        raise UserError(
            f"{path} holds videos of {videos.shape[1]} frames at stride {stride}: "
            f"--frames={videos.shape[1]} at most"
        )
    videos = np.repeat(videos, 3, -1) if videos.shape[-1] == 1 else videos
    videos = videos[:, :frames]
    if size is None or size == videos.shape[2:4]:
        return videos
    return np.stack([video_io.crop(video_io.resize(v, size), size) for v in videos])


def compare(
    videos: Path,
    reference: Path,
    out: Path,
    *,
    num: int,
    frames: int,
    stride: int,
    size: tuple[int, int] | None,
    networks: Networks | None,
    seed: int,
    against: Sequence[Path],
    commands: Sequence[str],
) -> dict:
    """Measure the videos of one folder beside those of another; print, write, return.

    Of the reference twice as many are read: half of them show what real videos get.
    Writes OUT/index.html and OUT/results.json.
    """
    own, encoding, fps = read(videos, num, frames, stride, size, seed)
    size = (own.shape[2], own.shape[3])
    real, of_reference, _ = read(reference, 2 * num, frames, stride, size, seed)
    protocol: Protocol = {
        "clips": min(len(own), len(statistics.distinct(real)) // 2),
        "frames": frames,
        "stride": stride,
        "size": f"{size[0]}x{size[1]}",
        "encoding": f"{encoding}, reference {of_reference}",
        "seed": seed,
        "real clips": protocols.digest(real),
    }
    if networks:
        protocol |= networks.protocol(frames)
    others = models.read_others(against, protocol)
    tables, figures = models.measure(own, real, None, networks, others, seed)
    for table in tables:
        print(f"\n{table.title}\n{statistics.text(table.headings, table.rows)}")
    print(f"\n{protocols.describe(protocol)}")
    make_folder(out)
    results = {"protocol": protocol, **figures}
    models.write_results(out, results)
    shown = models.SHOWN
    index, distance = statistics.nearest_training(own[:shown], real)
    page.write(
        out / "index.html",
        title=f"vdm_jax: {videos.name}",
        lead=f"Videos of {videos} beside those of {reference}.",
        sections=[
            page.Films(
                "Reference and videos",
                [
                    page.Film("reference", real[:shown]),
                    page.Film("videos", own[:shown]),
                ],
                fps,
            ),
            page.Pairs("The nearest of the reference", own[:shown], real[index],
                         distance, fps),
            *tables,
            page.Commands("The commands", commands),
        ],
    )  # fmt: skip
    print(f"\nthe report: {out / 'index.html'}")
    return results
