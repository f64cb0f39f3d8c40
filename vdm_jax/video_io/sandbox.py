"""Run the decoder in a child process with a time limit and a memory limit.

FFmpeg has crashed on untrusted files (a segmentation fault on a truncated file, PyAV
issue 2344) and hung (PyAV issue 1962). A file that does this raises BadVideo here, and
the training run continues. Requests and answers are lines of JSON; pixels follow as
bytes.

The child has the import path of this process without the current folder.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

import vdm_jax
from vdm_jax.errors import UserError
from vdm_jax.video_io import cache, decode
from vdm_jax.video_io.file_types import BadVideo
from vdm_jax.video_io.info import VideoInfo

# Bytes of address space: Python, and sixteen 8K frames in a decoder.
MEMORY_LIMIT = 6 << 30
# The time limit is TIMEOUT seconds plus the work at a tenth of a slow core's speed.
TIMEOUT, BYTES_PER_SECOND, PIXELS_PER_SECOND = 60.0, 20e6, 5e6

# The program of a child. Its arguments are the memory limit, this package's file, and
# sys.path. The package is loaded from its file, so that its parent folder is not on the
# import path.
CHILD = """
import importlib.util, sys
memory, file, *sys.path[:] = sys.argv[1:]
spec = importlib.util.spec_from_file_location("vdm_jax", file)
sys.modules["vdm_jax"] = importlib.util.module_from_spec(spec)
try:
    spec.loader.exec_module(sys.modules["vdm_jax"])
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
        self._start()

    def _start(self) -> None:
        self._idle: list[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end_all, self._idle)

    def __getstate__(self) -> dict:
        return {"timeout": self.timeout, "memory": self.memory}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def close(self) -> None:
        """End the idle children."""
        with self._lock:
            _end_all(self._idle)

    def probe(self, path: str) -> VideoInfo:
        """Run `decode.probe`."""
        return self._index("probe", path)

    def inspect(self, path: str) -> VideoInfo:
        """Run `decode.inspect`."""
        return self._index("inspect", path)

    def _index(self, function: str, path: str) -> VideoInfo:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        request = {"do": function, "path": os.path.abspath(path)}
        answer, _ = self._call(path, request, size=size)
        return VideoInfo.from_json(answer["info"] | {"path": path})

    def read_frames(
        self,
        info: VideoInfo,
        numbers: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Run `decode.read_frames`."""
        numbers = [int(number) for number in numbers]
        request = {"do": "read", "numbers": numbers, "size": size}
        _, video = self._call(info.path, request, info)
        assert video is not None
        return video

    def fill_entry(
        self, info: VideoInfo, size: tuple[int, int] | None, path: Path
    ) -> None:
        """Decode a whole video into the entry ``path`` of the frame cache."""
        request = {"do": "fill", "size": size, "entry": os.path.abspath(path)}
        self._call(info.path, request, info)

    def decode_previews(
        self, info: VideoInfo, size: tuple[int, int], previews: int
    ) -> tuple[np.ndarray, bool]:
        """Run `decode.decode_previews`."""
        request = {"do": "previews", "size": size, "previews": previews}
        answer, video = self._call(info.path, request, info)
        assert video is not None
        return video, answer["moves"]

    def _call(
        self, path: str, request: dict, info: VideoInfo | None = None, size: int = 0
    ) -> tuple[dict, np.ndarray | None]:
        """Send a request to a child; return its answer and video. Raises BadVideo."""
        pixels = info.frames * info.height * info.width if info else 0
        if info:  # absolute, because the child keeps the folder it was started in
            request |= {"info": info.to_json() | {"path": os.path.abspath(path)}}
        work = size / BYTES_PER_SECOND + pixels / PIXELS_PER_SECOND
        deadline = time.monotonic() + self.timeout + work
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child or self._spawn(deadline)
        try:
            _send(child, request)
            answer = json.loads(_read_answer(child, deadline))
            video = None
            if "shape" in answer:
                data = _read_bytes(child, int(np.prod(answer["shape"])), deadline)
                video = np.frombuffer(data, np.uint8).reshape(answer["shape"])
        except TimeoutError:
            _kill(child)
            seconds = self.timeout + work
            raise BadVideo(
                path, f"no answer from the decoder in {seconds:.0f} s", lasting=False
            ) from None
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
        with self._lock:
            self._idle.append(child)
        if "memory" in answer:
            raise BadVideo(path, "the decoder ran out of memory", lasting=False)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "reason" in answer:
            raise BadVideo(path, answer["reason"])
        return answer, video

    def _spawn(self, deadline: float) -> subprocess.Popen:
        """Start a child. Raises UserError if this machine cannot start it."""
        assert vdm_jax.__file__
        arguments = [str(self.memory), vdm_jax.__file__, *vdm_jax.import_path()]
        child = None
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )
            _read_answer(child, deadline)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            status = _kill(child) if child else error
            raise UserError(
                f"the process that decodes videos does not start ({status}): is enough "
                "memory available? ulimit -v prints the limit"
            ) from None
        return child


def _send(child: subprocess.Popen, request: dict) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()


def _read_bytes(child: subprocess.Popen, count: int, deadline: float) -> bytearray:
    """Read exactly ``count`` bytes from a child. Raises TimeoutError, EOFError."""
    assert child.stdout is not None
    data, handle = bytearray(), child.stdout.fileno()
    ready = select.poll()
    ready.register(handle, select.POLLIN)
    while len(data) < count:
        seconds = deadline - time.monotonic()
        if seconds <= 0 or not ready.poll(1000 * seconds):
            raise TimeoutError
        part = os.read(handle, min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _read_answer(child: subprocess.Popen, deadline: float) -> bytes:
    """Read an answer: its length in 8 hexadecimal digits, then that many bytes."""
    length = int(_read_bytes(child, 8, deadline), 16)
    return bytes(_read_bytes(child, length, deadline))


def _kill(child: subprocess.Popen) -> int:
    child.kill()
    return _wait(child)


def _wait(child: subprocess.Popen) -> int:
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    return child.wait()


def _end_all(children: list[subprocess.Popen]) -> None:
    while children:
        _wait(children.pop())  # a child ends when its input is closed


def _answer(request: dict) -> tuple[dict, np.ndarray | None]:
    """Do what a request says; return the answer and the pixels that follow it."""
    if request["do"] in ("probe", "inspect"):
        index = getattr(decode, request["do"])
        return {"info": index(request["path"]).to_json()}, None
    info = VideoInfo.from_json(request["info"])
    size = request["size"] and tuple(request["size"])
    if request["do"] == "read":
        video = decode.read_frames(info, request["numbers"], size)
        return {"shape": video.shape}, video
    if request["do"] == "previews":
        video, moves = decode.decode_previews(info, size, request["previews"])
        return {"shape": video.shape, "moves": moves}, video
    shape = (info.frames, *decode.cover_size(info.height, info.width, size))
    cache.write_entry(request["entry"], decode.decode_frames(info, size=size), shape)
    return {}, None


def serve(memory: int) -> None:
    """Answer requests on standard input until it ends.

    memory: the largest number of bytes of address space.
    """
    # The parent handles signals to the process group (Ctrl-C, a scheduler).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
            answer, video = _answer(json.loads(line))
        except BadVideo as error:
            answer = {"reason": error.reason}
        except MemoryError:
            answer = {"memory": True}
        except OSError as error:  # the cache cannot be written
            answer = {"os_error": [error.errno, error.strerror]}
        _write_answer(output, answer, b"" if video is None else video.tobytes())


def _write_answer(output: BinaryIO, answer: dict, pixels: bytes = b"") -> None:
    text = json.dumps(answer).encode()
    output.write(b"%08x" % len(text) + text + pixels)
    output.flush()
