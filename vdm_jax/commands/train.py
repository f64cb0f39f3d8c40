"""train.py: train a model, or the stages of a cascade."""

from pathlib import Path

from absl import flags

from vdm_jax import buckets, config_files
from vdm_jax.commands.flags import (
    define_launch,
    define_path,
    launch,
    require_one,
)
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS


def main() -> None:
    """Parse the command line and train."""
    config_files.define_config_flag()
    define_path("cascade", "or: a config of stages, which are trained sequentially")
    define_launch("folder of the run; the same command again resumes it")
    run(_train, "Train a video diffusion model; the same command again resumes.")


def _train() -> None:
    workdir = Path(FLAGS.workdir).absolute()
    if require_one(config="a model", cascade="its stages") == "cascade":
        module = config_files.load_module(FLAGS.cascade, "cascade")
        if "STAGES" not in module:
            raise UserError(f"{FLAGS.cascade} is of one model: it names no STAGES")
        if buckets.address_of(workdir):
            raise UserError("--cascade: give a --workdir that is a folder")
        stop = launch()
        from vdm_jax.training.cascade import train_cascade

        stages, get_config = module["STAGES"], module["get_config"]
        return train_cascade(stages, get_config, workdir, stop)
    if "distill" in FLAGS.config:
        raise UserError("--config is one of distill.py: give one of train.py")
    stop = launch()
    from vdm_jax.training.train import train

    train(FLAGS.config, workdir, stop)
