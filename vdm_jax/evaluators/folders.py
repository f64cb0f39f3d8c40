"""Anybody's videos, measured beside real ones: two folders of files, no model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import folder_index
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.errors import UserError
from vdm_jax.evaluators import models
from vdm_jax.files import make_folder
from vdm_jax.metrics import pixel_statistics
from vdm_jax.metrics import protocol as protocols
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.protocol import Protocol
from vdm_jax.metrics.tables import format_table
from vdm_jax.metrics.video_arrays import unique_videos
from vdm_jax.report import page
from vdm_jax.video_io import cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

MAX_SIDE = 224  # pixels, which is what the networks see; larger frames cost memory only
DEFAULT_FPS = 8.0  # frames a second in the page, for videos without a clock


def read_videos(
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
        fps = models.read_sample_info(path)["fps"] if described else DEFAULT_FPS
        return videos, "pixels", fps / stride
    shape, guard = ClipShape(frames, 1, 1, stride=stride), SandboxedDecoder()
    files, found = folder_index.scan(
        str(path), shape, cache.IndexStore(cache.default_folder()), guard
    )
    for line in found.summary_lines()[1:]:
        print(line)
    clips, fps, dropped = [], None, list(found.skipped)
    for i in np.random.default_rng(seed).permutation(len(files)):
        info = files[i].info
        scale = min(1.0, MAX_SIDE / max(info.height, info.width))
        height, width = round(info.height * scale), round(info.width * scale)
        cover = size or (max(1, height), max(1, width))
        numbers = video_io.clip_frames(info, 0, frames, stride)
        try:
            clip = video_io.crop(
                guard.read_frames(info, numbers.tolist(), cover), cover
            )
        except video_io.BadVideo as error:  # damaged behind what its index tells
            dropped.append((files[i].name, error.reason))
            print(f"  {files[i].name}: {error.reason}")
            continue
        clips.append(clip)
        size, fps = cover, fps or info.fps or DEFAULT_FPS
        if len(clips) == num:
            break
    guard.close()
    if fps is None:
        raise UserError(folder_index.no_usable_videos_message(found, dropped))
    return np.stack(clips), "files", fps / stride


def _read_samples(path: Path, num: int, frames: int, stride: int, size) -> np.ndarray:
    videos = models.read_samples(path)[:num, ::stride]
    if videos.shape[1] < frames:
        raise UserError(
            f"{path} holds videos of {videos.shape[1]} frames at stride {stride}: "
            f"--num_frames={videos.shape[1]} at most"
        )
    videos = np.repeat(videos, 3, -1) if videos.shape[-1] == 1 else videos
    videos = videos[:, :frames]
    if size is None or size == videos.shape[2:4]:
        return videos
    return np.stack([video_io.crop(video_io.resize(v, size), size) for v in videos])


def compare_folders(
    videos: Path,
    reference: Path,
    out: Path,
    *,
    num: int,
    frames: int,
    stride: int,
    size: tuple[int, int] | None,
    networks: PerceptualNetworks | None,
    seed: int,
    baseline_reports: Sequence[Path],
    commands: Sequence[str],
) -> dict:
    """Measure the videos of one folder beside those of another; print, write, return.

    Of the reference twice as many are read: half of them show what real videos get.
    Writes OUT/index.html and OUT/results.json.
    """
    own, encoding, fps = read_videos(videos, num, frames, stride, size, seed)
    size = (own.shape[2], own.shape[3])
    real, of_reference, _ = read_videos(reference, 2 * num, frames, stride, size, seed)
    protocol: Protocol = {
        "clips": min(len(own), len(unique_videos(real)) // 2),
        "frames": frames,
        "stride": stride,
        "size": f"{size[0]}x{size[1]}",
        "encoding": f"{encoding}, reference {of_reference}",
        "seed": seed,
        "real clips": protocols.videos_digest(real),
    }
    if networks:
        protocol |= networks.protocol(frames)
    others = models.read_baseline_reports(baseline_reports, protocol)
    tables, figures = models.measure_tables(own, real, None, networks, others, seed)
    for table in tables:
        print(f"\n{table.title}\n{format_table(table.headings, table.rows)}")
    print(f"\n{protocols.describe(protocol)}")
    make_folder(out)
    results = {"protocol": protocol, **figures}
    models.write_results(out, results)
    shown = models.SHOWN
    index, distance = pixel_statistics.nearest_training(own[:shown], real)
    page.write(
        out / "index.html",
        title=f"vdm_jax: {videos.name}",
        summary=f"Videos of {videos} beside those of {reference}.",
        sections=[
            page.VideoGrids(
                "Reference and videos",
                [
                    page.VideoGrid("reference", real[:shown]),
                    page.VideoGrid("videos", own[:shown]),
                ],
                fps,
            ),
            page.NearestNeighbours("The nearest of the reference", own[:shown], real[index],
                         distance, fps),
            *tables,
            page.Commands("The commands", commands),
        ],
    )  # fmt: skip
    print(f"\nthe report: {out / 'index.html'}")
    return results
