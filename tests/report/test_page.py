"""Structure and images of the page, and the page in a browser."""

import base64
import html
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from vdm_jax.errors import UserError
from vdm_jax.report import page
from vdm_jax.report.curves import Line

HOSTILE = "<script>alert('\"&')</script>"


def videos(n=4, f=5, h=16, w=16, c=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, f, h, w, c), dtype=np.uint8)


def sections(words="words"):
    return [
        page.VideoGrids(
            words,
            [page.VideoGrid(words, videos(), 8), page.VideoGrid("b", videos(), 8)],
        ),
        page.PromptGrid(words, [words], [page.VideoGrid(words, videos(), 5)]),
        page.Curve(
            words, [Line(words, np.arange(9.0), np.arange(9.0) + 1)], note=words
        ),
        page.Table(words, ["", *[words] * 9], [[words] * 10] * 3, (1,), note=words),
        page.Commands(words, [f"python train.py --flag={words} " * 5], note=words),
    ]


class Page(html.parser.HTMLParser):
    """Elements of a page; fails on one that is not closed."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def html_page():
    return page.render("Title", "Summary.", sections())


def test_page_has_no_scripts_and_no_external_content(html_page):
    parsed = Page(html_page)
    assert not parsed.all("script")
    for _, attrs in parsed.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    style = html_page[html_page.index("<style>") : html_page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = parsed.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'") and "script" not in policy
    targets = {attrs["id"] for _, attrs in parsed.elements if "id" in attrs}
    assert all(a["href"][1:] in targets for a in parsed.all("a"))


def test_every_text_is_escaped():
    hostile = page.render(HOSTILE, HOSTILE, sections(HOSTILE))
    plain = page.render("words", "words", sections("words"))
    assert "<script" not in hostile
    found, expected = Page(hostile), Page(plain)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected.elements]
    counts = [
        sum(word.count(text) for word in parsed.words)
        + sum(str(attrs).count(repr(text)[1:-1]) for _, attrs in parsed.elements)
        for parsed, text in ((found, HOSTILE), (expected, "words"))
    ]
    assert counts[0] == counts[1] > 50


@pytest.mark.parametrize("shape", [(5, 3, 16, 12, 3), (2, 4, 40, 40, 1)])
def test_pixels_of_a_grid_are_those_of_the_videos(shape):
    n, f, h, w, c = shape
    clips = videos(n, f, h, w, c)
    text = page.VideoGrids("t", [page.VideoGrid("a", clips, 8, columns=3)]).body()
    (image,) = Page(text).all("img")
    data = base64.b64decode(image["src"].partition(",")[2])
    strip = np.asarray(Image.open(io.BytesIO(data)))
    columns = min(3, n)
    frames = strip.reshape(strip.shape[0], f, -1, 4).swapaxes(0, 1)
    width, height = map(int, re.search(r"ratio:(\d+)/(\d+)", image["style"]).groups())
    assert frames.shape == (f, height, width, 4)
    wide, tall = width // columns, height // -(-n // columns)
    left, top = (wide - w) // 2, (tall - h) // 2
    seen = np.zeros((height, width), bool)
    for i in range(n):
        y, x = i // columns * tall + top, i % columns * wide + left
        cell = frames[:, y : y + h, x : x + w]
        np.testing.assert_array_equal(
            cell[..., :3], np.broadcast_to(clips[i], (*cell.shape[:3], 3))
        )
        seen[y : y + h, x : x + w] = True
    np.testing.assert_array_equal(
        frames[..., 3], np.where(seen, 255, 0)[None].repeat(f, 0)
    )


def test_an_image_longer_than_webp_allows_is_a_png():
    grid = page.VideoGrid("a", videos(4, 250, 16, 16), 8)
    text = page.VideoGrids("t", [grid]).body()
    (image,) = Page(text).all("img")
    assert image["src"].startswith("data:image/png;")


def test_grids_of_large_videos_are_compressed():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 256, 256, 3), np.uint8)
    text = page.VideoGrids("t", [page.VideoGrid("a", noise, 8)]).body()
    (image,) = Page(text).all("img")
    assert image["src"].startswith("data:image/webp;")
    assert len(text) < 4_000_000  # noise is the worst case: real footage takes a fifth


def test_floats_are_refused():
    grid = page.VideoGrid("a", videos() / 255, 8)
    with pytest.raises(UserError, match="a grid needs uint8"):
        page.VideoGrids("t", [grid]).body()


def test_write_replaces_an_older_page(tmp_path):
    path = tmp_path / "report" / "index.html"
    for title in ("one", "two"):
        page.write(path, title=title, summary="", sections=[])
    assert "<h1>two</h1>" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


# --- in a browser ------------------------------------------------------------------


@pytest.fixture
def browse(tmp_path):
    """(page, *flags) -> what the page's scripts print as FOUND, and other messages."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("chromium is not installed")

    def load(page, *flags):
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        command = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            "--enable-logging=stderr --virtual-time-budget=2000 --window-size=1400,900 "
            f"--user-data-dir={tmp_path / 'user'} --screenshot={tmp_path / 'page.png'}"
        )
        done = subprocess.run(
            [browser, *command.split(), *flags, file.as_uri()],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        console = re.findall(r'CONSOLE:?\S* "(.*)", source', done.stderr)
        found = [line for line in console if line.startswith("FOUND ")]
        other = [line for line in console if line not in found]
        return [json.loads(line.removeprefix("FOUND ")) for line in found], other

    return load


PROBE = """<!doctype html>
<iframe width="WIDTH" height="844" srcdoc="PAGE"></iframe>
<script>
function probe() {
  const page = document.querySelector("iframe").contentDocument;
  const grids = [...page.querySelectorAll(".video-grid")];
  const style = grid => page.defaultView.getComputedStyle(grid);
  const state = () => [...new Set(grids.map(grid => style(grid).animationPlayState))];
  const found = {
    width: page.defaultView.innerWidth,
    needed: page.scrollingElement.scrollWidth,
    loaded: grids.every(grid => grid.complete && grid.naturalWidth > 0),
    boxes: [...page.querySelectorAll(".scroll")].map(
      box => box.scrollWidth > box.clientWidth),
    starts: new Set(page.getAnimations().map(moving => moving.startTime)).size,
    before: state(),
  };
  page.getElementById("switch").click();
  found.after = state();
  page.getElementById("switch").click();
  const moving = grids[0].getAnimations()[0];
  moving.pause();
  found.places = [0.5, 1.5, 2.5, 3.5, 4.5].map(frame => {
    moving.currentTime = 1000 * frame / 8;
    return style(grids[0]).objectPosition;
  });
  page.querySelector("footer").remove();
  found.unfinished = page.getAnimations().length;
  console.log("FOUND " + JSON.stringify(found));
}
let frames = 0;
const wait = () => frames++ < 5 ? requestAnimationFrame(wait) : probe();
onload = wait;
</script>"""


def probe(page, width):
    return PROBE.replace("WIDTH", str(width)).replace("PAGE", html.escape(page))


def test_browser_has_no_complaint(browse, html_page):
    assert browse(html_page) == ([], [])


@pytest.mark.parametrize("width", [390, 1280])
def test_browser_fits_the_page_and_plays_grids_synchronously(browse, html_page, width):
    (found,), complaints = browse(probe(html_page, width))
    assert complaints == []
    assert found["width"] == width and found["needed"] <= width
    assert found["loaded"]
    if width == 390:
        assert found["boxes"] == [True, True]  # the table and the commands scroll
    assert found["starts"] == 1 and found["unfinished"] == 0
    assert found["before"] == ["running"] and found["after"] == ["paused"]
    assert found["places"] == ["0% 0px", "25% 0px", "50% 0px", "75% 0px", "100% 0px"]


def test_browser_pauses_where_reduced_motion_is_preferred(browse, html_page):
    (found,), _ = browse(probe(html_page, 390), "--force-prefers-reduced-motion")
    assert found["before"] == ["paused"] and found["after"] == ["running"]


def test_browser_shows_one_frame_at_a_time(browse, tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    clips = np.broadcast_to(colours[:, None, None], (4, 3, 16, 16, 3))
    text = page.render("", "", [page.VideoGrids("", [page.VideoGrid("", clips, 8)])])
    browse(text, "--force-prefers-reduced-motion")
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    red, green, blue = ((shot == colour).all(-1).sum() for colour in colours)
    assert red > 4 * 64 * 64 and green == blue == 0


def test_pictures_do_not_play():
    pictures = page.VideoGrids("a", [page.VideoGrid("b", videos(f=1), 8)])
    images = [
        attributes
        for tag, attributes in Page(page.render("t", "s", [pictures])).elements
        if tag == "img"
    ]
    assert [image["class"] for image in images] == ["video-grid still"]
    assert images[0]["alt"] == "b: 4 pictures"
