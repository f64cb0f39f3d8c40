"""Videos to evaluate: samples that sample.py wrote, and real clips of a config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import data, video_io
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.files import CorruptFile
from vdm_jax.model import DiffusionModel
from vdm_jax.runs import read_json
from vdm_jax.sampling import Conditions

TRAINING_CLIPS = 1024  # at least so many are searched for the nearest
SAMPLES, INFO = "samples.npz", "samples.json"


def samples_folder(out: Path) -> Path:
    """Return the folder of the videos: OUT, or OUT/STAGE of a cascade's last stage."""
    stages = {}
    for path in [] if (out / INFO).is_file() else out.glob(f"*/{INFO}"):
        match read_json(path):
            case {"stages": [*names]} if names[-1:] == [path.parent.name]:
                stages[path.parent] = names
    return max(stages, key=lambda folder: len(stages[folder]), default=out)


def read_sample_info(folder: Path) -> dict:
    """Return samples.json of a folder: command, fps, and workdir or stages.

    Raises:
      UserError: the file is missing or was not written by sample.py.
    """
    path = folder / INFO
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
    """Return a batch of held-out clips and an array of training clips of a config.

    There are TRAINING_CLIPS training clips, or two sets of `num` where that is more.
    """
    source = data.open_source(config)
    held_out = pipeline.held_out_batch(config, source, num)
    num_training = max(TRAINING_CLIPS, 2 * num)
    clips = pipeline.fixed_clips(config, source.split(False), num_training)
    return held_out, stack_videos(clips)


def stack_videos(clips: Iterator[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the videos of batches of one as one array."""
    return np.concatenate([clip["video"] for clip in clips])


def model_conditions(
    model: DiffusionModel, config: Any, workdir: Path, batch: Mapping[str, np.ndarray]
) -> Conditions:
    """Return `conditions` of a model."""
    stage = cascades.as_stage(model, config, workdir=workdir)
    encoder = config.conditioning.text_encoder
    return conditions(cascades.Cascade(workdir, (stage,), encoder), batch)


def conditions(
    cascade: cascades.Cascade, batch: Mapping[str, np.ndarray]
) -> Conditions:
    """Return the conditions of a batch's clips for the first stage of a cascade.

    With other conditions than the clips', distances would include the difference.

    Raises:
      UserError: as `cascade.encode_prompts`, for the batch's captions.
    """
    model = cascade.stages[0].model
    cond = {name: batch[name] for name in model.batch_arrays & batch.keys()}
    if model.text_dim:
        captions = [str(caption) for caption in batch["caption"]]
        cond |= cascades.encode_prompts(cascade, captions)[0]
    for name, condition in model.video_conditions:
        observe = jax.jit(condition.observation)
        cond[name] = np.asarray(observe(model.normalize(batch["video"])))
    return cond
