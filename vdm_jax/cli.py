"""The verbs' command lines: flags, and what a user sees when something is wrong.

A UserError becomes one line on stderr and its exit status; so do mistakes in flags and
config files, with status 2. Anything else keeps its traceback and status 1.
"""

import dataclasses
import functools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from tqdm import tqdm

from vdm_jax import config_files, runtime
from vdm_jax.errors import UserError, printable
from vdm_jax.files import (
    CorruptFile,
    atomic_write,
    make_folder,
    read_text,
    split_lines,
    user_path,
    why_invalid_text,
)

FLAGS = flags.FLAGS


def run(verb: Callable[[], None], description: str) -> None:
    """Parse the command line, run `verb`, exit as the module says."""
    sys.modules["__main__"].__doc__ = description

    def work(argv: list[str]) -> None:
        try:
            verb()
        except UserError as error:
            if agreement := sys.modules.get("vdm_jax.agreement"):
                agreement.broadcast_error(error)
            raise
        if launch := sys.modules.get("vdm_jax.training.launch"):
            launch.meet()

    runtime.run(functools.partial(app.run, work, flags_parser=_parse), _leave)


def _leave(status: int) -> None:
    """End this process, without waiting for others of its run that go on."""
    launch = sys.modules.get("vdm_jax.training.launch")
    (launch.leave if launch else sys.exit)(status)


def _parse(argv: list[str]) -> list[str]:
    """absl's own parsing, and what every flag must be."""
    rest = config_files.parse_flags(FLAGS, argv)
    for name in FLAGS:
        _check_text(name)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every save at INFO
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag: every setting is --name=value")
    return rest


# --- kinds of flags ----------------------------------------------------------------


class _Path(flags.ArgumentParser):
    """The parser of every flag that names a file or a folder."""

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str) -> str:
        """As the system takes it; UserError for what is no path of a file system."""
        return str(user_path(argument, f"--{self.name}"))


class _Paths(flags.ListParser):
    """Of several, comma separated."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def parse(self, argument: str | list[str]) -> list[str]:
        """Each as _Path has it."""
        return [str(user_path(p, f"--{self.name}")) for p in super().parse(argument)]


class _Float(flags.FloatParser):
    """A number: one that is none compares with nothing, so no bound would hold it."""

    def parse(self, argument: float | int | str) -> float:
        """UserError for NaN."""
        value = super().parse(argument)
        if value != value:
            raise ValueError("not a number")
        return value


def _path_flag(name: str, meaning: str) -> None:
    flags.DEFINE(_Path(name), name, None, meaning)


def _paths_flag(name: str, meaning: str) -> None:
    flags.DEFINE(_Paths(name), name, [], meaning, serializer=flags.ListSerializer(","))


def _float_flag(name: str, default: float | None, meaning: str, *bounds: float) -> None:
    flags.DEFINE(_Float(*bounds), name, default, meaning)


def _check_text(name: str) -> None:
    """Bytes that are not UTF-8 come as surrogates: paths alone may hold such."""
    flag = FLAGS[name]
    if not flag.present or isinstance(flag.parser, _Path | _Paths):
        return
    for value in flag.value if isinstance(flag.value, list) else [flag.value]:
        if isinstance(value, str) and (reason := why_invalid_text(value)):
            raise UserError(f"--{name}={value}: {reason}")


def _workdir_flag(meaning: str) -> None:
    _path_flag("workdir", meaning)
    flags.mark_flag_as_required("workdir")


def _start_jax() -> None:
    runtime.configure_jax()
    runtime.start_devices()


def _launch_flags() -> None:
    """Of the verbs that train: several processes, and when to leave."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, for several")
    flags.DEFINE_integer("num_processes", None, "how many processes take part")
    flags.DEFINE_integer("process_id", None, "which of them this is")
    _float_flag(
        "time_limit", None, "seconds after which to save and exit with status 42", 1.0
    )


def _launch() -> None:
    runtime.configure_jax()
    from vdm_jax.training import launch

    launch.exit_on_signals()
    launch.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    runtime.start_devices()


def train() -> None:
    """train.py"""
    config_files.define_config_flag()
    _path_flag("cascade", "or: a config of stages, trained in turn")
    _workdir_flag("where the run lives; the same command again resumes it")
    _launch_flags()

    def verb() -> None:
        if (FLAGS.config is None) == (FLAGS.cascade is None):
            raise UserError("give --config, of a model, or --cascade, of several")
        workdir = Path(FLAGS.workdir).absolute()
        if FLAGS.cascade is not None:
            module = config_files.load_module(FLAGS.cascade, "cascade")
            if "STAGES" not in module:
                raise UserError(f"{FLAGS.cascade} is of one model: it names no STAGES")
            _launch()
            from vdm_jax.training.cascade import train_cascade

            stages, config_of = module["STAGES"], module["get_config"]
            return train_cascade(stages, config_of, workdir, FLAGS.time_limit)
        if "distill" in FLAGS.config:
            raise UserError("--config is one of distill.py: give one of train.py")
        _launch()
        from vdm_jax.training.train import train

        train(FLAGS.config, workdir, FLAGS.time_limit)

    run(verb, "Train a video diffusion model; the same command again resumes.")


def distill() -> None:
    """distill.py"""
    config_files.define_config_flag()
    flags.mark_flag_as_required("config")
    _path_flag("teacher", "a run, or a folder of models/")
    _path_flag("cascade", "or: a cascade, whose stages are distilled")
    _workdir_flag("where the students go; the same command again goes on")
    _launch_flags()

    def verb() -> None:
        if "distill" not in FLAGS.config:
            raise UserError(
                "--config is one of train.py: give one of distill.py, as "
                "configs/distill_shapes.py"
            )
        if (FLAGS.teacher is None) == (FLAGS.cascade is None):
            raise UserError("give --teacher, a model, or --cascade, models in a row")
        _launch()
        workdir = Path(FLAGS.workdir).absolute()
        if FLAGS.cascade is not None:
            from vdm_jax.distillation.cascade import distill_cascade

            return distill_cascade(
                FLAGS.cascade, FLAGS.config, workdir, FLAGS.time_limit
            )
        from vdm_jax.distillation.driver import distill

        teacher = str(Path(FLAGS.teacher).absolute())
        distill(FLAGS.config, teacher, workdir, FLAGS.time_limit)

    run(verb, "Distil a teacher into a student of a few steps, round by round.")


SETTINGS = {
    "steps": (int, "sampler steps, 1 to 1024"),
    "sampler": (str, "ddim, ancestral, dpm, heun or stochastic"),
    "gamma": (float, "variance of the ancestral sampler, 0 to 1"),
    "churn": (float, "of Heun's sampler: S_churn of EDM"),
    "corrector": (float, "delta of a Langevin step after each step; 0 is off"),
    "schedule": (str, "of the steps: cosine, interpolated, linear, flow or karras"),
    "guidance": (float, "w of (1 + w) conditional - w unconditional; 0 is off"),
    "guidance_schedule": (
        str,
        "constant, interval:LOW:HIGH of logsnr, oscillating:LOW:FIRST, frames:FIRST",
    ),
    "combine": (str, "how guidance mixes: linear, rescaled or projected"),
    "threshold": (float, "clip the predicted video to +-this at every step; 0 is off"),
    "percentile": (float, "dynamic thresholding instead, as 99.5; 0 is off"),
    "reconstruction": (
        float,
        "w_r of what is given; 0 is replacement alone",
    ),
    "reconstruction_schedule": (str, "constant, or exact: grows towards the noise"),
    "snr": (float, "signal to noise of what a stage of a cascade is given; inf: none"),
    "batch_size": (int, "videos at a time"),
    "num": (int, "how many videos"),
    "label": (
        str,
        "one name an attribute, comma separated, an omitted one open; none: all open",
    ),
}
KINDS = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: _float_flag}


def _sampling_flags(*names: str) -> None:
    """Flags whose default is the model's own config.sample."""
    for name in names:
        kind, meaning = SETTINGS[name]
        KINDS[kind](name, None, f"{meaning} (default: the model's own)")
    flags.DEFINE_integer("seed", 0, "decides every noise", 0, 2**32 - 1)


def _settings(loaded, *names: str) -> None:
    """What was given on the command line, into the config's `sample`."""
    from vdm_jax import sampling

    sample = loaded.config.sample
    given = [name for name in names if FLAGS[name].value is not None]
    with loaded.config.unlocked():
        for name in given:
            sample[name] = FLAGS[name].value
    settings = sampling.Settings.from_config(sample)
    for name in given:
        if without := sampling.why_unused(name, loaded.model, settings):
            raise UserError(f"--{name} {without}")


def as_typed() -> str:
    """The command line, for the files that say where they came from."""
    return printable(shlex.join(["python", *sys.argv]))


# Settings that models.py has no use for, or takes as lists of its own.
NOT_MEASURED = (
    "guidance", "num", "label", "reconstruction", "reconstruction_schedule", "snr",
)  # fmt: skip
VERBS = ("extend", "between", "inpaint", "upscale")
# Flags that mean something beside one of the verbs only -> which.
BESIDE = {
    "given": ("extend", "between"),
    "backward": ("extend",),
    "mask": ("inpaint",),
    "factor": ("upscale",),
}


def _given_flags() -> None:
    """What of the videos is given, and how long and large they shall be."""
    _path_flag("extend", "a clip to go on from")
    flags.DEFINE_bool("backward", False, "--extend: what came before the clip")
    _path_flag("between", "a clip to fill in the frames between")
    flags.DEFINE_integer("given", None, "frames of the clip (default: half a block)", 1)
    _path_flag("inpaint", "a clip to paint anew where --mask is white")
    _path_flag("mask", "a picture or video of the clip's shape")
    _path_flag("upscale", "a small clip whose large version to make")
    flags.DEFINE_integer("factor", None, "--upscale: shrink the clip by this first", 2)
    flags.DEFINE_integer(
        "frames", None, "length (default: one block, to extend two)", 1
    )
    flags.DEFINE_integer("overlap", None, "frames from block to block (default: half)")
    flags.DEFINE_string("tiles", "1", "ROWSxCOLUMNS of the model's size, or their one")
    flags.DEFINE_bool("windows", False, "all frames at once, by overlapping windows")
    flags.DEFINE_string("negative", None, "a label to be guided away from")


def _given(loaded):
    """(Known of the output, a note on the clip behind it) as the flags ask."""
    from vdm_jax.sampling import observations

    verbs = [verb for verb in VERBS if FLAGS[verb].value is not None]
    if len(verbs) > 1:
        raise UserError(f"--{verbs[0]} and --{verbs[1]}: one of them at a time")
    for flag, of in BESIDE.items():
        if FLAGS[flag].present and not set(of) & set(verbs):
            raise UserError(f"--{flag} goes with --" + " or --".join(of))
    sides = FLAGS.tiles.split("x")
    if not all(n.isdecimal() and 1 <= int(n) <= 64 for n in sides) or len(sides) > 2:
        raise UserError(
            f"--tiles={FLAGS.tiles}: as 2x3, rows and columns, or 2 for both"
        )
    tiles = int(sides[0]), int(sides[-1])
    block = loaded.model.shape[0]
    if FLAGS.windows and FLAGS.overlap is not None:
        raise UserError("--overlap is of blocks: --windows overlap by half")
    if FLAGS.overlap is not None and not 0 <= FLAGS.overlap < block:
        raise UserError(f"--overlap={FLAGS.overlap}: from 0 to {block - 1} frames")
    config = loaded.config
    wanted = observations.OutputSpec(
        loaded.model, config.video.fps, FLAGS.frames or 0, tiles, config.sample.num
    )
    if not verbs:
        return observations.no_observation(wanted)
    options = {
        "extend": {"given": FLAGS.given or 0, "backward": FLAGS.backward},
        "between": {"given": FLAGS.given or 0},
        "inpaint": {"mask": FLAGS.mask},
        "upscale": {"factor": FLAGS.factor or 0},
    }
    verb = verbs[0]
    known, note = getattr(observations, verb)(
        wanted, FLAGS[verb].value, **options[verb]
    )
    used, there = len(note["frames_of_clip"]), note["frames_in_clip"]
    rest = ", the rest is ignored" if used < there else ""
    print(f"{note['clip']}: {used} of its {there} frames are given{rest}", flush=True)
    return known, note


def sample() -> None:
    """sample.py"""
    _path_flag("workdir", "a run, or a folder of models/")
    _cascade_flags()
    names = tuple(SETTINGS)
    _sampling_flags(*names)
    _given_flags()
    _path_flag("out", "folder for the videos")
    flags.DEFINE_bool("overwrite", False, "replace what stands in --out")

    def verb() -> None:
        if (FLAGS.workdir is None) == (FLAGS.cascade is None):
            raise UserError("give --workdir, a model, or --cascade, models in a row")
        if not FLAGS.out:
            raise UserError("give --out=FOLDER for the videos")
        _start_jax()
        if FLAGS.cascade is not None or FLAGS.prompt or FLAGS.prompts is not None:
            return _sample_cascade(names)
        _only_with("cascade", OF_CASCADES)
        from vdm_jax import build, runs, sampling, video_io

        out = Path(FLAGS.out)
        asked = build.build_model(runs.read_config(Path(FLAGS.workdir)))
        if asked.low_resolution is not None:
            raise UserError(
                f"{FLAGS.workdir} is a stage that is given a video: name it in a "
                "cascade's file behind the one that makes it, and give --cascade"
            )
        if asked.text_dim:
            raise UserError(f"{FLAGS.workdir} is told by text: give --prompt")
        video_io.check_output_folder(out, "samples", FLAGS.overwrite)
        loaded = runs.load(FLAGS.workdir)
        _settings(loaded, *names)
        ask = loaded.config.sample
        if FLAGS.upscale is not None and FLAGS.reconstruction is None:
            with loaded.config.unlocked():  # the model's own is of given frames
                ask.reconstruction = None
        settings = sampling.Settings.from_config(ask)
        sampling.check_settings(loaded.model, ask.num, FLAGS.seed, settings)
        made_for = loaded.config.diffusion.distilled_steps
        if made_for and settings.steps != made_for:
            print(f"this student was made for {made_for} steps", flush=True)
        labels = sampling.draw_labels(loaded.model, ask.num, ask.label, FLAGS.seed)
        negative = None
        if FLAGS.negative:
            if not sampling.uses_cfg(loaded.model, settings):
                raise UserError(
                    "--negative needs --guidance above 0, which it turns, and a model "
                    "that is not a guided student, which has one branch only"
                )
            negative = sampling.draw_labels(
                loaded.model, ask.num, FLAGS.negative, flag="negative"
            )
        known, note = _given(loaded)
        settings = sampling.with_reconstruction_weight(loaded.model, settings, known)
        if note and not ask.label:  # a drawn label would contradict the clip
            labels = sampling.draw_labels(loaded.model, ask.num, "none")
        told = labels is not None and (labels >= 0).any()
        branches = sampling.uses_cfg(loaded.model, settings)
        if branches and negative is None and not told:
            print("no label is asked for: nothing is guided", flush=True)
            settings = dataclasses.replace(
                settings, guidance=0.0, guidance_schedule="constant"
            )
        with tqdm(unit="step", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            def make(how, **more):
                return how(
                    loaded.model, loaded.params, ask.num, settings, labels=labels,
                    negative=negative, seed=FLAGS.seed, progress=progress, **more,
                )  # fmt: skip

            if FLAGS.windows:
                bare = known.low_res is None and not known.mask.any()
                size = known.video.shape[1:4]
                videos = make(sampling.sample, known=None if bare else known, size=size)
            else:
                videos = make(
                    sampling.extend_in_blocks,
                    known=known,
                    overlap=FLAGS.overlap,
                    backward=FLAGS.backward,
                )
        texts = None
        if labels is not None:
            texts = [sampling.label_text(loaded.model, row) for row in labels]
        asked = ask.to_dict() | dataclasses.asdict(settings)
        meta = {"command": as_typed(), "seed": FLAGS.seed, "sample": asked}
        if note:
            meta["given"] = note
        made = video_io.write_samples(
            out,
            "samples",
            sampling.to_uint8(videos),
            loaded.config.video.fps,
            meta | {"workdir": FLAGS.workdir, "step": loaded.step},
            labels=texts,
            overwrite=FLAGS.overwrite,
        )
        print(f"{len(videos)} videos in {out}; see {made[-3]}")

    run(verb, "Sample videos from a trained model; extend, fill in, repaint, enlarge.")


OF_CASCADES = ("encoder", "until", "intermediate")
NOT_OF_CASCADES = ("label", "reconstruction", "reconstruction_schedule", *BESIDE)


def _cascade_flags() -> None:
    """Of a cascade instead of a model, and of prompts."""
    _path_flag("cascade", "or: a cascade's TOML file, or its folder")
    flags.DEFINE_multi_string("prompt", [], "a text; may be given several times")
    _path_flag("prompts", "a file of prompts, one a line")
    _path_flag("encoder", "of text, if it lies elsewhere than in training")
    flags.DEFINE_string("until", "", "the stage to end with (default: the last)")
    flags.DEFINE_bool("intermediate", False, "keep the videos of every stage")


def _only_with(flag: str, others: Sequence[str]) -> None:
    for other in others:
        if FLAGS[other].present:
            raise UserError(f"--{other} goes with --{flag}")


def _prompts(shapes: Sequence[Sequence[int]]) -> list[str]:
    """Of --prompt and --prompts, --num videos each; "" where none is given.

    shapes: of the videos that are made of each, which must fit into memory.
    """
    from vdm_jax import sampling

    texts = list(FLAGS.prompt)
    if FLAGS.prompts is not None:
        try:
            rows = split_lines(read_text(FLAGS.prompts))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--prompts={FLAGS.prompts}: {reason}") from error
        except CorruptFile as error:
            raise UserError(f"--prompts={FLAGS.prompts}: {error}") from error
        texts += [row.strip() for row in rows if row.strip()]
        if not texts:
            raise UserError(f"--prompts={FLAGS.prompts} holds no prompt")
    each = 1 if FLAGS.num is None else FLAGS.num
    if each < 1:
        raise UserError(f"--num={each}: at least 1")
    texts = texts or [""]
    for shape in shapes:
        sampling.check_video_memory(len(texts) * each, shape, f"--num={each}")
    return [text for text in texts for _ in range(each)]


def _sample_cascade(names: Sequence[str]) -> None:
    """Prompts through all stages. Settings on the command line go to every stage.

    A model that is told by text, alone, is a cascade of one stage.
    """
    from vdm_jax import cascade as cascades
    from vdm_jax import sampling, video_io

    for flag in (*NOT_OF_CASCADES, *VERBS, "frames", "overlap", "tiles", "windows"):
        if FLAGS[flag].present:
            raise UserError(f"--{flag} goes with --workdir and without a prompt")
    out = Path(FLAGS.out)
    path = FLAGS.cascade or FLAGS.workdir
    read = cascades.read(path).truncate(FLAGS.until)
    prompts = _prompts([link.model.shape for link in read.stages])
    if FLAGS.encoder is not None:
        if not read.text_encoder:
            raise UserError(f"--encoder: {path} was trained without text")
        read = dataclasses.replace(read, text_encoder=FLAGS.encoder)
    given = {
        name: FLAGS[name].value
        for name in names
        if name not in ("num", *NOT_OF_CASCADES) and FLAGS[name].value is not None
    }
    read = read.with_sampling(given)
    for link in read.stages:
        made_for = link.config.diffusion.distilled_steps
        if made_for and link.settings.steps != made_for:
            print(f"{link.name}: this student was made for {made_for} steps")
    folders = {link.name: out / link.name for link in read.stages[:-1]}
    for folder in [out, *(folders.values() if FLAGS.intermediate else ())]:
        video_io.check_output_folder(folder, "samples", FLAGS.overwrite)
    told, against = cascades.encode_prompts(read, prompts, FLAGS.negative or "")
    with tqdm(unit="step", disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            if done <= bar.n:
                bar.reset()
            bar.set_description(name)
            bar.total = total
            bar.update(done - bar.n)

        videos = cascades.sample(
            read, len(prompts), told, against, seed=FLAGS.seed, progress=progress
        )
    meta = {"command": as_typed(), "seed": FLAGS.seed, "cascade": path}
    for number, link in enumerate(read.stages):
        last = link is read.stages[-1]
        if not (last or FLAGS.intermediate):
            continue
        made = video_io.write_samples(
            out if last else folders[link.name],
            "samples",
            sampling.to_uint8(videos[link.name]),
            link.config.video.fps,
            meta
            | {"stages": [each.name for each in read.stages[: number + 1]]}
            | {"sample": dataclasses.asdict(link.settings)},
            labels=prompts,
            overwrite=FLAGS.overwrite,
        )
    print(f"{len(prompts)} videos in {out}; see {made[-3]}")


def evaluate() -> None:
    """evaluate.py"""
    _path_flag("workdir", "a run, or a folder of models/")
    _path_flag("videos", "or: a folder of anybody's videos")
    _path_flag("reference", "a folder of real ones, for --videos")
    flags.DEFINE_integer("frames", 16, "of a clip, for --videos", 2)
    flags.DEFINE_integer("stride", 1, "from one of them to the next", 1)
    flags.DEFINE_string(
        "size", None, "HEIGHTxWIDTH (default: of the first video, 224 at most)"
    )
    flags.DEFINE_bool("fvd", False, "FVD and the like too: seconds a clip on a CPU")
    _paths_flag("against", "reports of others, to put their figures beside")
    names = tuple(name for name in SETTINGS if name not in NOT_MEASURED)
    _sampling_flags(*names)
    flags.DEFINE_integer("num", 64, "videos a row", 2)
    flags.DEFINE_integer(
        "deciding", None, "videos of a distillation's deciding rows (default: --num)", 2
    )
    flags.DEFINE_list("guidance", None, "weights to compare, comma separated")
    flags.DEFINE_list("fewer", [], "numbers of steps to compare, beside --steps")
    _path_flag("out", "folder of the report (default: WORKDIR/report)")
    _paths_flag("beside", "folders of sample.py's, shown in the report too")
    flags.DEFINE_list("commands", [], "commands to list in the report")

    def verb() -> None:
        _start_jax()
        from vdm_jax import build, runs
        from vdm_jax.evaluators import models

        if FLAGS.videos:
            return _evaluate_files(names)
        for name in OF_FILES:
            if FLAGS[name].present:
                raise UserError(f"--{name} goes with --videos")
        if not FLAGS.workdir:
            raise UserError("give --workdir=RUN, or --videos=DIR and --reference=DIR")
        if build.build_model(runs.read_config(Path(FLAGS.workdir))).text_dim:
            raise UserError(
                f"{FLAGS.workdir} is told by text, and models.py tells none: "
                "python -m experiments.cascade_accuracy.cascade_accuracy --cascade=DIR measures prompts"
            )
        if (Path(FLAGS.workdir) / runs.DISTILLATION_FILE).is_file():
            return _evaluate_students()
        if FLAGS.deciding is not None:
            raise UserError("--deciding goes with the --workdir of a distillation")
        loaded = runs.load(FLAGS.workdir)
        _settings(loaded, *names)
        weights = _weights([loaded.config.sample.guidance])
        out = Path(FLAGS.out or Path(FLAGS.workdir) / "report")
        models.evaluate(
            loaded,
            Path(FLAGS.workdir),
            out,
            num=FLAGS.num,
            guidance_scales=weights,
            seed=FLAGS.seed,
            sample_folders=[Path(folder) for folder in FLAGS.beside],
            baseline_reports=[Path(folder) for folder in FLAGS.against],
            networks=_networks(),
            commands=[*FLAGS.commands, as_typed()],
            compare_steps=_fewer(),
        )

    run(verb, "Measure a trained model against real clips; write a report.")


def _networks():
    """For --fvd; their weights are looked for before anything is sampled."""
    from vdm_jax.metrics.perceptual import PerceptualNetworks

    if not FLAGS.fvd:
        return None
    networks = PerceptualNetworks()
    networks.check()
    return networks


OF_FILES = ("reference", "frames", "stride", "size")


def _evaluate_files(of_models: Sequence[str]) -> None:
    """evaluate.py on two folders of videos."""
    from vdm_jax.evaluators import folders

    for name in ("workdir", "deciding", "guidance", "fewer", "beside", *of_models):
        if FLAGS[name].present:
            raise UserError(f"--{name} is of a model: without it, or without --videos")
    if not FLAGS.reference or not FLAGS.out:
        raise UserError("--videos needs --reference=DIR and --out=DIR")
    size = None
    if FLAGS.size:
        found = re.fullmatch(r"(\d+)x(\d+)", FLAGS.size)
        size = (int(found[1]), int(found[2])) if found else (0, 0)
        if not (min(size) >= 8 and max(size) <= 1024):
            raise UserError(
                f"--size={FLAGS.size}: HEIGHTxWIDTH, as 64x64, from 8 to 1024 pixels"
            )
    folders.compare_folders(
        Path(FLAGS.videos),
        Path(FLAGS.reference),
        Path(FLAGS.out),
        num=FLAGS.num,
        frames=FLAGS.frames,
        stride=FLAGS.stride,
        size=size,
        networks=_networks(),
        seed=FLAGS.seed,
        baseline_reports=[Path(folder) for folder in FLAGS.against],
        commands=[*FLAGS.commands, as_typed()],
    )


OF_ROWS = ("batch_size", "gamma", "threshold", "percentile")  # hold for every row


def _evaluate_students() -> None:
    """evaluate.py on the workdir of a distillation: rows of its own."""
    from vdm_jax.evaluators import distillations

    own = {name for name in SETTINGS if name not in (*NOT_MEASURED, *OF_ROWS)}
    for name in (*sorted(own), "fewer", "beside", "against", "fvd"):
        if FLAGS[name].present:
            raise UserError(
                f"--{name}: a distillation is measured row by row, over steps and "
                "samplers; without this flag"
            )
    weights = _weights([None])
    if len(weights) > 1:
        raise UserError(f"--guidance={','.join(FLAGS.guidance)}: one weight at a time")
    distillations.evaluate(
        Path(FLAGS.workdir),
        Path(FLAGS.out or Path(FLAGS.workdir) / "report"),
        num=FLAGS.num,
        num_key_rows=FLAGS.deciding or FLAGS.num,
        overrides={name: FLAGS[name].value for name in OF_ROWS if FLAGS[name].present},
        guidance_scale=weights[0],
        seed=FLAGS.seed,
        commands=[*FLAGS.commands, as_typed()],
    )


def _weights(default: list) -> list:
    """The numbers of --guidance."""
    if not FLAGS.guidance:
        return default
    try:
        return [float(weight) for weight in FLAGS.guidance]
    except ValueError as error:
        raise UserError(f"--guidance={','.join(FLAGS.guidance)}: numbers") from error


def _fewer() -> list[int]:
    """The numbers of --fewer."""
    given = ",".join(FLAGS.fewer)
    if not all(re.fullmatch("[1-9][0-9]*", steps) for steps in FLAGS.fewer):
        raise UserError(f"--fewer={given}: numbers of steps, as 4,8,16")
    return [int(steps) for steps in FLAGS.fewer]


def export() -> None:
    """python -m vdm_jax.export: runs as shipped models, with their logs and curves."""
    _path_flag("workdir", "a run, or a shipped model")
    _path_flag("cascade", "or: a cascade of such")
    _path_flag("out", "folder to write, as models/NAME")
    flags.mark_flag_as_required("out")
    flags.DEFINE_bool("overwrite", False, "replace what stands in --out")

    def verb() -> None:
        if (FLAGS.workdir is None) == (FLAGS.cascade is None):
            raise UserError("give --workdir, a model, or --cascade, models in a row")
        out = Path(FLAGS.out)
        if FLAGS.workdir is not None:
            return _ship(Path(FLAGS.workdir), out)
        from vdm_jax import cascade

        read = cascade.read(FLAGS.cascade)
        taken = [
            p
            for p in (out, *(out / link.name for link in read.stages))
            if (p / cascade.CASCADE_FILE).exists() or (p / "config.json").exists()
        ]
        if taken and not FLAGS.overwrite:
            raise UserError(
                f"{taken[0]} already holds a model: another --out, or --overwrite"
            )
        for link in read.stages:
            _ship(link.workdir, out / link.name)
        stages = {link.name: cascade.sampling_overrides(link) for link in read.stages}
        with atomic_write(out / cascade.CASCADE_FILE, overwrite=True) as path:
            path.write_text(cascade.to_toml(stages))

    run(verb, "Write the averaged parameters of runs as half-precision safetensors.")


def _ship(workdir: Path, out: Path) -> None:
    """A run or a shipped model as a folder of a shipped model."""
    from vdm_jax import runs, scalars
    from vdm_jax.pretrained import params
    from vdm_jax.report import curves, page

    if (out / "checkpoints").exists() or (out / runs.DISTILLATION_FILE).exists():
        raise UserError(f"--out={out} is a run: give a folder of its own")
    loaded, out = runs.load(workdir), make_folder(out)
    names = "params.safetensors", "config.json", "metrics.jsonl", "curve.html"
    taken = [name for name in names if (out / name).exists()]
    if taken and not FLAGS.overwrite:
        raise UserError(
            f"{out} already holds {taken[0]}: another --out, or --overwrite"
        )
    file = out / "params.safetensors"
    params.write(file, loaded.params)
    with loaded.config.unlocked():  # paths of the machine that trained it
        loaded.config.init_from = loaded.config.data.text_embeddings_dir = ""
    text = loaded.config.to_json_best_effort(indent=1)
    with atomic_write(out / "config.json", overwrite=True) as path:
        path.write_text(text + "\n")
    what = f"step {loaded.step}" if loaded.step >= 0 else "exported before"
    log = runs.model_dir(workdir) / "metrics.jsonl"
    if log.is_file():
        with atomic_write(out / log.name, overwrite=True) as path:
            path.write_bytes(log.read_bytes())
        page.write(
            out / "curve.html",
            title=f"{out.name}: {what}",
            summary=f"The log of the run behind {out.name}, which stands beside it.",
            sections=[page.Curve("Loss", curves.loss_lines(scalars.read_scalars(out)))],
        )
    size = file.stat().st_size / 1e6
    print(f"{what}, {size:.2f} MB in {file}")
