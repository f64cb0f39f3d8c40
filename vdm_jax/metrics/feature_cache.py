"""A cache of video features on disk, keyed by the content of the videos."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile, write_bytes
from vdm_jax.metrics.video_arrays import videos_digest
from vdm_jax.npz import read_npz_arrays


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
    path = Path(folder) / f"{video_io.slug(name)}-{digest}.npz"
    with contextlib.suppress(OSError, CorruptFile, KeyError):
        return read_npz_arrays(path)["features"]
    features = extract(videos)
    content = io.BytesIO()
    np.savez(content, features=features)
    try:
        write_bytes(path, content.getvalue(), overwrite=True)
    except UserError as error:  # only later evaluations would read it
        print(f"not cached: {error}", file=sys.stderr, flush=True)
    return features
