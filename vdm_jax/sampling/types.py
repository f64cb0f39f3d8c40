"""What sampling takes: conditions, what is observed of the videos, how it runs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdm_jax.diffusion.process import Denoiser

# Arrays [n, ...] of conditions, by their names in a batch; n may be 1 for all videos.
Conditions = Mapping[str, np.ndarray]
Progress = Callable[[int, int], None]  # called as progress(done, total)
Wrap = Callable[[Denoiser, Any], Denoiser]  # called as wrap(denoise, params)


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


class Observation(NamedTuple):
    """Known pixels of the videos, and a low-resolution version of all of it.

    video: [n, f, h, w, c] in [-1, 1]; mask: bool [n, f, h, w, 1], true where `video` is
    known; low_res: [n, f, h', w', c], area means of the video, or None. n is the number
    of videos, or 1 where all have the same observation.

    strength: [n, f] in [0, 1], how far each frame may go from `video`: 0 keeps it, 1
      samples it from noise. None is 0 for known frames, 1 for others. Only a model that
      was trained with given frames takes another one.
    z: of `video`, where it need not be encoded; None encodes it.
    """

    video: np.ndarray
    mask: np.ndarray
    low_res: np.ndarray | None = None
    strength: np.ndarray | None = None
    z: np.ndarray | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        starts_from_noise = self.strength is None or (self.strength == 1).all()
        return self.low_res is None and starts_from_noise and not self.mask.any()


class Control(NamedTuple):
    """The use of one ControlNet.

    scale: its residuals are multiplied by it. start, end: fractions of the steps that
    it is used in, counted from the most noise.
    """

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclasses.dataclass(frozen=True)
class SamplingInputs:
    """The arrays that decide the videos, of which `num` are sampled.

    cond           arrays [num, ...] of the model's conditions by their names in a
                   batch, as label, text and text_mask (and null_text and its mask for
                   a text without pooling); of a condition that is made of
                   a video, that video in [-1, 1] by the condition's name, as
                   low_resolution or, of controls, control_0. Noise of SNR
                   settings.augmentation_snr is added to the former. A condition that is
                   missing is dropped
    negative       the same for the unconditional branch, instead of dropping all.
                   Videos are those of cond
    observation    what is known of the videos; known pixels are returned unchanged
    initial_noise  z [num, f, h, w, c] to start from, as `invert` returns it
    controls       one for each ControlNet of the model; () uses them at scale 1
    """

    cond: Conditions = dataclasses.field(default_factory=dict)
    negative: Conditions | None = None
    observation: Observation | None = None
    initial_noise: np.ndarray | None = None
    controls: tuple[Control, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """How a sampler runs: its noise, its steps, its size, what wraps the denoiser.

    seed          with stage, block and each video's own number it decides all noise
    stage, block  numbers of the stage of a cascade, of the block of a long video
    first_video   number of the first video
    rows          start and stop in the sampler's table of settings.steps rows; None is
                  all of them. A run that starts later than row 0 needs the z of its
                  first row as `initial_noise` (SDEdit, Meng et al. 2021), and one that
                  stops before the last row returns the z of row `stop`
    size          (frames, height, width), none smaller than the model's, which is the
                  default. Larger videos are sampled by MultiDiffusion: overlapping
                  windows, averaged at every call
    wrap          from denoiser and parameters to denoiser, outside of every guidance.
                  It must be hashable and equal by value: another one compiles another
                  program
    shared_noise  all frames of a video have the same noise: the initial one, a
                  sampler's own, and that of known pixels
    mesh          of the devices; the default is that of the settings
    progress      called as progress(done, total) with steps of batches
    """

    seed: int = 0
    stage: int = 0
    block: int = 0
    first_video: int = 0
    rows: tuple[int, int] | None = None
    size: tuple[int, int, int] | None = None
    wrap: Wrap | None = None
    shared_noise: bool = False
    mesh: Mesh | None = None
    progress: Progress = no_progress
