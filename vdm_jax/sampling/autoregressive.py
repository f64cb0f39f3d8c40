"""Videos of any length, block after block (VDM, section 3.1).

Each block is conditioned on what is known within it: frames and pixels of the user's
observation, and the frames of the blocks before it. One program serves all blocks, so
memory does not grow with the length.
"""

import dataclasses

import numpy as np

from vdm_jax.diffusion.multidiffusion import axis_starts
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.batches import decode, generate
from vdm_jax.sampling.settings import Settings
from vdm_jax.sampling.types import Observation, Run, SamplingInputs


def extend_in_blocks(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings,
    inputs: SamplingInputs,
    run: Run = Run(),
    *,
    overlap_frames: int | None = None,
    backward: bool = False,
) -> np.ndarray:
    """Sample `num` videos of the observation's length, [num, n, h, w, c] in [-1, 1].

    Args:
      inputs: its observation has arrays of [1 or num, n, h, w, c]; n is a block or
        more. Known pixels are returned unchanged.
      overlap_frames: frames that a block shares with the one before it; the default is
        half a block.
      backward: sample from the last block to the first.

    The other arguments are those of `sample`; the blocks are numbered, and the
    observation has the size.
    """
    observation = inputs.observation
    block = model.video_shape[0]
    assert observation is not None
    frames, height, width = observation.video.shape[1:4]
    overlap = block // 2 if overlap_frames is None else overlap_frames
    starts = axis_starts(frames, block, overlap)
    if backward:
        starts = [frames - block - start for start in starts]
    z = _encode_known(model, params, observation)
    whole = Observation(
        *(
            None if a is None else np.broadcast_to(a, (num, *a.shape[1:])).copy()
            for a in observation._replace(z=z)
        )  # type: ignore[arg-type]
    )
    for number, start in enumerate(starts):
        span = slice(start, start + block)
        known = Observation(*(None if a is None else a[:, span] for a in whole))  # type: ignore[arg-type]
        if known.mask.all():
            continue

        def progress(done: int, total: int, number: int = number) -> None:
            run.progress(number * total + done, len(starts) * total)

        known = None if known.empty else known
        made = generate(
            model,
            params,
            num,
            settings,
            dataclasses.replace(inputs, observation=known),
            dataclasses.replace(
                run, block=number, size=(block, height, width), progress=progress
            ),
        )
        whole.video[:, span] = decode(model, params, made, known)
        whole.mask[:, span] = True
        if whole.strength is not None:
            whole.strength[:, span] = 0
        if whole.z is not None:
            whole.z[:, span] = made
    return whole.video


def _encode_known(
    model: DiffusionModel, params: Params, observation: Observation
) -> np.ndarray | None:
    """Return z of what is observed, to which that of each block is added.

    A block that was decoded and encoded again would differ a little, and colours would
    drift from block to block. None where z is the video, or where a frame of z is made
    of several frames.
    """
    is_video = model.shape == model.video_shape
    if is_video or model.shape[0] != model.video_shape[0]:
        return None
    return model.codec.encode_on_host(observation.video, params.get("codec"))
