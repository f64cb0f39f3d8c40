"""distill.py: distil a model, or every stage of a cascade."""

from pathlib import Path

from absl import flags

from vdm_jax import config_files
from vdm_jax.commands.flags import (
    define_launch,
    define_lora,
    define_path,
    define_run,
    launch,
    require_one,
)
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS


def main() -> None:
    """Parse the command line and distil."""
    config_files.define_config_flag()
    flags.mark_flag_as_required("config")
    define_run("teacher", "a run, or a folder of models/")
    define_path("cascade", "or: a cascade, whose stages are distilled")
    define_lora("the teacher")
    define_launch("folder of the students; the same command again resumes", define_path)
    run(_distill, "Distil a teacher into a student of a few steps, round by round.")


def _distill() -> None:
    if "distill" not in FLAGS.config:
        raise UserError(
            "--config is one of train.py: give one of distill.py, as "
            "configs/distill_shapes.py"
        )
    given = require_one(teacher="a model", cascade="a cascade of models")
    stop = launch()
    workdir = Path(FLAGS.workdir).absolute()
    if given == "cascade":
        if FLAGS.lora:
            raise UserError("--lora does not go with --cascade: give a --teacher")
        from vdm_jax.distillation.cascade import distill_cascade

        return distill_cascade(FLAGS.cascade, FLAGS.config, workdir, stop)
    from vdm_jax import adapters
    from vdm_jax.distillation.driver import distill

    teacher = str(Path(FLAGS.teacher).absolute())
    loras = [adapters.parse(each) for each in FLAGS.lora]
    distill(FLAGS.config, teacher, workdir, stop, loras)
