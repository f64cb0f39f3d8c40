"""Videos of several sizes in one buffer of tokens (NaViT, arXiv:2307.06304).

A buffer is z [b, n, 1, 1, p p c]: each token is a frame of one pixel, whose channels
are those of a patch. `inputs.Packing` says where it belongs. All sizes have one shape,
so that they are one compiled program.
"""

from collections.abc import Sequence

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.networks.inputs import Packing

# `dit_blocks.attention_ids` has 7 bits for the video and 12 for each position.
MAX_VIDEOS, MAX_SIDE = 127, 2**12


def num_tokens(size: Sequence[int], patch_size: int) -> int:
    """Return the tokens of a video of (frames, height, width)."""
    frames, height, width = size
    return frames * (height // patch_size) * (width // patch_size)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return buffers of indices of videos: each, longest first, where it first fits.

    lengths: tokens of each video. capacity: of a buffer.

    Raises:
      UserError: a video does not fit in an empty buffer.
    """
    buffers: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > capacity:
            raise UserError(
                f"a video of {lengths[i]} tokens in a buffer of {capacity}: give a "
                "larger buffer or a smaller video"
            )
        fits = (j for j, room in enumerate(left) if room >= lengths[i])
        j = next(fits, len(buffers))
        if j == len(buffers):
            buffers.append([])
            left.append(capacity)
        buffers[j].append(i)
        left[j] -= lengths[i]
    return buffers


def pack(
    videos: Sequence[np.ndarray], patch_size: int, capacity: int, places: int = 0
) -> tuple[np.ndarray, Packing]:
    """Return one buffer [n, 1, 1, p p c] of videos [f, h, w, c], n = capacity.

    The arrays of the packing have no batch axis.

    places: for videos, of which the last may have none; 0 is as many as videos.

    Raises:
      UserError: the videos have more tokens than the buffer, there are more than
        MAX_VIDEOS, or one has more than MAX_SIDE frames, rows or columns.
    """
    if len(videos) > MAX_VIDEOS:
        raise UserError(f"{len(videos)} videos in a buffer: at most {MAX_VIDEOS}")
    tokens, segments, positions = [], [], []
    for i, video in enumerate(videos):
        f, h, w, c = video.shape
        p = patch_size
        if max(f, h // p, w // p) > MAX_SIDE:
            raise UserError(
                f"a video of {f} frames of {h}x{w} in patches of {p}: at most "
                f"{MAX_SIDE} frames, rows and columns"
            )
        patches = video.reshape(f, h // p, p, w // p, p, c).swapaxes(2, 3)
        tokens.append(patches.reshape(-1, p * p * c))
        grid = np.indices((f, h // p, w // p)).reshape(3, -1).T
        positions.append(grid)
        segments.append(np.full(len(grid), i + 1))
    used = sum(map(len, tokens))
    if used > capacity:
        raise UserError(f"{used} tokens in a buffer of {capacity}: give a larger one")
    whole = [
        np.pad(np.concatenate(parts), ((0, capacity - used),) + ((0, 0),) * axes)
        for parts, axes in ((tokens, 1), (segments, 0), (positions, 1))
    ]
    z, segment, position = whole
    frames = np.zeros(places or len(videos))
    frames[: len(videos)] = [len(video) for video in videos]
    arrays = (array.astype(np.int32) for array in (segment, position, frames))
    return z[:, None, None], Packing(*arrays)  # type: ignore[arg-type]


def unpack(
    z: np.ndarray, sizes: Sequence[Sequence[int]], patch_size: int
) -> list[np.ndarray]:
    """Return the videos [f, h, w, c] of a buffer [n, 1, 1, p p c]: invert `pack`.

    sizes: (frames, height, width) of each video.
    """
    tokens, p, videos, start = z[:, 0, 0], patch_size, [], 0
    for f, h, w in sizes:
        length = num_tokens((f, h, w), p)
        patches = tokens[start : start + length]
        patches = patches.reshape(f, h // p, w // p, p, p, -1).swapaxes(2, 3)
        videos.append(patches.reshape(f, h, w, -1))
        start += length
    return videos
