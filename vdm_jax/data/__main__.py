"""Commands on data sets.

``python -m vdm_jax.data check DIR``: check a folder of videos, or of latents.
``python -m vdm_jax.data prepare SRC --out=DIR``: decode and resize its clips once.
``python -m vdm_jax.data latents``: encode the clips of a data set once.
``python -m vdm_jax.data sprites``: draw the data source sprites.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax import config_files, runtime, settings
from vdm_jax.data import (
    check,
    check_latents,
    encode,
    prepare,
    sprite_sheet,
    stored_latents,
)
from vdm_jax.errors import UserError

# Short names of fields of the config.
FLAGS = {f"--{name}": f"--config.video.{name}" for name in ("height", "width")}
FLAGS |= {
    f"--{name}": f"--config.data.{name}"
    for name in ("stride", "validation_fraction", "max_bad_fraction", "cache_dir")
}
FLAGS |= {
    "--num_frames": "--config.video.frames",
    "--fps": "--config.data.target_fps",
}
# Flags of earlier versions -> now.
RETIRED_FLAGS = {
    "--frames": "--num_frames", "--held-out": "--validation_fraction",
    "--max-bad-share": "--max_bad_fraction", "--cache-dir": "--cache_dir",
}  # fmt: skip


def parse(arguments: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """Return the config of a command line, and its other flags. Raises UserError.

    The config is that of `check`, `prepare` or `latents`; `sprites` has none.
    """
    summary = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m vdm_jax.data", description=__doc__, formatter_class=summary
    )
    commands = parser.add_subparsers(dest="command", required=True)
    short = ", ".join(f"{flag} is {field}" for flag, field in FLAGS.items())
    add = commands.add_parser("check", help=check.__doc__, epilog=short).add_argument
    add(
        "dir", nargs="?", type=runtime.path_type,
        help="the folder of videos or latents (default: config.data.path)",
    )  # fmt: skip
    add(
        "--config", metavar="FILE[:VARIANT]",
        help="check for this config of train.py; --config.a.b=value changes a field",
    )  # fmt: skip
    add(
        "--sheet", default="data_check.png", type=runtime.path_type,
        help="contact sheet to write (an existing file is replaced)",
    )  # fmt: skip
    add("--json", action="store_true", help="print JSON instead")
    prepare.add_arguments(
        commands.add_parser("prepare", help=prepare.__doc__, epilog=short)
    )
    sprite_sheet.add_arguments(
        commands.add_parser("sprites", help=sprite_sheet.__doc__)
    )
    encode.add_arguments(commands.add_parser("latents", help=encode.__doc__))
    if not arguments:
        parser.print_help()
        raise SystemExit(2)
    if arguments[:1] == ["sprites"]:
        return None, parser.parse_args(arguments)
    if arguments[:1] == ["latents"]:
        config, rest = config_files.take_config_flags(arguments)
        return config, parser.parse_args(rest)
    default = settings.compose(check.SECTIONS)
    config, rest = config_files.take_config_flags(map(_long_flag, arguments), default)
    return config, parser.parse_args(rest)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 with one line on stderr."""
    try:
        config, flags = parse(sys.argv[1:] if arguments is None else arguments)
        if flags.command == "sprites":
            print(sprite_sheet.run(flags))
        elif flags.command == "prepare":
            print(prepare.run(config, flags))
        elif flags.command == "latents":
            print(encode.run(config, flags))
        elif stored_latents.is_stored(folder := str(flags.dir or config.data.path)):
            check_latents.run(Path(folder), flags.json)
        else:
            check.set_folder(config, flags.dir)
            check.run(config, flags.sheet, flags.json)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


def _long_flag(word: str) -> str:
    """Return a word of the command line with a short flag replaced by its field."""
    flag, equals, value = word.partition("=")
    if flag in RETIRED_FLAGS:
        raise UserError(f"{flag} is {RETIRED_FLAGS[flag]} now")
    return f"{FLAGS.get(flag, flag)}{equals}{value}"


def _command() -> int:
    if sys.argv[1:2] == ["latents"]:
        runtime.configure_jax()
        runtime.start_devices()
    return main()


if __name__ == "__main__":
    runtime.run(_command)
