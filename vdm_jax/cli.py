"""The verbs' command lines: flags, and what a user sees when something is wrong.

A UserError becomes one line on stderr and its exit status; so do mistakes in flags and
config files, with status 2. Anything else keeps its traceback and status 1.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from vdm_jax.errors import UserError

FLAGS = flags.FLAGS


def run(verb: Callable[[], None], description: str) -> None:
    """Parse the command line, run `verb`, exit as the module says."""
    sys.modules["__main__"].__doc__ = description
    try:
        app.run(lambda argv: verb(), flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)


def _parse(argv: list[str]) -> list[str]:
    """absl's own parsing, with its many exceptions turned into UserError."""
    for flag in argv[1:]:
        if flag.startswith("--config="):
            _check_config_file(flag.removeprefix("--config="))
    try:
        rest = FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        message = str(error.args[0] if error.args else error)
        raise UserError(" ".join(message.split())) from error
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag: every setting is --name=value")
    return rest


def _check_config_file(value: str) -> None:
    """The file exists and knows the variant: `configs/NAME.py[:variant]`."""
    path, _, variant = value.partition(":")
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path("configs").glob("*.py")))
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--config={path}: no such file{hint}")
    variants = runpy.run_path(path).get("VARIANTS", ("",))
    if variant not in variants:
        known = ", ".join(repr(v) for v in variants if v) or "none"
        raise UserError(f"{path} has no variant {variant!r}; it has: {known}")


def _config_flag() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py[:variant]; --config.a.b=value changes a field"
    )
    flags.mark_flag_as_required("config")


def _workdir_flag(meaning: str) -> None:
    flags.DEFINE_string("workdir", None, meaning)
    flags.mark_flag_as_required("workdir")


def _start_jax() -> None:
    """Persistent compilation cache, on by default: JAX_COMPILATION_CACHE_DIR moves it."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        folder = str(Path.home() / ".cache" / "vdm_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_numpy_rank_promotion", "raise")


def train() -> None:
    """train.py"""
    _config_flag()
    _workdir_flag("where the run lives; the same command again resumes it")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, for several")
    flags.DEFINE_integer("num_processes", None, "how many processes take part")
    flags.DEFINE_integer("process_id", None, "which of them this is")

    def verb() -> None:
        _start_jax()
        from vdm_jax.training import launch

        launch.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        from vdm_jax.training.train import train

        train(FLAGS.config, Path(FLAGS.workdir).absolute())

    run(verb, "Train a video diffusion model; the same command again resumes.")
