"""Given frames of a model that was trained with some (conditions/clean_frames.py)."""

import numpy as np

from vdm_jax.codec import Codec
from vdm_jax.diffusion.samplers import Sampler, Table
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling.settings import Settings
from vdm_jax.sampling.types import Observation


def frame_strength(
    model: DiffusionModel, observation: Observation, settings: Settings
) -> np.ndarray | None:
    """Return the strength [n, f] of frames, None for an observation that guides.

    A model that was trained with given frames is given the known ones. Known parts of
    frames and area means guide it, and so does all that is known where the settings
    have a reconstruction weight.

    Raises:
      UserError: a strength per frame that the model cannot follow, or of a wrong length
        or range.
    """
    mask, own = observation.mask, observation.strength
    known = mask.all((2, 3, 4))
    guided_by = ""
    if model.condition("clean_frames") is None:
        guided_by = "a model that was trained with conditioning.clean_frames"
    elif settings.reconstruction_weight is not None:
        guided_by = "no reconstruction_weight"
    elif observation.low_res is not None or (known != mask.any((2, 3, 4))).any():
        guided_by = "whole frames, neither parts nor area means"
    if own is None:
        return None if guided_by else np.where(known, 0.0, 1.0)
    if guided_by:
        raise UserError(f"a strength for each frame needs {guided_by}")
    if own.shape != known.shape or not ((own >= 0) & (own <= 1)).all():
        raise UserError(
            f"strengths {own.shape} from {own.min():g} to {own.max():g}: a number from "
            f"0 to 1 for each frame, {known.shape}"
        )
    return np.where(known, 0.0, own)


def encode_strength(codec: Codec, observation: Observation) -> np.ndarray | None:
    """Return the strength of each frame of z, [n, f'].

    It is the largest of the frames of the video that a frame of z is made of.
    """
    strength = observation.strength
    if strength is None:
        return None
    frames = strength[:, :, None, None, None]
    out = np.ones(())
    for value in sorted({*strength.ravel()}, reverse=True):
        mask = np.broadcast_to(frames <= value, observation.mask.shape)
        out = np.where(codec.encode_mask(mask).all((2, 3, 4)), value, out)
    return out


def rows_of_frames(sampler: Sampler, table: Table, strength: np.ndarray) -> Table:
    """Return the table of a run in which frames are given until they become active.

    strength: [b, f], as of `guidance.clean`. Where a frame becomes active the memory of
    a multistep sampler has what it was given: its step there would extrapolate from a
    picture to the model's prediction, and overshoot. So it reads the columns of a run
    that starts there, [n, b, f, 1, 1, 1]; a column that is that of `table` for all
    frames stays [n].
    """
    # As the program compares them, which has the dtype of strength.
    alpha, sigma = (table[name].astype(strength.dtype) for name in ("alpha", "sigma"))
    tau = sigma / (alpha + sigma)
    active = (tau[:, None, None] > strength).sum(0)  # the row, of [b, f]
    starts = {row: sampler.first_row(table, row) for row in {*active.flat} - {len(tau)}}
    changed = {}
    for name, column in table.items():
        each = [starts.get(row, table)[name] for row in active.flat]
        if any((own != column).any() for own in each):
            changed[name] = np.stack(each, 1).reshape(-1, *active.shape, 1, 1, 1)
    return table | changed
