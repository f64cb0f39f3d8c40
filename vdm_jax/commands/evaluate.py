"""evaluate.py: measure a model, a cascade, a distillation, or a folder of videos."""

from pathlib import Path

from absl import flags

from vdm_jax.commands.flags import (
    SAMPLER_SETTINGS,
    check_mode,
    define_path,
    define_paths,
    define_run,
    define_settings,
    parse_numbers,
    parse_sides,
    present_values,
    require_one,
)
from vdm_jax.commands.main import command_line, run, start_jax
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS
# Settings that hold for every row of a distillation; the rows decide the others.
ROW_SETTINGS = ("batch_size", "ancestral_gamma", "clip_x", "dynamic_threshold")

# The flags that each way to call the command uses, besides those that all use.
MODEL, DISTILLATION = "--workdir of a model", "--workdir of a distillation"
CASCADE_FLAGS = {
    *SAMPLER_SETTINGS, "guidance_scale", "compare_steps", "network_metrics",
    "show_samples",
}  # fmt: skip
MODES = {
    MODEL: CASCADE_FLAGS | {"workdir", "baseline_reports", "image_text"},
    DISTILLATION: {*ROW_SETTINGS, "workdir", "guidance_scale", "num_key_samples"},
    "--cascade": CASCADE_FLAGS | {"cascade"},
    "--videos": {"videos", "reference", "num_frames", "stride", "size"}
    | {"network_metrics", "baseline_reports"},
}


def main() -> None:
    """Parse the command line and evaluate."""
    define_run("workdir", "a run, or a folder of models/")
    define_path("cascade", "or: a cascade's TOML file, or its folder")
    define_path("videos", "or: a folder of any videos")
    define_path("reference", "a folder of real ones, for --videos")
    flags.DEFINE_integer("num_frames", 16, "frames of a clip, for --videos", 2)
    flags.DEFINE_integer("stride", 1, "from one frame to the next, for --videos", 1)
    flags.DEFINE_string(
        "size", None, "HEIGHTxWIDTH (default: of the first video, 224 at most)"
    )
    flags.DEFINE_bool(
        "network_metrics", False, "FVD and others too: seconds per clip on a CPU"
    )
    define_path("image_text", "a model of the task contrastive, for the CLIP score")
    define_paths("baseline_reports", "reports of others, whose metrics to show too")
    define_settings(SAMPLER_SETTINGS)
    flags.DEFINE_integer("num", 64, "videos per row", 2)
    flags.DEFINE_integer(
        "num_key_samples", None, "videos of a distillation's key rows (default: --num)",
        2,
    )  # fmt: skip
    flags.DEFINE_list(
        "guidance_scale", None, "scales to compare, comma separated; 1 is off"
    )
    flags.DEFINE_list("compare_steps", [], "numbers of steps to compare with --steps")
    define_path("out", "folder of the report (default: report in the folder measured)")
    define_paths("show_samples", "folders of sample.py, shown in the report too")
    flags.DEFINE_list("report_commands", [], "commands to list in the report")
    run(_evaluate, "Measure a trained model against real clips; write a report.")


def _evaluate() -> None:
    given = require_one(
        workdir="a model", cascade="a cascade of models", videos="a folder of videos"
    )
    mode = f"--{given}"
    if given == "workdir":
        from vdm_jax import runs

        is_distillation = (Path(FLAGS.workdir) / runs.DISTILLATION_FILE).is_file()
        mode = DISTILLATION if is_distillation else MODEL
    check_mode(mode, MODES)
    start_jax()
    {
        MODEL: _evaluate_cascade,
        DISTILLATION: _evaluate_distillation,
        "--cascade": _evaluate_cascade,
        "--videos": _evaluate_folder,
    }[mode]()


def _evaluate_cascade() -> None:
    """Measure a model, or every stage of a cascade, at one or several scales."""
    from vdm_jax import build, image_text, runs
    from vdm_jax import cascade as cascades
    from vdm_jax.evaluators import clips, models

    scales = parse_numbers("guidance_scale", float)
    if FLAGS.workdir:
        folder = Path(FLAGS.workdir)
        config = runs.read_config(folder)
        cascade = clips.model_cascade(build.build_model(config), config, folder)
        scales = scales or [config.sample.guidance_scale]
    else:
        cascade = cascades.read(FLAGS.cascade)
        folder = cascade.path if cascade.path.is_dir() else cascade.path.parent
    models.evaluate(
        cascade.with_sampling(present_values(SAMPLER_SETTINGS)),
        _report_options(folder),
        num=FLAGS.num,
        guidance_scales=scales,
        seed=FLAGS.seed,
        networks=_networks(),
        compare_steps=parse_numbers("compare_steps", int),
        image_text=image_text.load(FLAGS.image_text) if FLAGS.image_text else None,
    )


def _report_options(measured: str | Path):
    """Return the options of a report, by default inside of the folder measured."""
    from vdm_jax.evaluators.reports import ReportOptions

    return ReportOptions(
        Path(FLAGS.out or Path(measured) / "report"),
        commands=[*FLAGS.report_commands, command_line()],
        sample_folders=[Path(folder) for folder in FLAGS.show_samples],
        baseline_reports=[Path(folder) for folder in FLAGS.baseline_reports],
    )


def _networks():
    """Return the networks of --network_metrics, None without it.

    Their weights are checked before anything is sampled.
    """
    from vdm_jax.metrics.perceptual import PerceptualNetworks

    if not FLAGS.network_metrics:
        return None
    networks = PerceptualNetworks()
    networks.check()
    return networks


def _evaluate_folder() -> None:
    """Compare two folders of videos."""
    from vdm_jax import video_io
    from vdm_jax.evaluators import folders

    if not FLAGS.reference or not FLAGS.out:
        raise UserError("--videos needs --reference=DIR and --out=DIR")
    folders.compare_folders(
        Path(FLAGS.videos),
        Path(FLAGS.reference),
        _report_options(FLAGS.out),
        num=FLAGS.num,
        clip=video_io.FrameSelection(FLAGS.num_frames, FLAGS.stride),
        size=parse_sides("size", "HEIGHTxWIDTH", 8, 1024) if FLAGS.size else None,
        networks=_networks(),
        seed=FLAGS.seed,
    )


def _evaluate_distillation() -> None:
    """Measure the students of a distillation and their teacher, row by row."""
    from vdm_jax.evaluators import distillations

    scales = parse_numbers("guidance_scale", float)
    if len(scales) > 1:
        raise UserError(f"--guidance_scale={scales}: one scale for a distillation")
    distillations.evaluate(
        Path(FLAGS.workdir),
        _report_options(FLAGS.workdir),
        num=FLAGS.num,
        num_key_samples=FLAGS.num_key_samples or FLAGS.num,
        overrides=present_values(ROW_SETTINGS),
        guidance_scale=scales[0] if scales else None,
        seed=FLAGS.seed,
    )
