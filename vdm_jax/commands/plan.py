"""plan.py: what training, sampling or distillation takes on a pod, without the pod."""

import sys
from typing import Any

from absl import flags

from vdm_jax import config_files, files
from vdm_jax.commands.flags import define_float, define_path, require_one
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS


def main() -> None:
    """Parse the command line and plan."""
    config_files.define_config_flag()
    define_path("workdir", "or: a run, a folder of models/ or one of diffusers")
    flags.DEFINE_string("topology", None, "chips, as v5e:4x4, v5p:8x8x8 or h100:8")
    flags.mark_flag_as_required("topology")
    flags.DEFINE_string(
        "mesh", "", "mesh axes and their chips, as fsdp=16 or data=2,fsdp=8 (default: "
        "the config's own); slice is the number of slices of the topology",
    )  # fmt: skip
    define_float(
        "batch_per_chip", 1.0, "examples a chip, as 0.5; 0 is the config's own batch", 0
    )
    flags.DEFINE_enum(
        "work", "train", ["train", "sample", "distill"], "what the chips do; distill: "
        "a round of progressive distillation of this model",
    )  # fmt: skip
    flags.DEFINE_enum(
        "system", None, ["control_video"], "--work=sample: a system of edit.py, with "
        "a ControlNet of the model's own size",
    )  # fmt: skip
    flags.DEFINE_integer("num_frames", 8, "--system: frames of a video", 1)
    flags.DEFINE_bool(
        "cycles", False, "compile pieces: cycles, utilisation, time of a step; long"
    )
    define_path("json", "file for the figures")
    run(_plan, "Plan a run on TPUs or GPUs that are not there.")


def _plan() -> None:
    require_one(config="a model", workdir="a trained one")
    _check_flags()
    from vdm_jax.planning import topology as topologies

    topologies.set_environment()
    import jax

    jax.config.update("jax_platforms", "cpu")  # JAX was imported before the flags
    from vdm_jax import runtime
    from vdm_jax.planning import plan, programs, report

    runtime.configure_jax()
    config, axes = _read_config(), mesh_axes(FLAGS.mesh)
    slices = axes["slice"] if axes else config.mesh.slice
    topology = topologies.Topology.parse(FLAGS.topology, slices)
    topologies.check_compiler(topology)
    config = programs.complete(config, _batch(topology.num_chips), FLAGS.work, axes)
    if FLAGS.system:
        config = programs.with_control(config)
    work = programs.Work(FLAGS.work, config, FLAGS.system or "", FLAGS.num_frames)
    made = plan.make_plan(work, topology, FLAGS.cycles, _print_piece)
    print(report.format_plan(made))
    if FLAGS.json:
        files.write_json(FLAGS.json, made.to_json())


def _check_flags() -> None:
    """Raise UserError for flags that do not go with the others."""
    if FLAGS.system and FLAGS.work != "sample":
        raise UserError("--system goes with --work=sample")
    if FLAGS["num_frames"].present and not FLAGS.system:
        raise UserError("--num_frames goes with --system: a model has its own frames")


def _print_piece(piece: Any) -> None:
    """Show that a piece is compiled."""
    print(f"{piece.calls} x {piece.name}", file=sys.stderr, flush=True)


def mesh_axes(text: str) -> dict[str, int]:
    """Return the sizes of all mesh axes of a text such as data=2,fsdp=8; {} for "".

    Axes that it does not name are 1, and data is the rest, -1.

    Raises:
      UserError: it has another form, or an axis that there is not.
    """
    from vdm_jax import sharding

    axes = sharding.parse_mesh(text)
    others = dict.fromkeys(sharding.MESH_AXES, 1) | {"data": -1}
    return others | axes if axes else {}


def _batch(chips: int) -> int:
    """Return the examples over all chips, 0 for the config's own batch."""
    batch = FLAGS.batch_per_chip * chips
    if batch != round(batch):
        raise UserError(
            f"--batch_per_chip={FLAGS.batch_per_chip:g}: a whole number of examples "
            f"over {chips} chips, not {batch:g}"
        )
    return round(batch)


def _read_config() -> Any:
    if FLAGS.workdir is None:
        return FLAGS.config
    from vdm_jax import runs
    from vdm_jax.pretrained import sd_pipeline

    config = runs.read_config(FLAGS.workdir)
    if sd_pipeline.is_pipeline(files.user_path(FLAGS.workdir, "--workdir")):
        config.network.dtype = "bfloat16"  # as on the chips; read here, on a CPU
    return config
