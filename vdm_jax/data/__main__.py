"""``python -m vdm_jax.data check DIR``: check a folder of videos before training.

``python -m vdm_jax.data sprites``: draw the data source sprites.
"""

import argparse
import sys

from vdm_jax import config_files, runtime
from vdm_jax.data import check, sprite_sheet
from vdm_jax.errors import UserError

# Flags of earlier versions -> now.
RETIRED_FLAGS = {
    "--frames": "--num_frames", "--held-out": "--validation_fraction",
    "--max-bad-share": "--max_bad_fraction", "--cache-dir": "--cache_dir",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser("python -m vdm_jax.data")
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help=check.__doc__)
    check.add_arguments(checker)
    sheet = commands.add_parser("sprites", help=sprite_sheet.__doc__)
    sprite_sheet.add_arguments(sheet)
    try:
        words = sys.argv[1:] if arguments is None else arguments
        config, rest = config_files.take_config_flags(words)
        for old in (word.partition("=")[0] for word in rest):
            if old in RETIRED_FLAGS:
                raise UserError(f"{old} is {RETIRED_FLAGS[old]} now")
        flags = parser.parse_args(rest)
        if flags.command == "sprites":
            print(sprite_sheet.run(flags))
        else:
            print(check.run(flags, config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    runtime.run(main)
