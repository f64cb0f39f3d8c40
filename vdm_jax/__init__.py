"""vdm_jax: train, distil and sample video diffusion models in JAX."""

import os
import signal
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_current(folder: str) -> bool:
    """Whether this is the current folder, under whatever name."""
    try:
        return not os.path.isabs(folder) or os.path.samefile(folder, ".")
    except OSError:  # there is no such folder, or nobody may look at it
        return False


def _elsewhere(paths: list[str]) -> list[str]:
    return [path for path in paths if not _is_current(path)]


def import_path() -> list[str]:
    """Return sys.path without the current folder, in which data of others may lie."""
    return _elsewhere(sys.path)


def _is_command() -> bool:
    """Whether this process is ``python -m vdm_jax.X`` or a script beside this package.

    ``-m`` is the name of the program while the module's package is being imported.
    """
    if sys.argv[:1] == ["-m"]:
        words = (word.removeprefix("-m") for word in sys.orig_argv)
        return any(word.startswith("vdm_jax.") for word in words)
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    return os.path.dirname(os.path.abspath(script)) == _ROOT and bool(script)


# Told ``-m``, or by an empty entry in PYTHONPATH, Python looks for every module in the
# current folder first: a json.py among somebody's videos would be run. Our commands,
# and what they start, take it off before they import anything else. Programs of others
# that use this package keep theirs.
if _is_command() and not _is_current(_ROOT):
    sys.path[:] = import_path()
    os.environ["PYTHONSAFEPATH"] = "1"
    _told = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(_elsewhere(_told))


def _interrupted(number: int, frame: object) -> None:
    """End at Ctrl-C: an exception inside of a library's first import may crash it."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if _is_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _interrupted)
    from vdm_jax import command

    command.begin()
