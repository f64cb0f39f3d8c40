"""A second measure of which object a still shows, independent of templates.

An object is separated from the most frequent colour and described by a histogram of its
colours, moments of its outline and histograms of its edges' directions. The nearest
description of a rendering names it. It is weaker than `sprite_detection` and shares
nothing with it but the pictures, so it can confirm or contradict it.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from vdm_jax.data.sprite_vocabulary import COLOURS
from vdm_jax.data.sprites import Geometry, Sprites

LEVELS = 16  # of a channel, where the most frequent colour is counted
CONTRAST = 0.12  # least difference of an object from its background, in one channel
COLOUR_BINS, EDGE_BINS, CELLS = 4, 8, 3  # of a channel, of directions, of a side
WEIGHTS = (2.0, 1.0, 2.0)  # of colours, outline and edges in a distance


def separate(image: np.ndarray) -> np.ndarray:
    """Return the mask bool [h, w] of an object on a background of about one colour.

    image: [h, w, 3] in [0, 1]. Parts of the background's colour that the object
    encloses belong to the object.
    """
    levels = np.minimum(image * LEVELS, LEVELS - 1).astype(int)
    codes = levels @ (LEVELS**2, LEVELS, 1)
    background = image[codes == np.bincount(codes.ravel()).argmax()].mean(0)
    mask = np.abs(image - background).max(-1) > CONTRAST
    return np.asarray(ndimage.binary_fill_holes(mask), bool)


def colour_histogram(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return square roots of shares [64] of colours, linear between centres of bins."""
    at = np.clip(image[mask] * COLOUR_BINS - 0.5, 0, COLOUR_BINS - 1)
    low = np.minimum(at.astype(int), COLOUR_BINS - 2)
    share = at - low
    histogram = np.zeros((COLOUR_BINS,) * 3)
    for corner in np.ndindex(2, 2, 2):
        weights = np.where(corner, share, 1 - share).prod(-1)
        np.add.at(histogram, tuple((low + corner).T), weights)
    return np.sqrt(histogram.ravel() / max(len(at), 1))


def outline_moments(mask: np.ndarray) -> np.ndarray:
    """Return normalised central moments [7], up to order 3, and extents [2] of a mask.

    M.-K. Hu, Visual pattern recognition by moment invariants, 1962, without invariance
    to rotation. The extents are the logarithm of the aspect and the share of its box.
    """
    y, x = np.nonzero(mask)
    area = len(x)
    height, width = np.ptp(y) + 1, np.ptp(x) + 1
    x, y = (x - x.mean()) / np.sqrt(area), (y - y.mean()) / np.sqrt(area)
    orders = [(2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3)]
    moments = [np.mean(x**p * y**q) for p, q in orders]
    return np.array([*moments, np.log(width / height), area / (width * height)])


def edge_histograms(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return square roots of shares [3 * 3 * 8] of gradients by direction and place.

    Directions are modulo pi. Places are cells of the mask's box.
    """
    grey = image.mean(-1)
    across, down = ndimage.sobel(grey, 1), ndimage.sobel(grey, 0)
    turn = np.arctan2(down, across) / np.pi % 1 * EDGE_BINS
    y, x = np.nonzero(ndimage.binary_dilation(mask))
    strength, turn = np.hypot(across, down)[y, x], turn[y, x]
    cells = [
        np.minimum((v - v.min()) * CELLS // (np.ptp(v) + 1), CELLS - 1) for v in (y, x)
    ]
    histogram = np.zeros((CELLS, CELLS, EDGE_BINS))
    low, share = turn.astype(int), turn % 1
    for step, weight in ((0, 1 - share), (1, share)):
        np.add.at(histogram, (*cells, (low + step) % EDGE_BINS), strength * weight)
    return np.sqrt(histogram.ravel() / max(histogram.sum(), 1e-9))


def describe(image: np.ndarray) -> np.ndarray:
    """Return the description [145] of a still uint8 [h, w, 3]; zeros of a blank one."""
    image = image.astype(np.float64) / 255
    mask = separate(image)
    if np.count_nonzero(mask) < 4:
        return np.zeros(COLOUR_BINS**3 + 9 + CELLS**2 * EDGE_BINS)
    parts = (
        colour_histogram(image, mask),
        outline_moments(mask),
        edge_histograms(image, mask),
    )
    return np.concatenate([w * p for w, p in zip(WEIGHTS, parts, strict=True)])


@dataclasses.dataclass(frozen=True)
class NearestDescription:
    """Names the object of a still by the nearest description of a rendering.

    Attributes:
      descriptions: [k, 145].
      objects: int [k], indices into the vocabulary.
    """

    descriptions: np.ndarray
    objects: np.ndarray

    def name(self, stills: np.ndarray) -> np.ndarray:
        """Return the object int [n] of stills uint8 [n, h, w, 3]."""
        found = np.stack([describe(still) for still in stills])
        energy = np.square(self.descriptions).sum(1)
        nearest = (energy - 2 * found @ self.descriptions.T).argmin(1)
        return self.objects[nearest]


@functools.lru_cache(maxsize=2)
def nearest_description(vocabulary: str, height: int, width: int) -> NearestDescription:
    """Describe every object on every flat background in both sizes, in the middle."""
    geometry = Geometry(1, height, width)
    source = Sprites(vocabulary, geometry)
    centre = np.array([[width / 2, height / 2]])
    rng = np.random.default_rng(0)  # flat backgrounds draw nothing
    backgrounds = [source.background(i, rng) for i in range(len(COLOURS))]
    descriptions, objects = [], []
    for number in range(source.sizes[0]):
        for size in geometry.sizes:
            for background in backgrounds:
                still = source.render(number, size, centre, background)[0]
                descriptions.append(describe(still))
                objects.append(number)
    return NearestDescription(np.stack(descriptions), np.array(objects))
