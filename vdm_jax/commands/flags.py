"""Kinds of flags, flags that several commands have, and checks of combinations."""

import re
import signal
from collections.abc import Callable, Collection, Iterable, Mapping

from absl import flags

from vdm_jax import buckets, runtime
from vdm_jax.errors import UserError
from vdm_jax.files import user_path, why_invalid_text
from vdm_jax.settings import check, settings_of
from vdm_jax.settings.declaration import allowed, value_type
from vdm_jax.settings.sections import Sample

FLAGS = flags.FLAGS

# --- kinds of flags ----------------------------------------------------------------


class _Path(flags.ArgumentParser):
    """The parser of every flag that names a file or a folder."""

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str) -> str:
        """Return the path; UserError for what is no path of a file system."""
        return str(user_path(argument, f"--{self.name}"))


class _Run(_Path):
    """The parser of a flag that names a run, which may be in a bucket."""

    def parse(self, argument: str) -> str:
        """Return the folder of this machine that stands for the run."""
        if not re.match("(gs|s3)://", argument):
            return super().parse(argument)
        try:
            return str(buckets.mirror(argument))
        except UserError as error:
            raise UserError(f"--{self.name}={error}") from error


class _Paths(flags.ListParser):
    """The parser of comma-separated paths."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def parse(self, argument: str | list[str]) -> list[str]:
        """Return the paths; UserError as for one path."""
        return [str(user_path(p, f"--{self.name}")) for p in super().parse(argument)]


class _Float(flags.FloatParser):
    """The parser of a number; NaN is refused, since no bound would hold it."""

    def parse(self, argument: float | int | str) -> float:
        """Return the number; ValueError for NaN."""
        value = super().parse(argument)
        if value != value:
            raise ValueError("not a number")
        return value


def define_path(name: str, meaning: str) -> None:
    """Define a flag that is a path."""
    flags.DEFINE(_Path(name), name, None, meaning)


def define_run(name: str, meaning: str) -> None:
    """Define a flag that is the folder of a run, or gs:// or s3:// and its address."""
    flags.DEFINE(_Run(name), name, None, f"{meaning}; gs://, s3:// too")


def define_multi_path(name: str, meaning: str) -> None:
    """Define a flag that is a path and may be repeated; None without any."""
    serializer = flags.ArgumentSerializer()
    flags.DEFINE_multi(_Path(name), serializer, name, None, meaning)


def define_paths(name: str, meaning: str) -> None:
    """Define a flag that is a comma-separated list of paths."""
    flags.DEFINE(_Paths(name), name, [], meaning, serializer=flags.ListSerializer(","))


def define_float(
    name: str, default: float | None, meaning: str, *bounds: float
) -> None:
    """Define a flag that is a number, with optional lower and upper bounds."""
    flags.DEFINE(_Float(*bounds), name, default, meaning)


def define_multi_float(name: str, default: float, meaning: str) -> None:
    """Define a flag that is a number and may be repeated."""
    serializer = flags.ArgumentSerializer()
    flags.DEFINE_multi(_Float(), serializer, name, [default], meaning)


def check_text(name: str) -> None:
    """Raise UserError for a flag whose text is not UTF-8, unless it is a path.

    Python decodes such bytes to surrogates; only names of files may hold them.
    """
    flag = FLAGS[name]
    if not flag.present or isinstance(flag.parser, _Path | _Paths):
        return
    for value in flag.value if isinstance(flag.value, list) else [flag.value]:
        if isinstance(value, str) and (reason := why_invalid_text(value)):
            raise UserError(f"--{name}={value}: {reason}")


# --- flags of several commands -----------------------------------------------------

# Settings of sampling that are flags of every command that samples.
SAMPLER_SETTINGS = (
    "steps", "sampler", "ancestral_gamma", "s_churn", "langevin_delta",
    "sampling_schedule", "guidance_schedule", "cfg_mode", "clip_x",
    "dynamic_threshold", "batch_size", "mesh",
)  # fmt: skip
SAMPLING_SETTINGS = (  # and of those that write videos
    *SAMPLER_SETTINGS, "guidance_scale", "reconstruction_weight",
    "reconstruction_schedule",
)  # fmt: skip
KINDS = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: define_float}


def define_settings(names: Iterable[str]) -> None:
    """Define flags of settings of config.sample, which is their default, and --seed."""
    declared = settings_of(Sample)
    for name in names:
        field = declared[name]
        text = f"{field.metadata['meaning']}; {allowed(field)}"
        KINDS[value_type(field)](name, None, f"{text} (default: the model's own)")
    flags.DEFINE_integer("seed", 0, "decides every noise", 0, 2**32 - 1)


def present_values(names: Iterable[str]) -> dict:
    """Return the values of those flags of settings that have one.

    Raises:
      UserError: a value that is not allowed.
    """
    values = {name: FLAGS[name].value for name in names}
    values = {name: value for name, value in values.items() if value is not None}
    check(settings_of(Sample), values, "--")
    return values


def define_sampling(*settings: str) -> None:
    """Define the flags that sample.py and edit.py share, and these settings."""
    define_run("workdir", "a run, or a folder of models/")
    flags.DEFINE_integer(
        "num", None, "how many videos, of each prompt if there are any "
        "(default: of each prompt 1, else the model's own)", 1,
    )  # fmt: skip
    flags.DEFINE_string(
        "label", None, "one name per attribute, comma separated, the others open; "
        "none: all open (default: the model's own)",
    )  # fmt: skip
    flags.DEFINE_string("negative_label", "", "label of the unconditional branch")
    flags.DEFINE_multi_string("prompt", [], "a text; may be repeated")
    define_path("prompts", "a file of prompts, one per line")
    flags.DEFINE_string("negative_prompt", "", "text of the unconditional branch")
    define_lora("the model")
    define_path("text_encoder", "its folder, if it is not where training had it")
    flags.DEFINE_integer(
        "clip_skip", None, "last layers of CLIP's text encoder that are not read "
        "(default: as in training)", 0,
    )  # fmt: skip
    flags.DEFINE_integer(
        "num_frames", None, "frames (default: one block, to extend two, of --control "
        "and --system 8; of --control 0 is all)", 0,
    )  # fmt: skip
    flags.DEFINE_integer(
        "overlap_frames", None, "frames that blocks share (default: half a block)"
    )
    flags.DEFINE_string(
        "size", None, "HEIGHTxWIDTH in pixels, or one number for both (default: the "
        "model's own)",
    )  # fmt: skip
    flags.DEFINE_string("tiles", "1", "ROWSxCOLUMNS of the model's size, or one number")
    flags.DEFINE_bool(
        "multidiffusion", False, "all frames at once, averaged over windows"
    )
    define_settings((*SAMPLING_SETTINGS, *settings))
    define_out("folder for the videos")


def define_lora(model: str) -> None:
    """Define --lora. model: what it is applied to."""
    flags.DEFINE_multi_string(
        "lora", [], f"FILE[:SCALE], a LoRA of diffusers or kohya-ss for {model}, which "
        "is of Stable Diffusion's kind; may be repeated, they add up",
    )  # fmt: skip


def define_system() -> None:
    """Define --system and --set."""
    flags.DEFINE_string(
        "system", None, "makes a video by an image model, as text2video_zero or "
        "control_video (docs/systems/)",
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "set", [], "--system: NAME=VALUE, an option of it; may be repeated"
    )


def define_out(meaning: str) -> None:
    """Define --out, which is a folder, and --overwrite."""
    define_path("out", meaning)
    flags.DEFINE_bool("overwrite", False, "replace the files in --out")


def define_launch(workdir: str, define: Callable = define_run) -> None:
    """Define the flags of commands that train: processes, time limit and --workdir.

    workdir: the meaning of --workdir, which must be there.
    define: of that flag; `define_path` where it cannot be in a bucket.
    """
    define("workdir", workdir)
    flags.mark_flag_as_required("workdir")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, for several")
    flags.DEFINE_integer("num_processes", None, "number of processes")
    flags.DEFINE_integer("process_id", None, "number of this process, from 0")
    define_float(
        "time_limit", None, "seconds after which to save and exit with status 42", 1.0
    )
    define_float(
        "start_timeout", 300.0, "seconds to wait for all processes to start", 1.0
    )
    define_float(
        "stall_timeout", 600.0, "seconds that others wait for a process that is stuck "
        "before all exit with status 42; 0: for ever", 0.0,
    )  # fmt: skip
    define_path("heartbeat", "file for a supervisor: when and where this process was")
    flags.DEFINE_string(
        "profile", None, "START:STEPS traces so many steps after the first START ones, "
        "into the workdir; SIGUSR2 traces the next ones",
    )  # fmt: skip


def launch():
    """Configure JAX, join the other processes of the run, and start the devices.

    Returns the PreemptionSignal of the command, with its time limit.
    """
    runtime.configure_jax()
    from vdm_jax.training import launch, stop
    from vdm_jax.training.profiler import Profiler
    from vdm_jax.training.watchdog import Watchdog

    launch.exit_on_signals()
    profiler = Profiler.from_flag(FLAGS.profile)
    signal.signal(signal.SIGUSR2, profiler.request)
    launch.start(
        FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.start_timeout
    )
    runtime.start_devices()
    watchdog = Watchdog(FLAGS.stall_timeout, FLAGS.heartbeat)
    return stop.PreemptionSignal(FLAGS.time_limit, watchdog, profiler)


# --- combinations of flags -----------------------------------------------------------


def require_one(**meanings: str) -> str:
    """Return the one of these flags that has a value.

    meanings: of each flag, what it names, for the message.

    Raises:
      UserError: none of them has one, or several have.
    """
    names = [name for name in meanings if FLAGS[name].value is not None]
    if len(names) != 1:
        choices = " or ".join(f"--{name} ({what})" for name, what in meanings.items())
        raise UserError(f"give {choices}")
    return names[0]


def check_mode(mode: str, modes: Mapping[str, Collection[str]]) -> None:
    """Raise UserError for a flag on the command line that this mode does not use.

    modes: the flags that each way to call the command uses, by the name of the way.
    Flags that all of them use may be left out.
    """
    known = {name for used in modes.values() for name in used}
    for name in sorted(known - set(modes[mode])):
        if not FLAGS[name].present:
            continue
        using = [each for each, used in modes.items() if name in used]
        if using == [f"--{name}"]:  # another mode itself
            raise UserError(f"--{name} does not go with {mode}")
        raise UserError(f"--{name} goes with {' or '.join(using)}, not with {mode}")


def parse_numbers(name: str, kind: type[int] | type[float]) -> list:
    """Return the numbers of a list flag, of this kind."""
    values: list[str] = FLAGS[name].value or []
    try:
        return [kind(value) for value in values]
    except ValueError as error:
        raise UserError(
            f"--{name}={','.join(values)}: numbers ({kind.__name__}), as 4,8,16"
        ) from error


def parse_sides(name: str, meaning: str, low: int, high: int) -> tuple[int, int]:
    """Return both sides of a flag such as 2x3, or 2 for both. meaning: of the sides."""
    text = str(FLAGS[name].value)
    found = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)
    sides = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not low <= min(sides) <= max(sides) <= high:
        raise UserError(
            f"--{name}={text}: {meaning} or one number for both, from {low} to {high}"
        )
    return sides
