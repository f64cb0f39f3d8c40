"""What edit.py makes with --control: videos of controls and their ControlNets.

It is imported when JAX has started.
"""

from typing import Any

from absl import flags

from vdm_jax import controls
from vdm_jax.cascade import Cascade
from vdm_jax.commands.sampling import texts_and_number
from vdm_jax.errors import UserError
from vdm_jax.sampling import Control, observations
from vdm_jax.systems import DEFAULT_FRAMES

FLAGS = flags.FLAGS


def add_controls(cascade: Cascade) -> tuple[Cascade, list[dict[str, Any]]]:
    """Return a cascade of one stage with the ControlNets of the flags.

    The second value is what samples.json says of each.

    Raises:
      UserError: flags that are not one for each ControlNet, a clip or a ControlNet that
        cannot be read or does not fit, controls that it was not trained on.
    """
    stage = cascade.stages[0]
    folders = FLAGS.controlnet or []
    if not folders:
        raise UserError("--control needs --controlnet=FOLDER, one or several")
    clips, kinds = _each("control", len(folders)), _each("control_from", len(folders))
    numbers = [
        _each(f"control_{name}", len(folders)) for name in ("scale", "start", "end")
    ]
    uses = tuple(Control(*each) for each in zip(*numbers, strict=True))
    frames = stage.model.video_shape[0]
    if FLAGS.system:
        frames = DEFAULT_FRAMES if FLAGS.num_frames is None else FLAGS.num_frames
    elif FLAGS.num_frames not in (None, frames):
        raise UserError(
            f"--num_frames={FLAGS.num_frames}: without --system this model makes "
            f"{frames}; --system=control_video makes any number"
        )
    _, num = texts_and_number(cascade)
    output = observations.OutputSpec.of(stage.model, stage.config, frames, (1, 1), num)
    networks, videos, about = [], [], []
    for folder, clip, kind, use in zip(folders, clips, kinds, uses, strict=True):
        network = controls.read(folder, stage.model, stage.config)
        controls.check_kind(kind, network)
        video, info = observations.read_control(output, clip)
        print(observations.describe(info))
        vocabulary = _vocabulary(stage.config)
        videos.append(controls.control_video(video, kind, vocabulary)[None])
        networks.append(network)
        about.append(
            {"controlnet": folder, "control_from": kind, **use._asdict(), **info}
        )
    if len({video.shape for video in videos}) > 1:
        lengths = ", ".join(str(video.shape[1]) for video in videos)
        raise UserError(
            f"--control: clips of {lengths} frames: give --num_frames, which all have"
        )
    given = controls.Controls(tuple(networks), tuple(videos), uses)
    return cascade.with_controls(given), about


def _each(name: str, count: int) -> list[Any]:
    """Return the values of a flag that may be repeated, one for each ControlNet."""
    values: list[Any] = FLAGS[name].value or []
    if len(values) not in (1, count):
        raise UserError(
            f"{len(values)} of --{name} for {count} of --controlnet: one for all, or "
            "one for each"
        )
    return values * count if len(values) == 1 else values


def _vocabulary(config: Any) -> str:
    """Return the vocabulary of sprites whose silhouettes are looked for."""
    return config.data.path if config.data.source == "sprites" else "everyday"
