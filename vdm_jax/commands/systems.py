"""What sample.py and edit.py make with --system: a video by an image model.

It is imported when JAX has started.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from vdm_jax.cascade import Cascade, CascadeStage
from vdm_jax.data.sprites import open_sprites
from vdm_jax.errors import UserError
from vdm_jax.metrics.sprite_detection import silhouettes
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions, SamplingInputs, observations
from vdm_jax.systems import (
    DEFAULT_FRAMES,
    SYSTEMS,
    Request,
    parse_options,
    text2video_zero,
)
from vdm_jax.systems.request import FindForeground

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class ChosenSystem:
    """A row of SYSTEMS with the options, the length and the files of --flags.

    foreground: as of `Request`. mask: the file that it is from, "" for none.
    """

    name: str
    options: Any
    num_frames: int
    foreground: np.ndarray | FindForeground | None = None
    mask: str = ""

    def sample(
        self, cascade: Cascade, num: int, cond: Conditions,
        negative: Conditions | None, progress: Callable[[str, int, int], None],
        on_stage: Callable[[CascadeStage, TrainedModel, np.ndarray], None],
    ) -> None:  # fmt: skip
        """Make videos with the first stage's model, as `cascade.sample`."""
        stage, system = cascade.stages[0], SYSTEMS[self.name]
        inputs = cascade.controls.add(SamplingInputs(cond, negative))
        request = Request(
            num, self.num_frames, inputs, FLAGS.seed, foreground=self.foreground
        )
        how = stage.settings, self.options
        system.check_request(stage.model, request, *how)
        loaded = cascade.load_first()
        report = functools.partial(progress, stage.name)
        videos = system.sample(loaded, request, *how, report)
        on_stage(stage, loaded, videos)

    def describe(self) -> dict[str, Any]:
        """Return what samples.json says of it."""
        about = {"name": self.name, **dataclasses.asdict(self.options)}
        return about | ({"mask": self.mask} if self.mask else {})


def read_system(cascade: Cascade, mask: str | None = None) -> ChosenSystem:
    """Return the system of the flags --system, --set and --num_frames.

    mask: a file that says where the foreground is, or None.

    Raises:
      UserError: no such system or option, one that has no meaning with controls, or a
        mask that cannot be read.
    """
    name = FLAGS.system
    if name not in SYSTEMS:
        raise UserError(f"--system={name}: one of {', '.join(SYSTEMS)}")
    texts = FLAGS["set"].value or []
    options = parse_options(SYSTEMS[name].Options, texts)
    base = cascade.stages[0]
    if videos := cascade.controls.videos:
        if texts and name == text2video_zero.NAME:
            raise UserError(text2video_zero.NO_OPTIONS)
        return ChosenSystem(name, options, videos[0].shape[1])
    frames = FLAGS.num_frames or DEFAULT_FRAMES
    if not mask:
        is_sprites = base.config.data.source == "sprites"
        find = functools.partial(_find_sprites, base.config) if is_sprites else None
        return ChosenSystem(name, options, frames, find)
    output = observations.OutputSpec.of(base.model, base.config, frames)
    white, _ = observations.read_mask(mask, frames, output)
    return ChosenSystem(name, options, frames, np.asarray(white > 127)[None], mask)


def _find_sprites(config: Any, videos: np.ndarray) -> np.ndarray:
    """Return where the objects of a model of sprites are, as `Request` has it.

    config: of the model.
    """
    return silhouettes(videos, open_sprites(config)) > 127  # more than half a pixel
