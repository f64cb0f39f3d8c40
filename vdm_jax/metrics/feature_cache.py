"""Features of videos, kept on disk: those of real clips are the same every time."""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes


def cached_features(
    folder: str | Path,
    name: str,
    protocol: str,
    videos: np.ndarray,
    extract: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """`extract(videos)`, or what it was when these very videos were last asked about.

    Args:
      folder, name: of the file, `name` for a person to know it by.
      protocol: all that the features depend on beside the videos, the weights by their
        checksum: `i3d.PROTOCOL`.
      videos: [n, ...]; their bytes, shape and type are the key.

    A file that is damaged is made again; one that cannot be written is told.
    """
    videos = np.ascontiguousarray(videos)
    told = hashlib.sha256(f"{protocol}\n{videos.shape} {videos.dtype.str}\n".encode())
    told.update(videos.data)
    path = Path(folder) / f"{video_io.slug(name)}-{told.hexdigest()[:32]}.features"
    found = _read(path)
    if found is None:
        found = extract(videos)
        try:
            _write(path, found)
        except UserError as error:  # only the next evaluation would need it
            print(f"not kept: {error}", file=sys.stderr, flush=True)
    return found


def _write(path: Path, features: np.ndarray) -> None:
    """An .npy file behind a line with its checksum, whole or not at all."""
    content = io.BytesIO()
    np.save(content, features, allow_pickle=False)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_bytes(path, digest.encode() + b"\n" + content.getvalue(), overwrite=True)


def _read(path: Path) -> np.ndarray | None:
    """The features; None if there are none or they are not what was written."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)
