"""Write videos as mp4, gif, contact sheet and npz, and pictures as PNG.

Every file is written atomically (files.atomic_write). A video is uint8 [f, h, w, c]
with c = 1 or 3; several videos of one shape are [n, f, h, w, c]. A video of one frame
is a picture.
"""

import io
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from vdm_jax import files
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, StrPath
from vdm_jax.npz import read_npz_arrays
from vdm_jax.video_io.picture_grid import write_picture, write_picture_grid

GUTTER = 2  # pixels between the frames of a sheet
BACKGROUND, TEXT_COLOR = 245, (20, 20, 20)
BT709, LIMITED = 1, 1  # FFmpeg's numbers: colour matrix, colour range 16..235


def display_scale(height: int, width: int, short_side: int = 128) -> int:
    """Return the smallest integer scale with a short side of ``short_side`` pixels."""
    return max(1, -(-short_side // min(height, width)))


def repeat_pixels(video: np.ndarray, scale: int) -> np.ndarray:
    """Upscale [..., h, w, c] to [..., h*scale, w*scale, c] by repeating pixels."""
    return video.repeat(scale, axis=-3).repeat(scale, axis=-2)


def video_grid(videos: np.ndarray, columns: int = 0, gutter: int = 1) -> np.ndarray:
    """Arrange videos [n, f, h, w, c] in a grid: one video [f, H, W, c]."""
    number = len(videos)
    columns = columns or int(np.ceil(np.sqrt(number)))
    pads = ((0, -number % columns), (0, 0), (0, gutter), (0, gutter), (0, 0))
    cells = np.pad(videos, pads, constant_values=BACKGROUND)
    grid = rearrange(cells, "(row col) f h w c -> f (row h) (col w) c", col=columns)
    return grid[:, : grid.shape[1] - gutter, : grid.shape[2] - gutter]


def _rgb(video: np.ndarray) -> np.ndarray:
    return np.broadcast_to(video, (*video.shape[:3], 3))


def write_video(
    path: StrPath, video: np.ndarray, fps: float, scale: int = 0, overwrite=False
) -> None:
    """Write [f, h, w, c] uint8 as an mp4 that browsers play: H.264, yuv420p.

    Pixels are repeated ``scale`` times (default: a short side of at least 128), because
    yuv420p halves the resolution of chroma. The last row or column of an odd side is
    repeated once. Raises UserError if the file exists and ``overwrite`` is False.
    """
    video = _rgb(video)
    video = repeat_pixels(video, scale or display_scale(*video.shape[1:3]))
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    content = io.BytesIO()
    # The index is stored before the frames: browsers play during the download.
    options = {"moov_size": str(4096 + 40 * len(video))}
    with av.open(content, "w", format="mp4", options=options) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = BT709, LIMITED
        context.color_primaries = context.color_trc = BT709
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    files.write_bytes(path, content.getvalue(), overwrite)


def write_gif(
    path: StrPath, video: np.ndarray, fps: float, scale: int = 0, overwrite=False
) -> None:
    """Write [f, h, w, c] uint8 as a looping gif.

    All frames share one palette of 256 colours, so that static regions do not flicker.
    Durations are multiples of 10 ms, rounded so that their sum is right.
    """
    video = _rgb(video)
    scale = scale or display_scale(*video.shape[1:3])
    frames, height, width, _ = video.shape
    every = Image.fromarray(video.reshape(frames * height, width, 3))
    palette = every.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(np.ascontiguousarray(pixels))
        .quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        .resize((width * scale, height * scale), Image.Resampling.NEAREST)
        for pixels in video
    ]
    ticks = np.round(100 * np.arange(frames + 1) / fps).astype(int)
    durations = np.maximum(np.diff(ticks), 2) * 10  # players slow down frames < 20 ms
    with files.atomic_write(path, overwrite) as temporary:
        pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:],
            duration=durations.tolist(), loop=0, optimize=False,
        )  # fmt: skip


def write_sheet(
    path: StrPath,
    videos: np.ndarray | Sequence[np.ndarray],
    columns: int = 0,
    labels: Sequence[str] = (),
    scale: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a contact sheet PNG: one row per video, its frames from left to right.

    Pictures, videos of one frame, are a sheet near a square instead, as
    `write_picture_grid` writes it, with the labels below them.

    columns: number of evenly spaced frames per video (default: all, at most 16).
    labels: one line of text above each row, cut at the right border.
    """
    videos = [_rgb(video) for video in videos]
    if all(len(video) == 1 for video in videos):
        pictures = np.concatenate(videos)
        return write_picture_grid(path, pictures, labels, scale, overwrite)
    columns = columns or min(16, max(len(video) for video in videos))
    scale = scale or display_scale(*videos[0].shape[1:3], short_side=64)
    text_height = 16 if labels else 0
    rows = []
    for video in videos:
        numbers = np.round(np.linspace(0, len(video) - 1, min(columns, len(video))))
        frames = repeat_pixels(video[numbers.astype(int)], scale)
        pads = ((0, columns - len(frames)), (text_height, GUTTER), (0, GUTTER), (0, 0))
        cells = np.pad(frames, pads, constant_values=BACKGROUND)
        rows.append(rearrange(cells, "n h w c -> h (n w) c"))
    borders = ((GUTTER, 0), (GUTTER, 0), (0, 0))
    pixels = np.pad(np.concatenate(rows), borders, constant_values=BACKGROUND)
    sheet = Image.fromarray(pixels)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for row, label in enumerate(labels):
        place = GUTTER, GUTTER + row * len(rows[0])
        draw.text(place, " ".join(label.split()), TEXT_COLOR, font)
    with files.atomic_write(path, overwrite) as temporary:
        sheet.save(temporary, "PNG")


def write_npz(path: StrPath, videos: np.ndarray, overwrite: bool = False) -> None:
    """Write [n, f, h, w, c] uint8 as the array ``videos`` of an npz file."""
    with files.atomic_write(path, overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, videos=videos)


def read_npz(path: StrPath) -> np.ndarray:
    """Read videos uint8 [n, f, h, w, c] that ``write_npz`` wrote.

    Raises files.CorruptFile for other bytes.
    """
    videos = read_npz_arrays(path).get("videos", np.zeros(0))
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] not in (1, 3):
        found = f"videos of {videos.dtype} {videos.shape}"
        raise CorruptFile(f"{found}, not uint8 [n, f, h, w, 1 or 3]")
    if not videos.size:
        raise CorruptFile("it contains no video")
    return videos


def slug(text: str, length: int = 60) -> str:
    """Return a file name for a prompt: letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].strip("-") or "video"


def check_output_folder(
    folder: StrPath, stem: str, overwrite: bool = False
) -> list[Path]:
    """Make ``folder``; return the existing outputs of ``stem`` in it.

    Commands call this before sampling, so that they fail early. Nothing is deleted.
    Raises UserError if outputs exist and ``overwrite`` is False.
    """
    folder = files.make_folder(folder)
    output = re.compile(re.escape(stem) + r"(-\d+)?\.(mp4|gif|png|npz|json)")
    existing = [path for path in folder.iterdir() if output.fullmatch(path.name)]
    if existing and not overwrite:
        rule = "use another --out or --overwrite"
        raise UserError(f"{folder} already holds {existing[0].name}: {rule}")
    return existing


def write_samples(
    folder: StrPath,
    stem: str,
    videos: np.ndarray,
    fps: float,
    meta: dict,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write samples [n, f, h, w, c] uint8 in all formats; return the written files.

    STEM.npz      the array ``videos``, written first: the others can be made from it
    STEM-000.mp4  one mp4 per video; of pictures (f = 1) STEM-000.png
    STEM.mp4      all videos in a grid, also as STEM.gif; not of pictures
    STEM.png      the contact sheet with the labels
    STEM.json     ``meta`` (seed, command), written last: it marks complete outputs

    With ``overwrite`` old outputs are removed, so that no videos of an earlier, larger
    number remain. The old array is replaced by the new one.

    Raises UserError if a file cannot be written. The message says if the array exists.
    """
    folder = Path(folder)
    existing = check_output_folder(folder, stem, overwrite)
    npz, json = (folder / f"{stem}.{suffix}" for suffix in ("npz", "json"))
    with files.explain_write_errors(folder):
        json.unlink(missing_ok=True)  # first: it marks complete outputs
        for path in {*existing} - {npz, json}:
            path.unlink()
    write_npz(npz, videos, overwrite)
    try:
        if videos.shape[1] == 1:
            shown = _write_pictures(folder, stem, videos[:, 0], labels or ())
        else:
            shown = _write_videos(folder, stem, videos, fps, labels or ())
        shape = list(videos.shape)
        names = {} if labels is None else {"labels": list(labels)}
        files.write_json(json, {**meta, "fps": fps, "shape": shape, **names})
    except UserError as error:
        raise UserError(f"{error}; {npz} holds all videos") from error
    return [*shown, npz, json]


def _write_pictures(
    folder: Path, stem: str, pictures: np.ndarray, labels: Sequence[str]
) -> list[Path]:
    """Write a PNG of each picture [n, h, w, c], and their sheet; return the files."""
    numbered = [folder / f"{stem}-{i:03d}.png" for i in range(len(pictures))]
    sheet = folder / f"{stem}.png"
    for path, picture in zip(numbered, pictures, strict=True):
        write_picture(path, picture)
    write_picture_grid(sheet, pictures, labels)
    return [*numbered, sheet]


def _write_videos(
    folder: Path, stem: str, videos: np.ndarray, fps: float, labels: Sequence[str]
) -> list[Path]:
    """Write an mp4 of each video, their grid and their sheet; return the files."""
    numbered = [folder / f"{stem}-{i:03d}.mp4" for i in range(len(videos))]
    mp4, gif, sheet = (folder / f"{stem}.{kind}" for kind in ("mp4", "gif", "png"))
    for path, video in zip(numbered, videos, strict=True):
        write_video(path, video, fps)
    scale = display_scale(*videos.shape[2:4], short_side=96)
    grid = video_grid(videos)
    write_video(mp4, repeat_pixels(grid, scale), fps, scale=1)
    write_gif(gif, grid, fps, scale)
    write_sheet(sheet, videos, labels=labels)
    return [*numbered, mp4, gif, sheet]
