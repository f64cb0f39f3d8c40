"""Videos to evaluate: samples that sample.py wrote, and real clips of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import cascade as cascades
from vdm_jax import data, video_io
from vdm_jax.cascade import Cascade, as_stage
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
    folders = (
        [] if (out / INFO).is_file() else [p.parent for p in out.glob(f"*/{INFO}")]
    )
    stages = {folder: read_sample_info(folder).get("stages", ()) for folder in folders}
    return max(stages, key=lambda folder: len(stages[folder]), default=out)


def read_sample_info(folder: Path) -> dict:
    """Return samples.json of a folder: command, fps, and workdir or stages.

    Raises:
      UserError: the file is missing or was not written by sample.py.
    """
    match info := read_json(folder / INFO):
        case {"command": str(), "fps": int() | float() as fps} if fps > 0:
            match info:
                case {"workdir": str()} | {"stages": [str(), *_], "labels": [*_]}:
                    return info
    raise UserError(f"{folder / INFO} is not what sample.py writes: sample again")


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


class RealClips(NamedTuple):
    """A batch of held-out clips, and training clips [n, f, h, w, c]."""

    held_out: dict[str, np.ndarray]
    training: np.ndarray


def real_clips(config: Any, num: int) -> RealClips:
    """Return `num` held-out clips, and TRAINING_CLIPS or 2 num training clips.

    They are videos, also for a model that was trained on stored latents of them.

    Raises:
      UserError: the config names no data set.
    """
    if config.data.source == "folder" and not config.data.path:
        raise UserError(
            "this model names no data set to compare with, as folders of diffusers do "
            "not: sample it, then evaluate.py --videos=OUT --reference=FOLDER"
        )
    source = data.open_videos(config)
    held_out = pipeline.held_out_batch(config, source, num)
    training = training_clips(config, source, max(TRAINING_CLIPS, 2 * num))
    return RealClips(held_out, training)


def training_clips(config: Any, source: Any, num: int) -> np.ndarray:
    """Return videos [num, f, h, w, c] of training clips of a source."""
    clips = pipeline.fixed_clips(config, source.split(False), num)
    return np.concatenate([clip["video"] for clip in clips])


def model_cascade(model: DiffusionModel, config: Any, workdir: Path) -> Cascade:
    """Return any model as a cascade of one stage, also one that takes a video."""
    stage = as_stage(model, config, workdir=workdir)
    return Cascade(workdir, (stage,), config.conditioning.text_encoder)


def conditions(cascade: Cascade, batch: Mapping[str, np.ndarray]) -> Conditions:
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
        read = {array: batch[array] for array in condition.reads}
        cond[name] = np.asarray(observe(model.normalize(batch["video"]), **read))
    return cond
