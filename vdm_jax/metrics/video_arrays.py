"""Arrays of videos: conversion to float64, removal of duplicates, checks of shapes.

Videos are [n, f, h, w, c], uint8 0..255 or float in [-1, 1]; floats are clipped to that
range, as they are when they are written to a file.
"""

import hashlib

import numpy as np

from vdm_jax.errors import UserError


def to_float64(video: np.ndarray) -> np.ndarray:
    """Return pixels as float64 in [-1, 1], of uint8 0..255 or of floats, clipped.

    Raises UserError for other types and for values that are not finite.
    """
    video = np.asarray(video)
    if video.dtype == np.uint8:
        return video / 127.5 - 1.0
    if not np.issubdtype(video.dtype, np.floating):
        raise UserError(
            f"videos of type {video.dtype}: give uint8, or float in [-1, 1]"
        )
    if not np.isfinite(video).all():
        raise UserError("videos with NaN or infinite pixels: nothing can be measured")
    return np.clip(video.astype(np.float64), -1.0, 1.0)


def videos_digest(*videos: np.ndarray, protocol: str = "") -> str:
    """Return a checksum of videos: of their shapes, types and bytes.

    protocol: what it depends on besides, "" for nothing.
    """
    digest = hashlib.sha256(f"{protocol}\n".encode() if protocol else b"")
    for array in videos:
        digest.update(f"{array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def unique_videos(videos: np.ndarray) -> np.ndarray:
    """Return videos [n, ...] without duplicates, in order of first occurrence."""
    first: dict[bytes, int] = {}
    for i, video in enumerate(videos):
        first.setdefault(hashlib.sha256(video.tobytes()).digest(), i)
    return videos[list(first.values())]


def group_by_video(features: np.ndarray, n: int) -> np.ndarray:
    """Reshape features [n * k, d] of n consecutive videos to [n, k, d]."""
    return features.reshape(n, -1, features.shape[-1])


def check_videos(
    videos: np.ndarray, purpose: str, clips=1, frames=1, side=1, channels="3"
) -> np.ndarray:
    """Return videos; UserError unless they have at least so many clips, frames, pixels.

    purpose: what they are for, in the message. channels: "c" for any number.
    """
    shape = np.shape(videos)
    enough = len(shape) == 5 and shape[0] >= clips and shape[1] >= frames
    if not enough or min(shape[2:4]) < side or channels not in ("c", str(shape[-1])):
        raise UserError(
            f"videos of shape {shape}: {purpose} needs [n, f, h, w, {channels}] with "
            f"at least {clips} clips of {frames} frames of {side}x{side} pixels"
        )
    return videos


def check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    """Raise UserError unless clips a and b agree in frames, size and channels."""
    if np.ndim(a) != 5 or np.ndim(b) != 5 or a.shape[1:] != b.shape[1:] or not len(b):
        raise UserError(
            f"clips of shapes {np.shape(a)} and {np.shape(b)} cannot be compared: give "
            "[n, f, h, w, c] with the same frames, size and channels"
        )
