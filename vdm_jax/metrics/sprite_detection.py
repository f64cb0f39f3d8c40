"""Attributes of stills and clips of sprites, measured without a network.

Every frame is compared with every object of the vocabulary in both sizes at every
place, as the data set renders them, by least squares with the background's colour free.
Backgrounds of one colour are meant: gradients and photographs are outside the measure.
"""

import functools
from typing import NamedTuple

import numpy as np
import scipy.fft

from vdm_jax.data import sprite_pictures
from vdm_jax.data.sprite_pictures import SUPERSAMPLING
from vdm_jax.data.sprites import Geometry

COARSE = 2  # pixels to a side of a pixel of the first search
NUM_CANDIDATES = 8  # objects and sizes of a frame that are searched at full resolution
NUM_FITTED = 3  # of them that are placed between pixels


class Detections(NamedTuple):
    """The best object of every frame; arrays [n, f, ...].

    object      int, index into the vocabulary
    size        int, longer side in pixels
    centre      [2] (x, y) in pixels
    colour      [3] of the background, about [0, 1]
    explained   share of the frame's variance about one colour; 1 is a perfect fit
    rendering   uint8 [h, w, 3], what was fitted
    """

    object: np.ndarray
    size: np.ndarray
    centre: np.ndarray
    colour: np.ndarray
    explained: np.ndarray
    rendering: np.ndarray


def _templates(pictures: np.ndarray, coarse: int) -> np.ndarray:
    """Return pictures uint8 [k, 4, side, side] at whole places, float32 in [0, 1]."""
    step = SUPERSAMPLING * coarse
    pad = -pictures.shape[-1] % step
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, pad), (0, pad)))
    n, channels, side, _ = padded.shape
    cells = padded.reshape(n, channels, side // step, step, side // step, step)
    return cells.mean((3, 5), dtype=np.float32) / 255


class Matcher:
    """Templates of one size, ready to be compared with frames of one shape."""

    def __init__(self, pictures: np.ndarray, shape: tuple[int, int], coarse: int):
        """Prepare templates of `pictures` for frames [3, *shape]."""
        templates = _templates(pictures, coarse)
        self.shape, side = shape, templates.shape[-1]
        self.places = shape[0] - side + 1, shape[1] - side + 1
        colour, alpha = templates[:, :3], templates[:, 3]
        self.spectra = scipy.fft.rfft2(templates, shape).conj()
        self.energy = np.square(colour).sum((1, 2, 3))
        self.hidden = (colour * (1 - alpha[:, None])).sum((2, 3))  # sum of (1 - a) T
        self.weight = shape[0] * shape[1] + (np.square(alpha) - 2 * alpha).sum((1, 2))

    def errors(self, frame: np.ndarray) -> np.ndarray:
        """Return squared errors [k, places y, places x] of a frame [3, h, w].

        The frame is T + (1 - a) c with the colour c of the background free; the sums
        over pixels are correlations of the frame with T and with a.
        """
        spectrum = scipy.fft.rfft2(frame)
        product = self.spectra[:, 3:] * spectrum
        both = np.concatenate(
            [(self.spectra[:, :3] * spectrum).sum(1, keepdims=True), product], axis=1
        )
        rows, columns = self.places
        sums = scipy.fft.irfft2(both, self.shape)[..., :rows, :columns]
        total = frame.sum((1, 2))
        visible = (total - self.hidden)[..., None, None] - sums[:, 1:]
        explained = np.square(visible).sum(1) / self.weight[:, None, None]
        energy = np.square(frame).sum() + self.energy[:, None, None]
        return energy - 2 * sums[:, 0] - explained


@functools.lru_cache(maxsize=4)
def _coarse_matchers(vocabulary: str, height: int, width: int) -> list[Matcher]:
    shape = -(-height // COARSE), -(-width // COARSE)
    sizes = Geometry(1, height, width).sizes
    banks = (sprite_pictures.pictures(vocabulary, size) for size in sizes)
    return [Matcher(bank, shape, COARSE) for bank in banks]


def _shrink(frame: np.ndarray) -> np.ndarray:
    """Return area means [3, h / COARSE, w / COARSE] of a frame [3, h, w]."""
    pads = [(0, -n % COARSE) for n in frame.shape[1:]]
    frame = np.pad(frame, [(0, 0), *pads], mode="edge")
    _, height, width = frame.shape
    cells = (3, height // COARSE, COARSE, width // COARSE, COARSE)
    return frame.reshape(cells).mean((2, 4))


def _candidates(frame: np.ndarray, vocabulary: str) -> list[tuple[int, int]]:
    """Return (number of the size, object) of the best fits at half the resolution."""
    _, height, width = frame.shape
    shrunk = _shrink(frame)
    matchers = _coarse_matchers(vocabulary, height, width)
    best = np.stack([m.errors(shrunk).min((1, 2)) for m in matchers])
    order = np.argsort(best, axis=None)[:NUM_CANDIDATES]
    sizes, objects = np.unravel_index(order, best.shape)
    return list(zip(sizes.tolist(), objects.tolist(), strict=True))


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


def _fit(frame: np.ndarray, picture: np.ndarray, x: float, y: float):
    """Return error, background colour [3] and rendering [h, w, 3] of a picture.

    frame: [h, w, 3] in [0, 1]. picture: float32 in [0, 255], at the edges x, y.
    """
    sprite, visible = np.zeros_like(frame), np.ones_like(frame)
    sprite_pictures.paste(sprite, picture, x, y)
    sprite /= 255
    hole = picture * np.array([0, 0, 0, 1], np.float32)[:, None, None]
    sprite_pictures.paste(visible, hole, x, y)
    colour = ((frame - sprite) * visible).sum((0, 1)) / np.square(visible).sum((0, 1))
    rendering = sprite + visible * np.clip(colour, 0, 1)
    return float(np.square(frame - rendering).sum()), colour, rendering


def _detect(frame: np.ndarray, vocabulary: str) -> tuple:
    """Return the fields of Detections for a frame [h, w, 3] in [0, 1]."""
    height, width, _ = frame.shape
    channels = np.ascontiguousarray(np.moveaxis(frame, -1, 0))
    geometry = Geometry(1, height, width)
    fits = []
    for number, sprite in _candidates(channels, vocabulary):
        size = geometry.sizes[number]
        picture = sprite_pictures.pictures(vocabulary, size)[sprite]
        error = Matcher(picture[None], (height, width), 1).errors(channels)[0]
        fits.append((error.min(), sprite, size, picture, _refine(error)))
    best = None
    for _, sprite, size, picture, (x, y) in sorted(fits, key=lambda f: f[0])[
        :NUM_FITTED
    ]:
        error, colour, rendering = _fit(frame, picture.astype(np.float32), x, y)
        if best is None or error < best[0]:
            best = error, sprite, size, (x + size / 2, y + size / 2), colour, rendering
    assert best is not None
    error, *found, rendering = best
    variance = float(np.square(frame - frame.mean((0, 1))).sum())
    explained = 1 - error / max(variance, 1e-6)
    return (*found, explained, np.rint(255 * rendering).astype(np.uint8))


def detect_sprites(videos: np.ndarray, vocabulary: str) -> Detections:
    """Detect the object, its size and place, and the background, of every frame.

    Args:
      videos: [n, f, h, w, 3], uint8 or float in [-1, 1].
      vocabulary: a name of sprite_vocabulary.VOCABULARIES.
    """
    if videos.dtype == np.uint8:
        frames = videos.astype(np.float32) / 255
    else:
        frames = (videos.astype(np.float32) + 1) / 2
    found = [[_detect(frame, vocabulary) for frame in clip] for clip in frames]
    arrays = (np.array([[f[k] for f in clip] for clip in found]) for k in range(6))
    return Detections(*arrays)
