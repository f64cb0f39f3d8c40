"""A cache of video features on disk, keyed by the content of the videos."""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes
from vdm_jax.metrics.video_arrays import videos_digest


def cached_features(
    folder: str | Path,
    name: str,
    protocol: str,
    videos: np.ndarray,
    extract: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return `extract(videos)`, from the cache where it holds these videos.

    A damaged file is replaced. A file that cannot be written is reported on stderr.

    Args:
      folder: where the cache is.
      name: a readable prefix of the file's name.
      protocol: what the features depend on besides the videos, as `i3d.PROTOCOL`.
      videos: [n, ...]; the key is their bytes, shape and type.
      extract: called where the cache holds nothing.
    """
    digest = videos_digest(videos, protocol=protocol)[:32]
    path = Path(folder) / f"{video_io.slug(name)}-{digest}.features"
    features = _read(path)
    if features is None:
        features = extract(videos)
        try:
            _write(path, features)
        except UserError as error:  # only later evaluations would read it
            print(f"not cached: {error}", file=sys.stderr, flush=True)
    return features


def _write(path: Path, features: np.ndarray) -> None:
    """Write a line with the checksum and an .npy file, atomically."""
    content = io.BytesIO()
    np.save(content, features, allow_pickle=False)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    write_bytes(path, digest.encode() + b"\n" + content.getvalue(), overwrite=True)


def _read(path: Path) -> np.ndarray | None:
    """Return the features; None if the file is absent or fails its checksum."""
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)
