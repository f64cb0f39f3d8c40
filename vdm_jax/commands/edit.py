"""edit.py: extend, interpolate, inpaint or upscale a clip."""

from absl import flags

from vdm_jax.commands.flags import (
    check_mode,
    define_path,
    define_sampling,
    require_one,
)
from vdm_jax.commands.main import run, start_jax

FLAGS = flags.FLAGS
# Flag of an edit -> (the meaning of its value, other flags that may be given with it).
# The function of the same name in `observations` takes their values as arguments.
EDITS = {
    "extend": ("a clip to continue", {"num_cond_frames", "backward"}),
    "interpolate": ("a clip between whose frames to sample", {"num_cond_frames"}),
    "inpaint": ("a clip to inpaint where --mask is white", {"mask"}),
    "upscale": ("a small clip whose large version to sample", {"downscale_factor"}),
}


def main() -> None:
    """Parse the command line and edit."""
    define_sampling()
    for name, (meaning, _) in EDITS.items():
        define_path(name, meaning)
    flags.DEFINE_bool("backward", False, "--extend: sample what precedes the clip")
    flags.DEFINE_integer(
        "num_cond_frames", None, "frames of the clip to condition on "
        "(default: half a block, to interpolate no gap above a block)", 1,
    )  # fmt: skip
    define_path("mask", "an image or video of the clip's shape")
    flags.DEFINE_integer(
        "downscale_factor", None, "--upscale: shrink the clip by this first", 2
    )
    run(_edit, "Extend, interpolate, inpaint or upscale a clip with a trained model.")


def _edit() -> None:
    require_one(workdir="a model")
    edit = require_one(**{name: meaning for name, (meaning, _) in EDITS.items()})
    check_mode(f"--{edit}", {f"--{e}": {e, *own} for e, (_, own) in EDITS.items()})
    start_jax()
    from vdm_jax import cascade as cascades
    from vdm_jax.commands.sampling import override, sample
    from vdm_jax.sampling import observations

    options = {name: FLAGS[name].value for name in EDITS[edit][1]}

    def observe(output: observations.OutputSpec):
        """Read the clip."""
        return getattr(observations, edit)(output, FLAGS[edit].value, **options)

    others = {}
    if edit == "upscale" and FLAGS.reconstruction_weight is None:
        others["reconstruction_weight"] = None  # the model's own is for known frames
    model = override(cascades.read_model(FLAGS.workdir), **others)
    sample(model, observe=observe, backward=FLAGS.backward)
