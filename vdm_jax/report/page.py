"""A report as one HTML page: no script, nothing fetched, opens from disk and a phone.

The caller gives plain data, section by section:

    write(path, title="Moving shapes", lead="One sentence.", sections=[
        Films("Learning", films=[Film("step 500", videos), ...], fps=8),
        Curve("Loss", lines=curves.loss_lines(scalars.read_curve(workdir))),
        Table("Statistics", *statistics.cells(rows), highlight=(0,)),
        Commands("Commands", ["python train.py ..."]),
    ])

Videos are shown as they are, to the pixel: the frames of a film stand side by side in
one lossless picture, which the style sheet moves through a window a frame at a time.
All start when the page is complete and so run in step; a switch holds them still, and
they are still from the start where the reader prefers reduced motion. An mp4 would
smear the colours of a 32x32 clip, drift against its neighbour and need a script.
"""

import base64
import html
import importlib.resources
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import atomic_write
from vdm_jax.report import curves

MAX_LOSSLESS_PIXELS = (
    1_500_000  # pixels of a film's picture; a larger one is compressed
)
MAX_GRID_PIXELS = 4_000_000  # pixels of a film's picture; a larger one is shrunk first
MAX_WEBP_SIDE = 16_383  # pixels; what is longer becomes a PNG


@dataclass(frozen=True, eq=False)
class VideoGrid:
    """Videos that play together in a grid, and the words below them."""

    caption: str
    videos: np.ndarray  # uint8 [n, f, h, w, c]; c = 1 or 3
    columns: int = 4


@dataclass(frozen=True, eq=False)
class VideoGrids:
    """Films beside one another, in step: real beside samples, or samples over training.

    At most five megabytes a page is a good aim: sixteen clips of 8 frames of 32x32 are
    about a quarter of one.
    """

    title: str
    grids: Sequence[VideoGrid]
    fps: float
    note: str = ""

    def body(self) -> str:
        return _films(self.grids, self.fps)


@dataclass(frozen=True, eq=False)
class PromptGrid:
    """Prompts, and beside each its videos from stage to stage of a cascade.

    stages: a film of each stage, with a video of every prompt. seconds: of all of them.
    """

    title: str
    prompts: Sequence[str]
    stages: Sequence[VideoGrid]
    seconds: float
    note: str = ""

    def body(self) -> str:
        return "".join(self._row(i, prompt) for i, prompt in enumerate(self.prompts))

    def _row(self, i: int, prompt: str) -> str:
        films = [VideoGrid(s.caption, s.videos[i : i + 1], 1) for s in self.stages]
        figures = "".join(_film(f, f.videos.shape[1] / self.seconds) for f in films)
        grid = f'<div class="films" style="--columns:1">{figures}</div>'
        return f"<p>{html.escape(prompt)}</p>{grid}"


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """Each sample beside its nearest training clip, the nearest pair first."""

    title: str
    samples: np.ndarray  # uint8 [n, f, h, w, c]
    nearest: np.ndarray  # uint8 [n, f, h, w, c]
    distance: np.ndarray  # [n], as statistics.nearest_training gives it
    fps: float
    note: str = (
        "On the left a sample, on the right the training clip nearest to it, in root "
        "mean square of the pixels (0 is a copy, black to white is 2); the nearest "
        "pair comes first. A model trained on little data memorises some clips: where "
        "the two look the same, the sample is one of them."
    )

    def body(self) -> str:
        films = [
            VideoGrid(
                f"distance {self.distance[i]:.3f}",
                np.stack([self.samples[i], self.nearest[i]]),
                columns=2,
            )
            for i in np.argsort(self.distance, kind="stable")
        ]
        return _films(films, self.fps)


@dataclass(frozen=True, eq=False)
class Curve:
    """Lines over training steps, or x_name; the first line in the accent colour."""

    title: str
    lines: Sequence[curves.Line]
    note: str = ""
    log_x: bool = False
    x_name: str = "step"

    def body(self) -> str:
        return curves.draw(self.lines, x_name=self.x_name, log_x=self.log_x)


@dataclass(frozen=True)
class Table:
    """Formatted cells; the first names the row. highlight: rows that stand out."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: Sequence[int] = ()
    note: str = ""

    def body(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in self.headings)
        lines = []
        for i, (name, *values) in enumerate(self.rows):
            mark = ' class="mark"' if i in self.highlight else ""
            cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
            lines.append(
                f'<tr{mark}><th scope="row">{html.escape(name)}</th>{cells}</tr>'
            )
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="'
            f'{html.escape(self.title)}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Commands:
    """Commands to copy, one a line."""

    title: str
    lines: Sequence[str]
    note: str = ""

    def body(self) -> str:
        code = "\n".join(html.escape(line) for line in self.lines)
        return f'<pre class="scroll" tabindex="0"><code>{code}</code></pre>'


@dataclass(frozen=True)
class KeyValues:
    """Names and values: machine kind, versions, seed."""

    title: str
    values: dict[str, str]
    note: str = ""

    def body(self) -> str:
        pairs = "".join(
            f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>"
            for k, v in self.values.items()
        )
        return f"<dl>{pairs}</dl>"


Section = (
    VideoGrids | PromptGrid | NearestNeighbours | Curve | Table | Commands | KeyValues
)


def write(
    path: str | Path, *, title: str, summary: str, sections: Sequence[Section]
) -> None:
    """Write the page, in place of an older one; every text is escaped."""
    page = render(title, summary, sections)
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(title: str, summary: str, sections: Sequence[Section]) -> str:
    """HTML of the page. Its policy forbids scripts and every address but data."""
    folder = importlib.resources.files("vdm_jax.report")
    style = (folder / "report.css").read_text("utf-8")
    links = "".join(
        f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections)
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{style}</style>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(summary)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{"".join(_section(i, s) for i, s in enumerate(sections))}</main>
<label class="switch"><input type="checkbox" role="switch" id="switch">
<span class="hold">Hold videos</span><span class="play">Play videos</span></label>
<footer>Made by vdm_jax: one file, no scripts, nothing fetched.</footer>
</body>
</html>
"""


def _section(index: int, section: Section) -> str:
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    return (
        f'<section id="s{index}"><h2>{html.escape(section.title)}</h2>{note}'
        f"{section.body()}</section>\n"
    )


# --- films ------------------------------------------------------------------------


def _films(films: Sequence[VideoGrid], fps: float) -> str:
    widest = max((min(film.columns, len(film.videos)) for film in films), default=1)
    figures = "".join(_film(film, fps) for film in films)
    return f'<div class="films" style="--columns:{widest}">{figures}</div>'


def _film(film: VideoGrid, fps: float) -> str:
    frames, edge = _grid(_small(film), film.columns)
    count, height, width, _ = frames.shape
    words = f"{film.caption}: {len(film.videos)} clips, {count} frames"
    return (
        f'<figure><img class="film" alt="{html.escape(words)}" src="{_strip(frames)}" '
        f'style="aspect-ratio:{width}/{height};--edge:{edge / width:.5f};'
        f'--frames:{count};--seconds:{count / fps:.4f}s">'
        f"<figcaption>{html.escape(film.caption)}</figcaption></figure>"
    )


def _small(film: VideoGrid) -> np.ndarray:
    """Its videos, shrunk where the frames in a row would have more than ROOM pixels."""
    n, f, h, w, _ = film.videos.shape
    columns = min(film.columns, n)
    wide, tall = f * w * columns, h * -(-n // columns)
    if wide * tall <= MAX_LOSSLESS_PIXELS:
        return film.videos
    scale = min(
        1.0, math.sqrt(MAX_GRID_PIXELS / (wide * tall)), 0.9 * MAX_WEBP_SIDE / wide
    )
    size = max(round(h * scale), 1), max(round(w * scale), 1)
    return np.stack([video_io.resize(video, size) for video in film.videos])


def _grid(videos: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """[n, f, h, w, c] -> RGBA [f, H, W, 4], a grid with clear gaps; and half a gap.

    A clear border of half a gap keeps a neighbouring frame from showing at the edge
    where a browser's pixels do not meet the film's.
    """
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] not in (1, 3):
        raise UserError(
            f"videos of {videos.dtype} {videos.shape}: a film is uint8 [n, f, h, w, c] "
            "with 1 or 3 channels"
        )
    n, f, h, w, _ = videos.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    pad = max(1, round(w / 32))
    cells = np.zeros((rows * columns, f, h + 2 * pad, w + 2 * pad, 4), np.uint8)
    cells[:n, :, pad:-pad, pad:-pad, :3] = videos
    cells[:n, :, pad:-pad, pad:-pad, 3] = 255
    _, _, tall, wide, _ = cells.shape
    grid = cells.reshape(rows, columns, f, tall, wide, 4).transpose(2, 0, 3, 1, 4, 5)
    return grid.reshape(f, rows * tall, columns * wide, 4), pad


def _strip(frames: np.ndarray) -> str:
    """[f, h, w, 4] -> data URI of one picture with the frames side by side."""
    f, h, w, _ = frames.shape
    kind = "webp" if max(f * w, h) <= MAX_WEBP_SIDE else "png"
    file = io.BytesIO()
    Image.fromarray(np.concatenate(frames, axis=1)).save(
        file, kind, lossless=f * h * w <= MAX_LOSSLESS_PIXELS, quality=90
    )
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
