"""vdm_jax: train, distil and sample video diffusion models in JAX.

import vdm_jax
trained = vdm_jax.load("models/shapes")
videos = vdm_jax.sample(trained, num=4)
"""

import os
import signal
import sys

TYPE_CHECKING = False  # type checkers take it for true; typing is not imported yet
if TYPE_CHECKING:
    from vdm_jax.api import load, sample

__all__ = ["load", "sample"]

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_current(folder: str) -> bool:
    """Return whether a path of any spelling is the current folder."""
    try:
        return not os.path.isabs(folder) or os.path.samefile(folder, ".")
    except OSError:  # it is missing, or may not be read
        return False


def _without_current(paths: list[str]) -> list[str]:
    return [path for path in paths if not _is_current(path)]


def import_path() -> list[str]:
    """Return sys.path without the current folder, which may hold files of others."""
    return _without_current(sys.path)


def _is_command() -> bool:
    """Return whether this is ``python -m vdm_jax.X`` or a script of this repository.

    ``-m`` is the name of the program while the module's package is being imported.
    """
    if sys.argv[:1] == ["-m"]:
        words = (word.removeprefix("-m") for word in sys.orig_argv)
        return any(word.startswith("vdm_jax.") for word in words)
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    return os.path.dirname(os.path.abspath(script)) == _ROOT and bool(script)


# With ``-m``, or with an empty entry in PYTHONPATH, Python searches the current folder
# for every module first: a json.py among somebody's videos would be run. Our commands
# and the processes they start remove it before they import anything else. Other
# programs that import this package keep their path.
if _is_command() and not _is_current(_ROOT):
    sys.path[:] = import_path()
    os.environ["PYTHONSAFEPATH"] = "1"
    _entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(_without_current(_entries))


def __getattr__(name: str) -> object:
    """Import the functions of `vdm_jax.api`, and with them JAX, at their first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vdm_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _interrupted(number: int, frame: object) -> None:
    """Exit at Ctrl-C: an exception inside a library's first import may crash it."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if _is_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _interrupted)
    from vdm_jax import runtime

    runtime.import_jax()
