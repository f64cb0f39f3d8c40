"""Objects in stills and clips of sprites, detected without a network.

Every frame is compared with every object of the vocabulary at every place, as the data
set renders them, by least squares with the background's colours free: one colour, or a
gradient from top to bottom. Photographs are outside the measure. Samples have objects
of any size, so sizes between and around the two of the data set are searched, too.
"""

import functools
from typing import NamedTuple

import numpy as np

from vdm_jax.data import sprite_pictures
from vdm_jax.data.sprite_pictures import SUPERSAMPLING
from vdm_jax.data.sprites import Geometry, Sprites

COARSE = 2  # pixels to a side of a pixel of the first search
NUM_CANDIDATES = 8  # objects and sizes of a frame that are searched at full resolution
NUM_FITTED = 3  # of them that are placed between pixels
SIZE_STEP = 2  # pixels from one size that is searched to the next


class Detections(NamedTuple):
    """The best object of every frame; arrays [n, f, ...].

    object      int, index into the vocabulary
    size        int, longer side in pixels
    centre      [2] (x, y) in pixels
    colours     [2, 3] of the background at the upper and lower edge, about [0, 1]
    explained   share of the squared error of a background without an object
    rendering   uint8 [h, w, 3], what was fitted
    """

    object: np.ndarray
    size: np.ndarray
    centre: np.ndarray
    colours: np.ndarray
    explained: np.ndarray
    rendering: np.ndarray


def background_basis(height: int, gradients: bool) -> np.ndarray:
    """Return functions of the rows [1 or 2, h] of which a background is a sum.

    They are 1 and the distance from the middle row, -1 to 1 at the frame's edges.
    """
    rows = 2 * (np.arange(height, dtype=np.float32) + 0.5) / height - 1
    return np.stack([np.ones_like(rows), rows][: 1 + gradients])


def _templates(pictures: np.ndarray, coarse: int) -> np.ndarray:
    """Return pictures uint8 [k, 4, side, side] at whole places, float32 in [0, 1]."""
    step = SUPERSAMPLING * coarse
    pad = -pictures.shape[-1] % step
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, pad), (0, pad)))
    n, channels, side, _ = padded.shape
    cells = padded.reshape(n, channels, side // step, step, side // step, step)
    return cells.mean((3, 5), dtype=np.float32) / 255


class Matcher:
    """Templates of one size, ready to be compared with frames of one shape.

    A frame f is modelled as T + (1 - a) sum_k u_k c_k: the template's colours T (times
    its alpha a), and a background of the functions u_k of the rows with free colours.
    """

    def __init__(self, pictures: np.ndarray, basis: np.ndarray, width: int, coarse=1):
        """Prepare templates of `pictures` for frames [3, h, width]. basis: [k, h]."""
        templates = _templates(pictures, coarse)
        side, height = templates.shape[-1], basis.shape[1]
        self.basis, self.shape = basis, (height, width)
        self.places = height - side + 1, width - side + 1
        colour, alpha = templates[:, :3], templates[:, 3]
        self.spectra = np.fft.rfft2(templates, self.shape).conj()
        self.energy = np.square(colour).sum((1, 2, 3))[:, None, None]
        # Sums over pixels of rows' functions times a template depend on its row.
        windows = np.lib.stride_tricks.sliding_window_view(basis, side, axis=1)
        rows = (colour * (1 - alpha[:, None])).sum(3)  # [n, 3, side]
        self.hidden = np.einsum("kir,ncr->nkci", windows, rows)[..., None]
        rows = (2 * alpha - np.square(alpha)).sum(2)
        covered = np.einsum("kir,lir,nr->nikl", windows, windows, rows)
        self.inverse = np.linalg.inv(width * basis @ basis.T - covered)

    def errors(self, frame: np.ndarray) -> np.ndarray:
        """Return squared errors [n, places y, places x] of a frame [3, h, w].

        They are sums over pixels and channels at the best colours of the background.
        """
        rows, columns = self.places
        weighted = self.basis[:, None, :, None] * frame  # [k, 3, h, w]
        spectra = np.fft.rfft2(weighted)
        # Correlations of the frame with T, then of the weighted frame with a.
        product = (self.spectra[:, :3] * spectra[0]).sum(1)
        overlap = np.fft.irfft2(product, self.shape)[:, :rows, :columns]
        error = np.square(frame).sum() + self.energy - 2 * overlap
        visible = []
        for k, spectrum in enumerate(spectra):
            covered = np.fft.irfft2(self.spectra[:, 3:] * spectrum, self.shape)
            total = weighted[k].sum((1, 2))[:, None, None]
            visible.append(total - self.hidden[:, k] - covered[..., :rows, :columns])
        for k, left in enumerate(visible):
            for m, right in enumerate(visible):
                factor = self.inverse[:, :, k, m][..., None]
                error -= factor * (left * right).sum(1)
        return error


def searched_sizes(height: int, width: int) -> range:
    """Return the sizes in pixels in which objects are searched in frames."""
    small, *_, large = sorted(Geometry(1, height, width).sizes)
    return range(small - SIZE_STEP, large + SIZE_STEP + 1, SIZE_STEP)


@functools.lru_cache(maxsize=4)
def _coarse_matchers(
    vocabulary: str, sizes: range, height: int, width: int, gradients: bool
) -> list[Matcher]:
    """Return a matcher of the whole vocabulary for each size that is searched."""
    basis = background_basis(-(-height // COARSE), gradients)
    banks = (sprite_pictures.pictures(vocabulary, size) for size in sizes)
    return [Matcher(bank, basis, -(-width // COARSE), COARSE) for bank in banks]


def _shrink(frame: np.ndarray) -> np.ndarray:
    """Return area means [3, h / COARSE, w / COARSE] of a frame [3, h, w]."""
    pads = [(0, -n % COARSE) for n in frame.shape[1:]]
    frame = np.pad(frame, [(0, 0), *pads], mode="edge")
    _, height, width = frame.shape
    cells = (3, height // COARSE, COARSE, width // COARSE, COARSE)
    return frame.reshape(cells).mean((2, 4))


def _refine(error: np.ndarray) -> tuple[float, float]:
    """Return the place (x, y) of the least error [rows, columns], between pixels.

    A parabola through three errors along each axis.
    """
    i, j = np.unravel_index(error.argmin(), error.shape)
    place = []
    for line, at in ((error[i], j), (error[:, j], i)):
        inner = min(max(at, 1), len(line) - 2)
        before, here, after = line[inner - 1 : inner + 2]
        bend = max(before - 2 * here + after, 1e-6)
        shift = inner + np.clip((before - after) / (2 * bend), -1, 1)
        place.append(float(np.clip(shift, 0, len(line) - 1)))
    return place[0], place[1]


def fit_background(
    frame: np.ndarray, picture: np.ndarray, x: float, y: float, basis: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Fit the background's colours to a frame with a picture at a place.

    Args:
      frame: [h, w, 3] in [0, 1].
      picture: float32 of `sprite_pictures.render`, in [0, 255].
      x, y: its left and upper edge in pixels.
      basis: [k, h] of `background_basis`.

    Returns:
      The squared error; the background at the upper and lower edge, [2, 3]; the
      rendering [h, w, 3].
    """
    sprite = np.zeros_like(frame)
    sprite_pictures.paste(sprite, picture, x, y)
    sprite /= 255
    visible = _visible_background(frame, picture, x, y)
    design = visible[..., 0] * basis[:, :, None]  # [k, h, w]
    normal = np.einsum("khw,lhw->kl", design, design)
    colours = np.linalg.solve(normal, np.einsum("khw,hwc->kc", design, frame - sprite))
    background = np.einsum("kh,kc->hc", basis, colours)[:, None]
    rendering = sprite + visible * np.clip(background, 0, 1)
    slope = colours[1] if len(colours) > 1 else np.zeros(3)
    edges = np.stack([colours[0] - slope, colours[0] + slope])
    return float(np.square(frame - rendering).sum()), edges, rendering


def _visible_background(
    frame: np.ndarray, picture: np.ndarray, x: float, y: float
) -> np.ndarray:
    """Return how much of each pixel a picture leaves visible, shaped as the frame."""
    visible = np.ones_like(frame)
    hole = picture * np.array([0, 0, 0, 1], np.float32)[:, None, None]
    sprite_pictures.paste(visible, hole, x, y)
    return visible


def _continue(frame: np.ndarray, margin: int) -> np.ndarray:
    """Return a frame [h, w, 3] with a margin of the median of its pixels."""
    height, width, _ = frame.shape
    out = np.tile(np.median(frame, axis=(0, 1)), (height + 2 * margin, 1, 1))
    out = np.repeat(out, width + 2 * margin, axis=1)
    out[margin : margin + height, margin : margin + width] = frame
    return out


def _detect(frame: np.ndarray, vocabulary: str, gradients: bool, sizes: range) -> tuple:
    """Return the fields of Detections for a frame [h, w, 3] in [0, 1]."""
    height, width, _ = frame.shape
    channels = np.ascontiguousarray(np.moveaxis(frame, -1, 0))
    basis = background_basis(height, gradients)
    matchers = _coarse_matchers(vocabulary, sizes, height, width, gradients)
    shrunk = _shrink(channels)
    least = np.stack([m.errors(shrunk).min((1, 2)) for m in matchers])
    candidates = []
    for number in np.argsort(least, axis=None)[:NUM_CANDIDATES]:
        row, sprite = divmod(int(number), least.shape[1])
        picture = sprite_pictures.pictures(vocabulary, sizes[row])[sprite]
        error = Matcher(picture[None], basis, width).errors(channels)[0]
        candidates.append((error.min(), sprite, sizes[row], picture, _refine(error)))
    candidates.sort(key=lambda candidate: candidate[0])
    fits = []
    for _, sprite, size, picture, (x, y) in candidates[:NUM_FITTED]:
        fit = fit_background(frame, picture.astype(np.float32), x, y, basis)
        fits.append((fit[0], sprite, size, (x + size / 2, y + size / 2), *fit[1:]))
    error, sprite, size, centre, edges, rendering = min(fits, key=lambda fit: fit[0])
    # The basis is orthogonal, so each function explains its own part of the frame.
    parts = np.square(basis @ frame.mean(1)).sum(1) / np.square(basis).sum(1)
    without = float(np.square(frame).sum() - width * parts.sum())
    explained = 1 - error / max(without, 1e-6)
    pixels = np.rint(255 * rendering).astype(np.uint8)
    return sprite, size, centre, edges, explained, pixels


def silhouettes(videos: np.ndarray, source: Sprites) -> np.ndarray:
    """Return how much of each pixel the detected objects cover, uint8 [n, f, h, w, 1].

    The arguments are those of `detect_sprites`.
    """
    found = detect_sprites(videos, source)
    places = zip(*(a.reshape(-1, *a.shape[2:]) for a in found[:3]), strict=True)
    frames = [
        source.silhouette(int(number), int(size), centre[None])
        for number, size, centre in places
    ]
    return np.concatenate(frames).reshape(*videos.shape[:4], 1)


def detect_sprites(videos: np.ndarray, source: Sprites, margin: int = 0) -> Detections:
    """Detect the object, its size and place, and the background, of every frame.

    Args:
      videos: [n, f, h, w, 3], uint8 or float in [-1, 1].
      source: the data, for its vocabulary and whether backgrounds are gradients.
      margin: pixels around a frame in which objects are searched, too, so that one that
        the border cuts off is found. It has the frame's median colour, so backgrounds
        must be flat. Renderings have the margin.
    """
    sizes = searched_sizes(*videos.shape[2:4])
    if videos.dtype == np.uint8:
        frames = videos.astype(np.float32) / 255
    else:
        frames = (videos.astype(np.float32) + 1) / 2
    if margin:
        frames = np.stack([[_continue(f, margin) for f in clip] for clip in frames])
    how = source.vocabulary, source.gradients, sizes
    found = [[_detect(frame, *how) for frame in clip] for clip in frames]
    fields = range(len(Detections._fields))
    detected = Detections(
        *(np.array([[frame[k] for frame in clip] for clip in found]) for k in fields)
    )
    return detected._replace(centre=detected.centre - margin)
