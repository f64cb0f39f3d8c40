"""edit.py: animate a picture, extend, interpolate, inpaint, change, control a clip."""

import dataclasses
import functools
import itertools
import time
from typing import Any

from absl import flags

from vdm_jax.commands.flags import (
    check_mode,
    define_multi_float,
    define_multi_path,
    define_path,
    define_sampling,
    define_system,
    parse_numbers,
    require_one,
)
from vdm_jax.commands.main import run, start_jax
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS
# Flag of an edit -> (the meaning of its value, other flags that may be given with it).
# The function of the same name in `observations` takes their values as arguments.
EDITS = {
    "animate": ("a picture to begin with", {"loop"}),
    "extend": ("a clip to continue", {"num_cond_frames", "backward", "loop"}),
    "interpolate": ("a clip between whose frames to sample", {"num_cond_frames"}),
    "inpaint": ("a clip to inpaint where --mask is white", {"mask"}),
    "upscale": ("a small clip whose large version to sample", {"downscale_factor"}),
    "edit": ("a clip or picture to change by a prompt or label", {"strength"}),
}
# Flags of --control, and those of blocks and windows, which it does not have.
CONTROL = {
    "control", "control_from", "controlnet", "control_scale", "control_start",
    "control_end", "system", "set",
}  # fmt: skip
BLOCKS = {
    "overlap_frames", "tiles", "size", "multidiffusion", "reconstruction_weight",
    "reconstruction_schedule",
}  # fmt: skip
MODES = {f"--{name}": {name, *own, *BLOCKS} for name, (_, own) in EDITS.items()}
MODES["--edit"].remove("overlap_frames")
MODES["--control"] = CONTROL


def main() -> None:
    """Parse the command line and edit."""
    define_sampling()
    for name, (meaning, _) in EDITS.items():
        define_path(name, meaning)
    flags.DEFINE_bool("backward", False, "--extend: sample what precedes the clip")
    flags.DEFINE_bool("loop", False, "end with the frames that it begins with")
    flags.DEFINE_integer(
        "num_cond_frames", None, "frames of the clip to condition on "
        "(default: half a block, to interpolate no gap above a block)", 1,
    )  # fmt: skip
    define_path("mask", "an image or video of the clip's shape")
    flags.DEFINE_integer(
        "downscale_factor", None, "--upscale: shrink the clip by this first", 2
    )
    flags.DEFINE_list(
        "strength", None, "--edit: fraction of the steps that run, above 0; 1 keeps "
        "nothing (default: inversion, for a model that was tuned on the clip); or one "
        "for each frame, 0 keeps it, for a model that was trained with given frames",
    )  # fmt: skip
    _define_control()
    run(_edit, "Animate a picture; extend, inpaint, upscale, change, control a clip.")


def _define_control() -> None:
    """Define the flags of --control."""
    define_multi_path(
        "control", "a video or picture of controls, or with --control_from of any "
        "kind; one for all of --controlnet, or one for each",
    )  # fmt: skip
    define_multi_path("controlnet", "folder of a ControlNet; may be repeated")
    flags.DEFINE_multi_enum(
        "control_from", ["video"], ["video", "silhouette", "luma", "edges"],
        "what of --control is the control; video: it is one already",
    )  # fmt: skip
    define_multi_float("control_scale", 1.0, "what its residuals are multiplied by")
    define_multi_float("control_start", 0.0, "fraction of the steps before it acts")
    define_multi_float("control_end", 1.0, "fraction of the steps until which it acts")
    define_system()


def _edit() -> None:
    require_one(workdir="a model")
    meanings = {name: meaning for name, (meaning, _) in EDITS.items()}
    edit = require_one(**meanings, control="a video of controls")
    check_mode(f"--{edit}", MODES)
    if FLAGS.num_frames == 0 and edit != "control":
        raise UserError("--num_frames=0, all frames of the clip, goes with --control")
    if FLAGS["set"].present and not FLAGS.system:
        raise UserError("--set goes with --system, not with --control alone")
    start_jax()
    from vdm_jax import sampling
    from vdm_jax.commands.sampling import override, read_model, sample
    from vdm_jax.sampling import observations

    if edit == "control":
        return _control()
    options = {name: FLAGS[name].value for name in EDITS[edit][1]}
    if edit == "edit":
        options["strength"] = _strength()

    def observe(output: observations.OutputSpec):
        """Read the clip."""
        return getattr(observations, edit)(output, FLAGS[edit].value, **options)

    cascade, others, method = read_model(), {}, None
    if edit == "upscale" and FLAGS.reconstruction_weight is None:
        others["reconstruction_weight"] = None  # the model's own is for known frames
    if edit == "edit" and (strength := options["strength"]) is None:
        _check_inverts(cascade.stages[0].config)
        cascade.stages[0].config.sample.num = 1  # where no prompt is given
        if FLAGS.sampler is None:
            others["sampler"] = "ddim"  # the model's own may have no inverse
        method = _edit_by_inversion
    model = override(cascade, **others)
    if edit == "edit" and isinstance(strength, float):
        sampling.first_row(model.stages[0].settings.steps, strength)  # checks it
        method = functools.partial(sampling.edit, strength=strength)
    sample(model, observe=observe, backward=FLAGS.backward, edit=method)


def _strength() -> float | list[float] | None:
    """Return the value of --strength: one number, one for each frame, or none."""
    strength = parse_numbers("strength", float)
    if not all(0 <= each <= 1 for each in strength):
        raise UserError(f"--strength={','.join(FLAGS.strength)}: numbers from 0 to 1")
    if len(strength) > 1:
        return strength
    return strength[0] if strength else None


def _edit_by_inversion(*given: Any, run: Any, **others: Any) -> Any:
    """As `sampling.edit_by_inversion`; print the seconds of both parts."""
    from vdm_jax import sampling

    ends = [time.perf_counter()]

    def progress(done: int, total: int) -> None:
        run.progress(done, total)
        if done == total:
            ends.append(time.perf_counter())

    timed = dataclasses.replace(run, progress=progress)
    made = sampling.edit_by_inversion(*given, run=timed, **others)
    inversion, sampled = (b - a for a, b in itertools.pairwise(ends))
    print(f"inversion {inversion:.1f} s, sampling {sampled:.1f} s")
    return made


def _check_inverts(config: Any) -> None:
    """Raise UserError unless --edit goes by inversion, which makes one video.

    Its only noise is that of the clip, so more of a prompt would be equal.
    """
    if config.network.get("temporal") != "tune":
        raise UserError(
            "--edit needs --strength, the fraction of the steps that run, as 0.6; "
            "or a model that was tuned on the clip (configs/tune_a_video.py)"
        )
    if (FLAGS.num or 1) > 1:
        raise UserError(
            f"--num={FLAGS.num}: an edit by inversion draws no noise, so all videos of "
            "a prompt would be equal; give 1, or several of --prompt"
        )


def _control() -> None:
    """Sample by ControlNets: a picture, or with --system a video."""
    from vdm_jax import cascade as cascades
    from vdm_jax.commands.controls import add_controls
    from vdm_jax.commands.sampling import override, sample
    from vdm_jax.commands.systems import read_system

    cascade, about = add_controls(override(cascades.read_model(FLAGS.workdir)))
    system = read_system(cascade) if FLAGS.system else None
    sample(cascade, system=system, about={"controls": about})
