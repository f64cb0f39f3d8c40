"""Evaluation of a folder of videos against a folder of real videos, without a model."""

from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data import folder_index
from vdm_jax.errors import UserError
from vdm_jax.evaluators import clips, results, sections, tables
from vdm_jax.evaluators.reports import ReportOptions, write_report
from vdm_jax.files import make_folder
from vdm_jax.metrics.perceptual import PerceptualNetworks, to_uint8_rgb
from vdm_jax.metrics.reference_sets import reference_sets
from vdm_jax.video_io import FrameSelection
from vdm_jax.video_io.sandbox import SandboxedDecoder

MAX_SIDE = 224  # pixels: the networks resize to it, so larger frames only cost memory
Size = tuple[int, int]  # height and width
DEFAULT_FPS = 8.0  # frames a second in the page, of videos without a frame rate


def read_videos(
    path: Path, num: int, clip: FrameSelection, size: Size | None, seed: int = 0
) -> tuple[np.ndarray, str, float]:
    """Read one clip of each video of a folder, from its first frame on.

    Args:
      path: of video files, or a folder that sample.py wrote.
      num: at most so many videos, drawn with `seed`.
      clip: its frames and stride.
      size: (h, w) to resize and centre-crop to; None is that of the first video, shrunk
        to MAX_SIDE at most.

    Returns:
      videos uint8 [n, f, h, w, 3]; "pixels" or "files", how they were encoded; frames a
      second of the first.

    Raises:
      UserError: no video can be used.
    """
    if (path / clips.SAMPLES).is_file():
        videos = _read_samples(path, num, clip, size)
        has_info = (path / "samples.json").is_file()
        fps = clips.read_sample_info(path)["fps"] if has_info else DEFAULT_FPS
        return videos, "pixels", fps / clip.stride
    decoder = SandboxedDecoder()
    files, scanned = folder_index.scan(str(path), clip, "", decoder)
    for line in scanned.summary_lines()[1:]:
        print(line)
    read = []
    fps = None
    skipped = list(scanned.skipped)
    for i in np.random.default_rng(seed).permutation(len(files)):
        info = files[i].info
        size_of_file = size or _shrunk_size(info.height, info.width)
        numbers = clip.frame_numbers(info, 0).tolist()
        try:
            decoded = decoder.read_frames(info, numbers, size_of_file)
            read.append(video_io.crop(decoded, size_of_file))
        except video_io.BadVideo as error:  # damage that the index does not show
            skipped.append((files[i].name, error.reason))
            print(f"  {files[i].name}: {error.reason}")
            continue
        size = size_of_file
        fps = fps or info.fps or DEFAULT_FPS
        if len(read) == num:
            break
    decoder.close()
    if fps is None:
        raise UserError(folder_index.no_usable_videos_message(scanned, skipped))
    return np.stack(read), "files", fps / clip.stride


def _shrunk_size(height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of the same aspect ratio, MAX_SIDE at most."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _read_samples(path: Path, num: int, clip: FrameSelection, size) -> np.ndarray:
    """Read clips uint8 [n, f, h, w, 3] of a folder that sample.py wrote."""
    videos = to_uint8_rgb(clips.read_samples(path)[:num, :: clip.stride])
    if videos.shape[1] < clip.frames:
        raise UserError(
            f"{path} holds videos of {videos.shape[1]} frames at stride {clip.stride}: "
            f"--num_frames={videos.shape[1]} at most"
        )
    videos = videos[:, : clip.frames]
    if size is None or size == videos.shape[2:4]:
        return videos
    return np.stack([video_io.crop(video_io.resize(v, size), size) for v in videos])


def compare_folders(
    videos: Path,
    reference: Path,
    report: ReportOptions,
    *,
    num: int,
    clip: FrameSelection,
    size: Size | None,
    networks: PerceptualNetworks | None,
    seed: int,
) -> dict:
    """Measure the videos of one folder against those of another; write the report.

    Twice as many reference videos are read: one half is the reference, the other is
    the row 'training real'. Prints the tables, writes index.html and results.json into
    report.out, and returns the content of results.json.

    Raises:
      UserError: a folder has no usable videos, or a baseline report does not fit.
    """
    own, encoding, fps = read_videos(videos, num, clip, size, seed)
    size = (own.shape[2], own.shape[3])
    real, real_encoding, _ = read_videos(reference, 2 * num, clip, size, seed)
    protocol = results.make_protocol(
        len(own), real, None, networks, stride=clip.stride, seed=seed,
        encoding=f"{encoding}, reference {real_encoding}",
    )  # fmt: skip
    others = results.read_baseline_reports(report.baseline_reports, protocol)
    sets = reference_sets(own, real, None, seed)
    scores = tables.measure(sets, real, networks)
    make_folder(report.out)
    content = {"protocol": protocol, **scores}
    shown = sections.comparison_sections(own, real, real, fps)
    write_report(
        report, content, tables.score_tables(scores, others), shown, name=videos.name,
        summary=f"Videos of {videos} compared with those of {reference}.",
    )  # fmt: skip
    return content
