"""sample.py: sample a model or a cascade from noise, by a label or by a text."""

from absl import flags

from vdm_jax.commands.flags import (
    check_mode,
    define_path,
    define_sampling,
    define_system,
    present_values,
    require_one,
)
from vdm_jax.commands.main import run, start_jax
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS

# The flags that only one way to call the command uses.
MODES = {
    "--workdir": {"workdir", "num_frames", "overlap_frames", "tiles", "size", "lora"}
    | {"multidiffusion", "reconstruction_weight", "reconstruction_schedule"},
    "--cascade": {"cascade", "last_stage", "augmentation_snr"},
    "--system": {"workdir", "num_frames", "lora", "system", "set", "mask"},
}


def main() -> None:
    """Parse the command line and sample."""
    define_sampling("augmentation_snr")
    define_path("cascade", "or: a cascade's TOML file, or its folder")
    flags.DEFINE_string("last_stage", "", "stage to end with (default: the last)")
    define_system()
    define_path("mask", "--system: an image or video, white where the foreground is")
    run(_sample, "Sample videos of a trained model or a cascade.")


def _sample() -> None:
    mode = f"--{require_one(workdir='a model', cascade='a cascade of models')}"
    if mode == "--workdir" and FLAGS.system is not None:
        mode = "--system"
    check_mode(mode, MODES)
    if FLAGS.num_frames == 0:
        raise UserError("--num_frames=0: 1 or more; 0 is for edit.py --control")
    start_jax()
    from vdm_jax import cascade as cascades
    from vdm_jax.commands.sampling import override, read_model, sample

    if mode == "--workdir":
        return sample(override(read_model()))
    if mode == "--system":
        from vdm_jax.commands.systems import read_system

        model = override(cascades.read_model(FLAGS.workdir))
        return sample(model, system=read_system(model, FLAGS.mask))
    cascade = cascades.read(FLAGS.cascade).truncate(FLAGS.last_stage)
    cascade = override(cascade, **present_values(["augmentation_snr"]))
    sample(cascade, by_stage=True)
