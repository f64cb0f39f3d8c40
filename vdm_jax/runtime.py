"""The process of a command: its standard streams, JAX's settings, its exit status.

Output is not the work of a command: if its standard output or error is closed, full or
no longer read, it continues without. (Training saves first: `training.stop`.)
"""

import argparse
import contextlib
import errno
import functools
import io
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from vdm_jax.errors import UserError, printable
from vdm_jax.files import cache_folder, make_folder, user_path

INTERRUPTED = 130  # exit status after Ctrl-C
MIN_COMPILE_SECONDS = 0.5  # of a program that is kept in the compilation cache
RESTART = 42  # exit status that requests a restart
# Settings of JAX that change numbers: a seed's video and a run must not depend on the
# user's environment. (XLA_FLAGS and settings for debugging are kept.)
PINNED_JAX_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_default_matmul_precision": None,
    "jax_allow_f16_reductions": True,
    "jax_softmax_custom_jvp": False,
    "jax_use_direct_linearize": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_default_device": None,
}


def import_jax() -> None:
    """Import JAX before anything else; exit with one line if that fails.

    At its import JAX reads its settings from the environment, and refuses unknown ones.
    Settings of tqdm would end its import too, and are removed: our bars have their own.
    """
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]
    try:
        import jax  # noqa: F401
    except (MemoryError, OSError, ImportError, ValueError) as error:
        reason = out_of_memory_message(error)
        if isinstance(error, ValueError):
            reason = f"JAX does not start: {_shortened(error)}{_jax_environment()}"
        if reason is None:
            raise
        raise SystemExit(_print_line(f"error: {reason}", 2)) from None


def run(
    main: Callable[[], int | None], exit_process: Callable[[int], object] = sys.exit
):
    """Run a command and exit; an error of the user is one line on stderr, and a status.

    A UserError has its own status, Ctrl-C 130, missing memory and files that the system
    refuses 2. Any other exception is a bug of ours and keeps its traceback.
    exit_process ends the process with a status.
    """
    protect_streams()
    interrupts = []

    def interrupt(number: int, frame: object) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        status = main() or 0
    except KeyboardInterrupt:
        status = _print_line("interrupted", INTERRUPTED)
    except UserError as error:
        status = _print_line(f"error: {error}", error.status)
    except Exception as error:  # raised again unless its kind is known
        reason = out_of_memory_message(error) or file_error_message(error)
        if interrupts:  # a library raised another error at Ctrl-C
            status = _print_line("interrupted", INTERRUPTED)
        elif reason:
            status = _print_line(f"error: {reason}", 2)
        else:
            raise
    exit_process(status)


def _print_line(text: str, status: int) -> int:
    print(" ".join(text.splitlines()), file=sys.stderr, flush=True)
    return status


def out_of_memory_message(error: BaseException) -> str | None:
    """Return the message for an error of missing memory, None for any other."""
    text = " ".join(str(error).split())
    words = (
        "RESOURCE_EXHAUSTED: ", "can't start new thread", "failed to map segment",
        "annot allocate memory",
    )  # fmt: skip
    if not (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or any(word in text for word in words)
    ):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    advice = "use a smaller batch_size, fewer videos or frames"
    if limit != resource.RLIM_INFINITY:
        advice = f"ulimit -v allows {limit / 2**30:.1f} GiB: raise it, or {advice}"
    return f"out of memory ({text or type(error).__name__}): {advice}"


ACCESS_ERRORS = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EROFS)


def file_error_message(error: BaseException) -> str | None:
    """Return the message for a file that the system refuses, None for another error."""
    if not isinstance(error, OSError):
        return None
    if error.errno in ACCESS_ERRORS and error.filename is not None:
        name = printable(os.fsdecode(error.filename))
        return f"{name} cannot be used ({os.strerror(error.errno).lower()})"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current folder was deleted: change to another"
    return None


def path_type(text: str) -> Path:
    """Return a path of an argparse flag or argument: its ``type``."""
    try:
        return user_path(text, "path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# --- standard streams --------------------------------------------------------------


class _LossyStream(io.FileIO):
    """A standard stream that drops what it cannot write."""

    def write(self, data, /) -> int:
        size = memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # not ready: non-blocking
                select.select([], [self], [])
        except OSError as error:  # no reader, no terminal, a full disk
            if error.errno == errno.EPIPE:
                _streams_without_reader.add(self.fileno())
            return size
        return written


_streams_without_reader: set[int] = set()


def output_reader_gone() -> bool:
    """Return whether standard output or error has no reader any more."""
    return bool(_streams_without_reader)


def protect_streams() -> None:
    """Make standard output and error survive write errors, and encode any text.

    A closed file descriptor is opened on the null device. Otherwise the next file to be
    opened would get its number, and what libraries print with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is None:  # closed at the start: another file may have the number
            nothing = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, nothing)
            continue
        old.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(_LossyStream(number, "w", closefd=False)),
            encoding=old.encoding,
            errors="backslashreplace",  # any name of a file, any caption
            line_buffering=old.line_buffering or old.write_through or number == 2,
        )
        setattr(sys, name, stream)


def write_stderr(text: str) -> None:
    """Write a line to standard error.

    Not by print, which may be what a signal interrupted, or another thread holds.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


# --- JAX ---------------------------------------------------------------------------


def compilation_cache_dir() -> str:
    """Return the folder of compiled programs, "" for none."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        return str(cache_folder() / "xla")
    return folder and str(user_path(folder, "JAX_COMPILATION_CACHE_DIR"))


_exported_dir: Path | None = None


def exported_dir() -> Path | None:
    """Return the folder of exported training steps, next to the compiled programs.

    None for none, and in a process that `configure_jax` has not configured: what runs
    there may not be what the source files say.
    """
    return _exported_dir


def jax_setting(name: str) -> Any:
    """Return the value of a JAX setting; some of them are no attributes."""
    import jax

    return jax.config.values[name]


def configure_jax() -> None:
    """Configure JAX before its devices start, so that all users get the same numbers.

    Settings of the environment that change numbers are reset, with a warning.
    """
    global _exported_dir
    import jax

    for name, value in PINNED_JAX_SETTINGS.items():
        variable = name.upper()
        if variable in os.environ and jax_setting(name) != value:
            jax.config.update(name, value)
            print(
                f"{variable}={os.environ[variable]} would change the numbers of a seed "
                "or a run: it is ignored",
                file=sys.stderr,
            )
    if dump := os.environ.get("JAX_DUMP_IR_TO"):
        user_path(dump, "JAX_DUMP_IR_TO")
    folder = compilation_cache_dir()
    if folder and not os.path.isdir(folder):  # a read-only one is fine
        try:
            make_folder(folder)
        except UserError as error:
            print(
                f"no cache of compiled programs: {error}: JAX_COMPILATION_CACHE_DIR",
                file=sys.stderr,
            )
            folder = ""
    _exported_dir = Path(folder) / "exported" if folder else None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    _count_programs()


class Programs:
    """Counts the programs of this process that the compilation cache keeps.

    hits: read from the cache. misses: compiled for MIN_COMPILE_SECONDS or longer.
    """

    def __init__(self):
        self.hits = self.misses = 0
        self._is_hit = threading.local()

    def on_event(self, event: str, **_: Any) -> None:
        """Count a hit; a listener of jax.monitoring."""
        if event == "/jax/compilation_cache/cache_hits":
            self.hits += 1
            self._is_hit.value = True

    def on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        """Count a miss at the end of a compilation; a listener of jax.monitoring."""
        if event == "/jax/core/compile/backend_compile_duration":
            is_hit = getattr(self._is_hit, "value", False)
            self.misses += not is_hit and duration_secs >= MIN_COMPILE_SECONDS
            self._is_hit.value = False


programs = Programs()


@functools.cache
def _count_programs() -> None:
    """Count in `programs` from now on."""
    import jax

    jax.monitoring.register_event_listener(programs.on_event)
    jax.monitoring.register_event_duration_secs_listener(programs.on_duration)


def start_devices() -> None:
    """Start JAX's devices; UserError with JAX's reason if none starts."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter says nothing
        reason = _shortened(error) + _jax_environment()
        raise UserError(f"no device starts: {reason}") from error


def _jax_environment() -> str:
    """Return the JAX variables of the environment, for an error they may cause."""
    names = [n for n in os.environ if n.startswith("JAX_")]
    names = sorted({*names} - {"JAX_COMPILATION_CACHE_DIR"})  # which is checked
    variables = [f"{name}={os.environ[name]}" for name in names]
    return f"; environment: {', '.join(variables)}" if variables else ""


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "no message"
