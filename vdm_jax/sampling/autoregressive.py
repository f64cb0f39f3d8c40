"""Videos of any length, block after block (VDM, section 3.1).

Each block is conditioned on what is known within it: frames and pixels of the user's
observation, and the frames of the blocks before it. One program serves all blocks, so
memory does not grow with the length.
"""

import dataclasses

import numpy as np

from vdm_jax.diffusion.multidiffusion import axis_starts
from vdm_jax.errors import UserError
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
        half a block, or as many of it as make whole frames of z.
      backward: sample from the last block to the first.

    The other arguments are those of `sample`; the blocks are numbered, and the
    observation has the size.

    Raises:
      UserError: as `sample`, or frames of z would lie across two blocks.
    """
    observation, codec = inputs.observation, model.codec
    block, factor = model.video_shape[0], codec.frame_factor
    assert observation is not None
    frames, height, width, channels = observation.video.shape[1:]
    codec.z_shape((frames, height, width, channels))  # which refuses a wrong length
    overlap = overlap_frames
    if overlap is None:
        overlap = codec.whole_frames(block // 2)
    if (block - overlap) % factor:
        raise UserError(
            f"overlap_frames={overlap}: {factor}k + 1 frames for latents of {factor}, "
            f"as {codec.whole_frames(overlap)}"
        )
    starts = axis_starts(frames, block, overlap)
    if backward:
        starts = [frames - block - start for start in starts]
    whole = Observation(
        *(
            None if a is None else np.broadcast_to(a, (num, *a.shape[1:])).copy()
            for a in observation
        )  # type: ignore[arg-type]
    )
    z, codec_params = None, params.get("codec")
    if model.shape != model.video_shape:
        # That of each block is added. Decoded and encoded again it would differ a
        # little, and colours would drift from block to block.
        z = codec.encode_on_host(observation.video, codec_params)
        z = np.broadcast_to(z, (num, *z.shape[1:])).copy()
    for number, start in enumerate(starts):
        span = slice(start, start + block)
        known = Observation(*(None if a is None else a[:, span] for a in whole))  # type: ignore[arg-type]
        if known.mask.all():
            continue
        z_span = slice(start // factor, start // factor + model.shape[0])
        # A block begins with a latent of one frame, whose latent in `z` is of more.
        begins = int(factor > 1 and start > 0)
        if z is not None:
            own = z[:, z_span].copy()
            if begins:
                own[:, :1] = codec.encode_on_host(known.video[:, :1], codec_params)
            known = known._replace(z=own)

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
        if z is not None:
            z[:, z_span][:, begins:] = made[:, begins:]
    return whole.video
