"""Videos that a person looks at: mp4, gif, contact sheet, and the arrays themselves.

Every file is made in memory, written beside its place and moved there whole
(files.replacing). Videos are uint8 [f, h, w, c], c 1 or 3; several of one shape are
[n, f, h, w, c].
"""

import io
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdm_jax.errors import UserError
from vdm_jax.files import (
    CorruptFile,
    explain_write_errors,
    make_folder,
    read_npz_arrays,
    write_bytes,
    write_json,
)

GUTTER = 2  # pixels between the frames of a sheet
BACKGROUND, TEXT_COLOR = (245, 245, 245), (20, 20, 20)
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour matrix and of the 16..235 range


def display_scale(height: int, width: int, short_side: int = 128) -> int:
    """Smallest whole factor that brings the short side to ``short_side`` pixels."""
    return max(1, -(-short_side // min(height, width)))


def repeat_pixels(video: np.ndarray, scale: int) -> np.ndarray:
    """[..., h, w, c] -> [..., h*scale, w*scale, c] by repeating pixels: no blur."""
    return video.repeat(scale, axis=-3).repeat(scale, axis=-2)


def video_grid(
    videos: np.ndarray, columns: int | None = None, gutter: int = 1
) -> np.ndarray:
    """[n, f, h, w, c] -> one video [f, H, W, c] showing all of them in a grid."""
    number, frames, height, width, channels = videos.shape
    columns = columns or int(np.ceil(np.sqrt(number)))
    rows = -(-number // columns)
    cells = np.full(
        (rows * columns, frames, height + gutter, width + gutter, channels),
        BACKGROUND[0],
        videos.dtype,
    )
    cells[:number, :, :height, :width] = videos
    grid = cells.reshape(rows, columns, *cells.shape[1:])
    grid = grid.transpose(2, 0, 3, 1, 4, 5).reshape(
        frames, rows * cells.shape[2], columns * cells.shape[3], channels
    )
    return grid[:, : grid.shape[1] - gutter, : grid.shape[2] - gutter]


def _rgb(video: np.ndarray) -> np.ndarray:
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] not in (1, 3):
        raise ValueError(
            f"a video is uint8 [f, h, w, 1 or 3], not {video.dtype} {video.shape}"
        )
    return np.broadcast_to(video, (*video.shape[:3], 3))


def write_video(
    path: str | Path,
    video: np.ndarray,
    fps: float,
    scale: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write [f, h, w, c] uint8 as an mp4 that browsers play: H.264, yuv420p.

    Pixels are repeated ``scale`` times (default: short side of at least 128), so that
    the halved chroma of yuv420p blurs nothing of a small sample; an odd side gets its
    last row or column twice. Raises UserError if the file exists.
    """
    video = _rgb(video)
    video = repeat_pixels(video, scale or display_scale(*video.shape[1:3]))
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    content = io.BytesIO()
    # Room for the index before the pictures: a browser plays before it has all.
    room = {"moov_size": str(4096 + 40 * len(video))}
    with av.open(content, "w", format="mp4", options=room) as container:
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
    write_bytes(path, content.getbuffer(), overwrite)


def write_gif(
    path: str | Path,
    video: np.ndarray,
    fps: float,
    scale: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write [f, h, w, c] uint8 as a looping gif.

    One palette of 256 colours serves all frames, so that still parts do not flicker.
    A gif counts hundredths of a second: durations are rounded so that they add up.
    """
    video = _rgb(video)
    scale = scale or display_scale(*video.shape[1:3])
    frames, height, width, _ = video.shape
    palette = Image.fromarray(
        np.ascontiguousarray(video.reshape(frames * height, width, 3))
    ).quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(np.ascontiguousarray(pixels))
        .quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        .resize((width * scale, height * scale), Image.Resampling.NEAREST)
        for pixels in video
    ]
    ticks = np.round(100 * np.arange(frames + 1) / fps).astype(int)
    durations = np.maximum(np.diff(ticks), 2) * 10  # players slow down below 20 ms
    content = io.BytesIO()
    pictures[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations.tolist(),
        loop=0,
        optimize=False,
    )
    write_bytes(path, content.getbuffer(), overwrite)


def write_sheet(
    path: str | Path,
    videos: np.ndarray | Sequence[np.ndarray],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a contact sheet PNG: a row for each video, its frames from left to right.

    ``columns`` frames evenly spread from first to last (default: all, at most 16);
    ``labels`` stand above their rows.
    """
    videos = [_rgb(video) for video in videos]
    columns = columns or min(16, max(len(video) for video in videos))
    height, width = videos[0].shape[1:3]
    scale = scale or display_scale(height, width, short_side=64)
    height, width = height * scale, width * scale
    text_height = 16 if labels is not None else 0
    row_height = height + text_height + GUTTER
    sheet = Image.new(
        "RGB",
        (columns * (width + GUTTER) + GUTTER, len(videos) * row_height + GUTTER),
        BACKGROUND,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for row, video in enumerate(videos):
        top = GUTTER + row * row_height
        if labels is not None:
            text = _fit(labels[row], font, sheet.width - 2 * GUTTER)
            draw.text((GUTTER, top), text, fill=TEXT_COLOR, font=font)
        places = np.round(np.linspace(0, len(video) - 1, min(columns, len(video))))
        for column, place in enumerate(places.astype(int)):
            cell = Image.fromarray(repeat_pixels(video[place], scale))
            left = GUTTER + column * (width + GUTTER)
            sheet.paste(cell, (left, top + text_height))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_bytes(path, content.getbuffer(), overwrite)


def write_npz(path: str | Path, videos: np.ndarray, overwrite: bool = False) -> None:
    """Write [n, f, h, w, c] uint8 as the array ``videos`` of an npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, videos=videos)
    write_bytes(path, content.getbuffer(), overwrite)


def read_npz(path: str | Path, rows: int | None = None) -> np.ndarray:
    """Return videos that ``write_npz`` wrote, all or the first ``rows`` of them.

    Raises files.CorruptFile for other bytes.
    """
    videos = read_npz_arrays(path, rows).get("videos", np.zeros(0))
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] not in (1, 3):
        raise CorruptFile(
            f"videos of {videos.dtype} {videos.shape}, not uint8 [n, f, h, w, 1 or 3]"
        )
    if not videos.size:
        raise CorruptFile("it holds no video")
    return videos


def _fit(text: str, font, width: int) -> str:
    """Shorten one line of text to ``width`` pixels."""
    text = " ".join(text.split())
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text


def check_output_folder(
    folder: str | Path, stem: str, overwrite: bool = False
) -> list[Path]:
    """Make ``folder``; return the outputs of ``stem`` that stand there.

    Called before the work, so that an hour of sampling does not end at a name taken.
    Raises UserError if there are any and ``overwrite`` is False. Deletes nothing.
    """
    folder = make_folder(folder)
    ours = re.compile(re.escape(stem) + r"(-\d+)?\.(mp4|gif|png|npz|json)")
    taken = [path for path in folder.iterdir() if ours.fullmatch(path.name)]
    if taken and not overwrite:
        raise UserError(
            f"{folder} already holds {taken[0].name}: another --out, or --overwrite"
        )
    return taken


def write_samples(
    folder: str | Path,
    stem: str,
    videos: np.ndarray,
    fps: float,
    meta: dict,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write samples [n, f, h, w, c] uint8 in all forms; return the files made.

    STEM.npz the array ``videos``, written first, as it took longest to make and all
    else can be made from it; STEM-000.mp4 ... one mp4 a video; STEM.mp4 and STEM.gif
    all of them in a grid; STEM.png the contact sheet; STEM.json ``meta`` (seed,
    command), written last: where it stands, the rest is complete. With ``overwrite``
    old outputs are removed once the new array stands, so that none of a longer run
    stays among the new.

    Raises UserError where one cannot be written; it says if the array could.
    """
    folder = Path(folder)
    taken = check_output_folder(folder, stem, overwrite)
    arrays, about = folder / f"{stem}.npz", folder / f"{stem}.json"
    with explain_write_errors(about):
        about.unlink(missing_ok=True)  # first: it says that the rest is there
    write_npz(arrays, videos, overwrite)
    try:
        with explain_write_errors(folder):
            for path in {*taken} - {arrays, about}:
                path.unlink()
        return _write_shown(folder, stem, videos, fps, meta, labels)
    except UserError as error:
        raise UserError(f"{error}; {arrays} holds all videos") from error


def _write_shown(folder, stem, videos, fps, meta, labels) -> list[Path]:
    """Write all but the array."""
    paths = [folder / f"{stem}-{number:03d}.mp4" for number in range(len(videos))]
    for path, video in zip(paths, videos, strict=True):
        write_video(path, video, fps)
    scale = display_scale(*videos.shape[2:4], short_side=96)
    grid = repeat_pixels(video_grid(videos, gutter=1), scale)
    write_video(folder / f"{stem}.mp4", grid, fps, scale=1)
    write_gif(folder / f"{stem}.gif", video_grid(videos, gutter=1), fps, scale=scale)
    write_sheet(folder / f"{stem}.png", videos, labels=labels)
    described = {**meta, "fps": fps, "shape": list(videos.shape)}
    if labels is not None:
        described["labels"] = list(labels)
    write_json(folder / f"{stem}.json", described)
    made = [folder / f"{stem}.{kind}" for kind in ("mp4", "gif", "png", "npz", "json")]
    return paths + made
