"""Videos to evaluate: samples that sample.py wrote, and real clips of a config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import data, video_io
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.runs import read_json

TRAINING_CLIPS = 1024  # at least so many are searched for the nearest
SAMPLES = "samples.npz"


def read_sample_info(folder: Path) -> dict:
    """Return samples.json of a folder: command, fps, and workdir or stages.

    Raises:
      UserError: the file is missing or was not written by sample.py.
    """
    path = folder / "samples.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no samples.json: give a --out of sample.py")
    match info := read_json(path):
        case {"command": str(), "fps": int() | float() as fps} if fps > 0:
            match info:
                case {"workdir": str()} | {"stages": [str(), *_], "labels": [*_]}:
                    return info
    raise UserError(f"{path} is not what sample.py writes: sample again")


def read_samples(folder: Path) -> np.ndarray:
    """Return the videos [n, f, h, w, c] of a folder that sample.py wrote, uncompressed.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = folder / SAMPLES
    try:
        return video_io.read_npz(path)
    except (OSError, CorruptFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} holds no videos of sample.py: {reason}") from error


def real_clips(config: Any, num: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a batch of held-out clips and an array of training clips of a config."""
    source = data.open_source(config)
    held_out = pipeline.held_out_batch(config, source, num)
    clips = pipeline.fixed_clips(config, source.split(False), num_training_clips(num))
    return held_out, stack_videos(clips)


def num_training_clips(num: int) -> int:
    """Return how many training clips to read: two sets of `num`, and TRAINING_CLIPS."""
    return max(TRAINING_CLIPS, 2 * num)


def stack_videos(clips: Iterator[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the videos of batches of one as one array."""
    return np.concatenate([clip["video"] for clip in clips])
