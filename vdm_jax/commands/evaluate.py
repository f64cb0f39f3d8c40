"""evaluate.py: measure a model, a cascade, a distillation, or a folder of videos."""

import re
from pathlib import Path

from absl import flags

from vdm_jax.commands.flags import (
    SAMPLER_SETTINGS,
    check_mode,
    define_path,
    define_paths,
    define_settings,
    override_settings,
    parse_floats,
    parse_ints,
    present_values,
    require_one,
)
from vdm_jax.commands.main import command_line, run, start_jax
from vdm_jax.errors import UserError

FLAGS = flags.FLAGS
# Settings that hold for every row of a distillation; the rows decide the others.
ROW_SETTINGS = ("batch_size", "ancestral_gamma", "clip_x", "dynamic_threshold")

# The flags that each way to call the command uses.
_COMMON = {"num", "seed", "out", "report_commands"}
MODEL, DISTILLATION = "--workdir of a model", "--workdir of a distillation"
MODES = {
    MODEL: _COMMON
    | {*SAMPLER_SETTINGS, "workdir", "guidance_scale", "compare_steps"}
    | {"network_metrics", "baseline_reports", "show_samples"},
    DISTILLATION: _COMMON
    | {*ROW_SETTINGS, "workdir", "guidance_scale", "num_key_samples"},
    "--cascade": _COMMON
    | {*SAMPLER_SETTINGS, "cascade", "guidance_scale", "network_metrics"},
    "--videos": _COMMON
    | {"videos", "reference", "num_frames", "stride", "size"}
    | {"network_metrics", "baseline_reports"},
}


def main() -> None:
    """Parse the command line and evaluate."""
    define_path("workdir", "a run, or a folder of models/")
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
    mode = require_one(
        workdir="a model", cascade="a cascade of models", videos="a folder of videos"
    )
    if mode == "workdir":
        from vdm_jax import runs

        mode = MODEL
        if (Path(FLAGS.workdir) / runs.DISTILLATION_FILE).is_file():
            mode = DISTILLATION
    else:
        mode = f"--{mode}"
    check_mode(mode, MODES)
    start_jax()
    {
        MODEL: _evaluate_model,
        DISTILLATION: _evaluate_distillation,
        "--cascade": _evaluate_cascade,
        "--videos": _evaluate_folder,
    }[mode]()


def _evaluate_model() -> None:
    """Measure a model at one or several guidance scales."""
    from vdm_jax import runs
    from vdm_jax.evaluators import models

    trained = runs.load(FLAGS.workdir)
    override_settings(trained, SAMPLER_SETTINGS)
    models.evaluate(
        trained,
        Path(FLAGS.workdir),
        _report_options(FLAGS.workdir),
        num=FLAGS.num,
        guidance_scales=_guidance_scales() or [trained.config.sample.guidance_scale],
        seed=FLAGS.seed,
        networks=_networks(),
        compare_steps=parse_ints("compare_steps"),
    )


def _evaluate_cascade() -> None:
    """Measure the videos of every stage of a cascade."""
    from vdm_jax import cascade as cascades
    from vdm_jax.evaluators import cascades as evaluator

    cascade = cascades.read(FLAGS.cascade)
    settings = present_values(SAMPLER_SETTINGS)
    if scales := _guidance_scales(most=1):
        settings["guidance_scale"] = scales[0]
    folder = cascade.path if cascade.path.is_dir() else cascade.path.parent
    evaluator.evaluate(
        cascade.with_sampling(settings),
        _report_options(folder),
        num=FLAGS.num,
        seed=FLAGS.seed,
        networks=_networks(),
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


def _guidance_scales(most: int | None = None) -> list[float]:
    """Return the numbers of --guidance_scale, `most` at most, [] without it."""
    scales = parse_floats("guidance_scale")
    if most and len(scales) > most:
        raise UserError(
            f"--guidance_scale={','.join(FLAGS.guidance_scale)}: one scale at a time"
        )
    return scales


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
    from vdm_jax.evaluators import folders

    if not FLAGS.reference or not FLAGS.out:
        raise UserError("--videos needs --reference=DIR and --out=DIR")
    folders.compare_folders(
        Path(FLAGS.videos),
        Path(FLAGS.reference),
        _report_options(FLAGS.out),
        num=FLAGS.num,
        frames=FLAGS.num_frames,
        stride=FLAGS.stride,
        size=_parse_size(FLAGS.size),
        networks=_networks(),
        seed=FLAGS.seed,
    )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of --size."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (min(size) >= 8 and max(size) <= 1024):
        raise UserError(f"--size={text}: HEIGHTxWIDTH, as 64x64, from 8 to 1024 pixels")
    return size


def _evaluate_distillation() -> None:
    """Measure the students of a distillation and their teacher, row by row."""
    from vdm_jax.evaluators import distillations

    scales = _guidance_scales(most=1)
    distillations.evaluate(
        Path(FLAGS.workdir),
        _report_options(FLAGS.workdir),
        num=FLAGS.num,
        num_key_samples=FLAGS.num_key_samples or FLAGS.num,
        overrides=present_values(ROW_SETTINGS),
        guidance_scale=scales[0] if scales else None,
        seed=FLAGS.seed,
    )
