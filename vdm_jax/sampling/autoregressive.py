"""Videos of any length, block after block (VDM, section 3.1).

Each block is sampled given what is known in its reach: frames and pixels given by the
user, and the frames that blocks before it left. One program serves all blocks, so
memory does not grow with the length.
"""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from vdm_jax.diffusion.multidiffusion import axis_starts
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.sampling.generate import Observation, sample
from vdm_jax.sampling.settings import Settings


def extend_in_blocks(
    model: DiffusionModel,
    params: Params,
    num: int,
    settings: Settings,
    observation: Observation,
    *,
    overlap_frames: int | None = None,
    backward: bool = False,
    labels: np.ndarray | None = None,
    negative_labels: np.ndarray | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """`num` videos as long as `known`, which holds [1 or num, n, h, w, c] of them.

    overlap: frames that a block takes from the one before it, default half a block.
    backward: from the last block to the first. Given pixels come back as they are. The
    rest is as for `sample`; n is a block or more.
    """
    block = model.shape[0]
    frames, height, width = observation.video.shape[1:4]
    half = block // 2 if overlap_frames is None else overlap_frames
    first = axis_starts(frames, block, half)
    if backward:
        first = [frames - block - at for at in first]
    video, mask = (
        np.broadcast_to(a, (num, *a.shape[1:])).copy() for a in observation[:2]
    )
    for number, at in enumerate(first):
        reach = slice(at, at + block)
        given, low = (
            mask[:, reach],
            None if observation.low_res is None else observation.low_res[:, reach],
        )
        if not given.all():
            bare = low is None and not given.any()
            made = sample(
                model,
                params,
                num,
                settings,
                labels=labels,
                negative_labels=negative_labels,
                observation=None if bare else Observation(video[:, reach], given, low),
                size=(block, height, width),
                seed=seed,
                block_index=number,
                mesh=mesh,
                progress=lambda done, total, number=number: progress(
                    number * total + done, len(first) * total
                ),
            )
            video[:, reach] = made  # given pixels in it, as they were
            mask[:, reach] = True
    return video
