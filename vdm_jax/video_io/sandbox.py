"""Run the decoder in a child process with a time limit and a memory limit.

FFmpeg has crashed on untrusted files (a segmentation fault on a truncated file, PyAV
issue 2344) and hung (PyAV issue 1962). A file that does this raises BadVideo here, and
the training run continues. Requests and answers are lines of JSON; pixels follow as
bytes.

The child has the import path of this process without the current folder.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

import numpy as np

import vdm_jax
from vdm_jax.errors import UserError
from vdm_jax.video_io import cache, decode
from vdm_jax.video_io.decode import Size
from vdm_jax.video_io.file_types import BadVideo
from vdm_jax.video_io.info import VideoInfo

# Bytes of address space: Python, and sixteen 8K frames in a decoder.
MEMORY_LIMIT = 6 << 30
# The time limit is TIMEOUT seconds plus the work at a tenth of a slow core's speed.
TIMEOUT, BYTES_PER_SECOND, PIXELS_PER_SECOND = 60.0, 20e6, 5e6

# The program of a child. Its arguments are the memory limit and sys.path.
CHILD = """
import sys
memory, *sys.path[:] = sys.argv[1:]
try:
    from vdm_jax.video_io import sandbox
except (ImportError, MemoryError, OSError) as error:
    sys.exit(f"the decoder: {error}")
sandbox.serve(int(memory))
"""


class SandboxedDecoder:
    """The functions of `decode`, run by child processes.

    Each calling thread uses one child. Children start on demand. They end with `close`,
    with the object, and with this process, even if it is killed. Pickling copies the
    limits and no children.

    Args:
      timeout: seconds per call, in addition to the time for the size of the file.
      memory: bytes of address space of a child.
    """

    def __init__(self, timeout: float = TIMEOUT, memory: int = MEMORY_LIMIT):
        self.timeout, self.memory = timeout, memory
        self._idle: list[subprocess.Popen] = []
        self._end = weakref.finalize(self, _end_all, self._idle)

    def __reduce__(self):
        return SandboxedDecoder, (self.timeout, self.memory)

    def close(self) -> None:
        """End the idle children."""
        _end_all(self._idle)

    def probe(self, path: str, function: str = "probe") -> VideoInfo:
        """Run `decode.probe`."""
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        request = {"do": function, "path": os.path.abspath(path)}
        answer, _ = self._call(path, request, size / BYTES_PER_SECOND)
        return VideoInfo.from_json(answer["info"] | {"path": path})

    def inspect(self, path: str) -> VideoInfo:
        """Run `decode.inspect`."""
        return self.probe(path, "inspect")

    def read_frames(
        self, info: VideoInfo, numbers: Sequence[int], size: Size | None = None
    ) -> np.ndarray:
        """Run `decode.read_frames`."""
        return self._decode("read_frames", info, list(map(int, numbers)), size)[1]

    def fill_entry(self, info: VideoInfo, size: Size | None, path: Path) -> None:
        """Decode a whole video into the entry ``path`` of the frame cache."""
        self._decode("fill_entry", info, size, os.path.abspath(path))

    def decode_previews(
        self, info: VideoInfo, size: Size, previews: int
    ) -> tuple[np.ndarray, bool]:
        """Run `decode.decode_previews`."""
        answer, video = self._decode("decode_previews", info, size, previews)
        return video, answer["moves"]

    def _decode(self, function: str, info: VideoInfo, *arguments):
        """Return the answer and the video of a function of an indexed file."""
        # An absolute path, because the child keeps the folder it was started in.
        index = info.to_json() | {"path": os.path.abspath(info.path)}
        request = {"do": function, "info": index, "arguments": arguments}
        pixels = info.frames * info.height * info.width
        return self._call(info.path, request, pixels / PIXELS_PER_SECOND)

    def _call(self, path: str, request: dict, work: float) -> tuple[dict, np.ndarray]:
        """Send a request to a child; return its answer and video. Raises BadVideo.

        work: seconds that the request may take in addition to the timeout.
        """
        seconds = self.timeout + work
        try:
            child = self._idle.pop()  # one step: threads share the list
        except IndexError:
            child = self._spawn()
        try:
            assert child.stdin
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            answer, video = _read_answer(child, seconds)
        except TimeoutError:
            _kill(child)
            reason = f"no answer from the decoder in {seconds:.0f} s"
            raise BadVideo(path, reason, lasting=False) from None
        except (EOFError, BrokenPipeError):
            code = _kill(child)
            # A kill from outside (by the system, without memory) or a bug of this
            # program says nothing about the file.
            lasting = code < 0 and code not in (-signal.SIGKILL, -signal.SIGTERM)
            reason = f"the decoder crashed (status {code})"
            raise BadVideo(path, reason, lasting) from None
        except BaseException:  # interrupted: the rest of the answer would come next
            _kill(child)
            raise
        self._idle.append(child)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "reason" in answer:
            raise BadVideo(path, answer["reason"], answer["lasting"])
        return answer, video

    def _spawn(self) -> subprocess.Popen:
        """Start a child. Raises UserError if this machine cannot start it."""
        # The folder of this package comes last: it may hold other files.
        import_path = [*vdm_jax.import_path(), str(Path(__file__).parents[2])]
        child = None
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, str(self.memory), *import_path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )
            _read_answer(child, self.timeout)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            status = _kill(child) if child else error
            reason = f"the process that decodes videos does not start ({status})"
            rule = "is enough memory available? ulimit -v prints the limit"
            raise UserError(f"{reason}: {rule}") from None
        return child


def _read_answer(child: subprocess.Popen, seconds: float) -> tuple[dict, np.ndarray]:
    """Read an answer: a line of JSON, then a video uint8 of its ``shape``.

    Raises TimeoutError if it does not begin in time, EOFError if it is not complete.
    """
    output = cast(io.BufferedReader, child.stdout)
    if not connection.wait([output.fileno()], seconds):
        raise TimeoutError
    line = output.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer = json.loads(line)
    video = np.empty(answer.get("shape", 0), np.uint8)
    if output.readinto(video.reshape(-1).data) < video.size:
        raise EOFError
    return answer, video


def _kill(child: subprocess.Popen) -> int:
    child.kill()
    return _wait(child)


def _wait(child: subprocess.Popen) -> int:
    with contextlib.suppress(BrokenPipeError), child:  # closes the pipes and waits
        pass
    return child.returncode


def _end_all(children: list[subprocess.Popen]) -> None:
    while children:
        _wait(children.pop())  # a child ends when its input is closed


def _answer(do: str, path: str = "", info: Any = None, arguments: Sequence = ()):
    """Do what a request says; return the answer and the pixels that follow it."""
    if info is None:
        return {"info": getattr(decode, do)(path).to_json()}, None
    info = VideoInfo.from_json(info)
    moves = None
    if do == "fill_entry":
        size, entry = arguments
        cache.write_entry(entry, decode.decode_frames(info, size=size))
        return {}, None
    if do == "read_frames":
        video = decode.read_frames(info, *arguments)
    else:
        video, moves = decode.decode_previews(info, *arguments)
    return {"shape": video.shape, "moves": moves}, video


def serve(memory: int) -> None:
    """Answer requests on standard input until it ends.

    memory: the largest number of bytes of address space.
    """
    # The parent handles signals to the process group (Ctrl-C, a scheduler).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it may end before an answer
    # An existing lower limit is kept.
    limits = [memory, *resource.getrlimit(resource.RLIMIT_AS)]
    memory = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not mix its output with the answers
    _write_answer(output, {})  # ready
    for line in sys.stdin.buffer:
        video = None
        try:
            answer, video = _answer(**json.loads(line))
        except BadVideo as error:
            answer = {"reason": error.reason, "lasting": error.lasting}
        except MemoryError:
            answer = {"reason": "the decoder ran out of memory", "lasting": False}
        except OSError as error:  # the cache cannot be written
            answer = {"os_error": [error.errno, error.strerror]}
        _write_answer(output, answer, video)


def _write_answer(
    output: io.BufferedWriter, answer: dict, video: np.ndarray | None = None
) -> None:
    output.write(json.dumps(answer).encode() + b"\n")
    if video is not None:
        output.write(np.ascontiguousarray(video).data)
    output.flush()
