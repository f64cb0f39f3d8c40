"""edit.py: extend, interpolate, inpaint or upscale a clip."""

from absl import flags

from vdm_jax.commands.flags import check_mode, define_path, require_one
from vdm_jax.commands.main import run, start_jax
from vdm_jax.commands.sampling_flags import MODEL, define_flags

FLAGS = flags.FLAGS
EDITS = {
    "extend": "a clip to continue",
    "interpolate": "a clip between whose frames to sample",
    "inpaint": "a clip to inpaint where --mask is white",
    "upscale": "a small clip whose large version to sample",
}

# The flags that each way to call the command uses.
MODES = {
    "--extend": MODEL | {"extend", "num_cond_frames", "backward"},
    "--interpolate": MODEL | {"interpolate", "num_cond_frames"},
    "--inpaint": MODEL | {"inpaint", "mask"},
    "--upscale": MODEL | {"upscale", "downscale_factor"},
}


def main() -> None:
    """Parse the command line and edit."""
    define_flags()
    for name, meaning in EDITS.items():
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
    edit = require_one(**EDITS)
    check_mode(f"--{edit}", MODES)
    start_jax()
    from vdm_jax import cascade as cascades
    from vdm_jax.commands.sampling import override, sample
    from vdm_jax.sampling import observations

    frames = FLAGS.num_cond_frames or 0
    options = {
        "extend": (frames, FLAGS.backward),
        "interpolate": (frames,),
        "inpaint": (FLAGS.mask,),
        "upscale": (FLAGS.downscale_factor or 0,),
    }[edit]

    def observe(output: observations.OutputSpec):
        """Read the clip."""
        return getattr(observations, edit)(output, FLAGS[edit].value, *options)

    others = {}
    if edit == "upscale" and FLAGS.reconstruction_weight is None:
        others["reconstruction_weight"] = None  # the model's own is for known frames
    model = override(cascades.read_model(FLAGS.workdir), **others)
    sample(model, observe=observe, backward=FLAGS.backward)
