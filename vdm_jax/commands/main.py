"""Parse a command line, run the command, exit.

A UserError becomes one line on standard error and its exit status; so do mistakes in
flags and config files, with status 2. Any other exception keeps its traceback and
status 1.
"""

import functools
import shlex
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags, logging

from vdm_jax import config_files, runtime
from vdm_jax.commands.flags import check_text
from vdm_jax.errors import UserError, printable

FLAGS = flags.FLAGS


def run(command: Callable[[], None], description: str) -> None:
    """Parse the command line, run `command`, and exit.

    description: what -h and --help print above the flags.
    """
    sys.modules["__main__"].__doc__ = description

    def run_parsed(argv: list[str]) -> None:
        try:
            command()
        except UserError as error:
            if agreement := sys.modules.get("vdm_jax.agreement"):
                agreement.broadcast_error(error)
            raise
        if launch := sys.modules.get("vdm_jax.training.launch"):
            launch.wait_for_all()

    app_run = functools.partial(app.run, run_parsed, flags_parser=_parse)
    runtime.run(app_run, _exit)


def _exit(status: int) -> None:
    """End this process, without waiting for other processes of its run."""
    launch = sys.modules.get("vdm_jax.training.launch")
    (launch.exit_process if launch else sys.exit)(status)


def _parse(argv: list[str]) -> list[str]:
    """Parse with absl, and check what holds for every flag; -h prints all and exits."""
    if {"-h", "-help", "--help"} & {*argv[1:]}:
        print(help_text(sys.modules["__main__"].__doc__ or ""))
        sys.exit(0)
    rest = config_files.parse_flags(FLAGS, argv)
    for name in FLAGS:
        check_text(name)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every save at INFO
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not a flag: every setting is --name=value")
    return rest


def help_text(description: str) -> str:
    """Return the description, and each flag of the command with its meaning."""
    lines = [description, ""]
    for module, defined in FLAGS.flags_by_module_dict().items():
        for flag in defined if module.startswith("vdm_jax.") else ():
            default = "" if flag.default in (None, "", []) else f" [{flag.default}]"
            text = f"  --{flag.name:24} {' '.join((flag.help or '').split())}{default}"
            lines.append(textwrap.fill(text, 100, subsequent_indent=" " * 29))
    return "\n".join(lines)


def start_jax() -> None:
    """Configure JAX and start its devices, for a command of one process."""
    runtime.configure_jax()
    runtime.start_devices()


def command_line() -> str:
    """Return the command line, for the files that say where they came from."""
    return printable(shlex.join(["python", *sys.argv]))
