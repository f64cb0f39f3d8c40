"""A report as one HTML page, without scripts, external files or network requests.

The content is plain data, section by section:

    write(path, title="Moving shapes", summary="One sentence.", sections=[
        VideoGrids("Training", grids=[VideoGrid("step 500", videos, fps=8), ...]),
        Curve("Loss", lines=curves.loss_lines(scalars.read_scalars(workdir))),
        Table("Statistics", *format_cells(rows, columns), highlight=(0,)),
        Commands("Commands", ["python train.py ..."]),
    ])

Videos are shown without loss: the frames of a grid are columns of one lossless image,
which the style sheet shifts by one frame at a time. All grids start when the page is
complete, so they are synchronous. A switch pauses them; they are paused at first where
the reader prefers reduced motion. An mp4 would blur the colours of a 32x32 clip, would
drift relative to other videos and would need a script.
"""

import base64
import html
import importlib.resources
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes
from vdm_jax.report import curves

MAX_LOSSLESS_PIXELS = 1_500_000  # of a grid's image; larger ones are lossy
MAX_GRID_PIXELS = 4_000_000  # of a grid's image; larger ones are downscaled first
MAX_WEBP_SIDE = 16_383  # pixels; larger images are PNG


@dataclass(frozen=True, eq=False)
class VideoGrid:
    """Videos that play together in a grid, or pictures (f = 1), and a caption."""

    caption: str
    videos: np.ndarray  # uint8 [n, f, h, w, c]; c = 1 or 3
    fps: float
    columns: int = 4


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page: a title, a note below it, and the content."""

    title: str
    note: str = field(default="", kw_only=True)

    def body(self) -> str:
        """Return the HTML of the content."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class VideoGrids(Section):
    """Grids that play synchronously, such as real clips and samples.

    Sixteen clips of 8 frames of 32x32 take about a quarter of a megabyte; a page should
    stay below five.
    """

    grids: Sequence[VideoGrid]

    def body(self) -> str:
        """Return figures of all grids, as wide as the widest."""
        return _figures(self.grids)


@dataclass(frozen=True, eq=False)
class PromptGrid(Section):
    """Prompts, and for each its videos from every stage of a cascade.

    stages: a grid per stage, with a video per prompt.
    """

    prompts: Sequence[str]
    stages: Sequence[VideoGrid]

    def body(self) -> str:
        """Return each prompt and figures of its videos."""
        rows = []
        for i, prompt in enumerate(self.prompts):
            own = [replace(s, videos=s.videos[i : i + 1]) for s in self.stages]
            rows.append(f"<p>{html.escape(prompt)}</p>{_figures(own)}")
        return "".join(rows)


@dataclass(frozen=True, eq=False)
class Curve(Section):
    """Lines over training steps or x_name, the first in the accent colour."""

    lines: Sequence[curves.Line]
    log_x: bool = False
    x_name: str = "step"

    def body(self) -> str:
        """Return the plot."""
        return curves.draw(self.lines, x_name=self.x_name, log_x=self.log_x)


@dataclass(frozen=True, eq=False)
class Table(Section):
    """Formatted cells; the first of a row is its name. highlight: indices of rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: Sequence[int] = ()

    def body(self) -> str:
        """Return a table that scrolls."""
        head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in self.headings)
        lines = []
        for i, (name, *values) in enumerate(self.rows):
            mark = ' class="mark"' if i in self.highlight else ""
            cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
            row = f'<th scope="row">{html.escape(name)}</th>{cells}'
            lines.append(f"<tr{mark}>{row}</tr>")
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="'
            f'{html.escape(self.title)}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )


@dataclass(frozen=True, eq=False)
class Commands(Section):
    """Commands to copy, one per line."""

    lines: Sequence[str]

    def body(self) -> str:
        """Return lines of code that scroll."""
        code = "\n".join(html.escape(line) for line in self.lines)
        return f'<pre class="scroll" tabindex="0"><code>{code}</code></pre>'


def write(
    path: str | Path, *, title: str, summary: str, sections: Sequence[Section]
) -> None:
    """Write the page, replacing an older one; every text is escaped."""
    write_bytes(path, render(title, summary, sections).encode(), overwrite=True)


def render(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Return the HTML of the page; its policy forbids scripts and external content."""
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
<p class="summary">{html.escape(summary)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{"".join(_section(i, s) for i, s in enumerate(sections))}</main>
<label class="switch"><input type="checkbox" role="switch" id="switch">
<span class="pause">Pause videos</span><span class="play">Play videos</span></label>
<footer>Made by vdm_jax: one file without scripts or external content.</footer>
</body>
</html>
"""


def _section(index: int, section: Section) -> str:
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    return (
        f'<section id="s{index}"><h2>{html.escape(section.title)}</h2>{note}'
        f"{section.body()}</section>\n"
    )


# --- grids ------------------------------------------------------------------------


def _figures(grids: Sequence[VideoGrid]) -> str:
    """Return the HTML of grids, all as wide as the widest."""
    columns = max((min(g.columns, len(g.videos)) for g in grids), default=1)
    figures = "".join(map(_figure, grids))
    return f'<div class="video-grids" style="--columns:{columns}">{figures}</div>'


def _figure(grid: VideoGrid) -> str:
    """Return the HTML of a grid and its caption."""
    frames, edge = _arrange(_downscaled(grid), grid.columns)
    count, height, width, _ = frames.shape
    what = f"clips, {count} frames" if count > 1 else "pictures"
    alt = html.escape(f"{grid.caption}: {len(grid.videos)} {what}")
    kind = "video-grid" if count > 1 else "video-grid still"
    return (
        f'<figure><img class="{kind}" alt="{alt}" src="{_strip(frames)}" '
        f'style="aspect-ratio:{width}/{height};--edge:{edge / width:.5f};'
        f'--frames:{count};--seconds:{count / grid.fps:.4f}s">'
        f"<figcaption>{html.escape(grid.caption)}</figcaption></figure>"
    )


def _downscaled(grid: VideoGrid) -> np.ndarray:
    """Return the videos of a grid, downscaled to MAX_GRID_PIXELS where necessary."""
    n, f, h, w, _ = grid.videos.shape
    columns = min(grid.columns, n)
    wide, tall = f * w * columns, h * -(-n // columns)
    if wide * tall <= MAX_LOSSLESS_PIXELS:
        return grid.videos
    scale = min(
        1.0, math.sqrt(MAX_GRID_PIXELS / (wide * tall)), 0.9 * MAX_WEBP_SIDE / wide
    )
    size = max(round(h * scale), 1), max(round(w * scale), 1)
    return np.stack([video_io.resize(video, size) for video in grid.videos])


def _arrange(videos: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Arrange [n, f, h, w, c] as grids RGBA [f, H, W, 4]; return them and half a gap.

    Gaps and a border of half a gap are transparent. Without the border, parts of an
    adjacent frame would show where browser and image pixels do not coincide.
    """
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] not in (1, 3):
        raise UserError(
            f"videos of {videos.dtype} {videos.shape}: a grid needs uint8 "
            "[n, f, h, w, c] with 1 or 3 channels"
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
    """Return the data URI of one image with the frames [f, h, w, 4] in a row."""
    f, h, w, _ = frames.shape
    kind = "webp" if max(f * w, h) <= MAX_WEBP_SIDE else "png"
    file = io.BytesIO()
    Image.fromarray(np.concatenate(frames, axis=1)).save(
        file, kind, lossless=f * h * w <= MAX_LOSSLESS_PIXELS, quality=90
    )
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
