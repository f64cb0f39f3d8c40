"""The decoder in a child process: what hangs, crashes or eats memory is a bad file.

FFmpeg reads files of unknown make with code that has crashed (a segmentation fault on
a truncated file, PyAV issue 2344) and hung (PyAV issue 1962). A training run must not
end with it. The child has a memory limit, the parent a time limit; both speak lines of
JSON, pixels follow as bytes.

The child imports what this process would, but nothing from the current folder.
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
from vdm_jax.video_io.files import BadVideo
from vdm_jax.video_io.info import VideoInfo

MEMORY_LIMIT = (
    6 << 30
)  # bytes of address space: sixteen 8K frames in a decoder, and Python
# Time limit: this much, and the work at a tenth of what a slow core does.
TIMEOUT, BYTES_A_SECOND, PIXELS_A_SECOND = 60.0, 20e6, 5e6

# The program of a child: arguments are the limit, this package's file, and sys.path.
# The package is loaded from its file, so that the folder it lies in is no place to
# import from either.
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
    """probe, inspect, read_frames, survey and fill_entry, done by child processes.

    There is a child for each thread that calls. Children start when needed and end with
    ``close``, with the object, and with this process however it ends; a pickled Guard
    travels without them.
    """

    def __init__(self, timeout: float = TIMEOUT, memory: int = MEMORY_LIMIT):
        self.timeout, self.memory = timeout, memory
        self._start()

    def _start(self) -> None:
        self._idle: list[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end_all, self._idle)

    def __getstate__(self) -> dict:
        return {"patience": self.timeout, "memory": self.memory}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start()

    def close(self) -> None:
        """End the idle children."""
        with self._lock:
            _end_all(self._idle)

    def probe(self, path: str) -> VideoInfo:
        """As decode.probe."""
        return self._index("probe", path)

    def inspect(self, path: str) -> VideoInfo:
        """As decode.inspect."""
        return self._index("inspect", path)

    def _index(self, how: str, path: str) -> VideoInfo:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        request = {"do": how, "path": os.path.abspath(path)}
        answer, _ = self._call(path, request, size=size)
        return VideoInfo.from_json(answer["info"] | {"path": path})

    def read_frames(
        self,
        info: VideoInfo,
        numbers: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """As decode.read_frames."""
        numbers = [int(number) for number in numbers]
        request = {"do": "read", "numbers": numbers, "size": size}
        _, video = self._call(info.path, request, info)
        assert video is not None
        return video

    def fill_entry(
        self, info: VideoInfo, size: tuple[int, int] | None, place: Path
    ) -> None:
        """Decode all of a video into an entry of the frame cache at ``place``."""
        request = {"do": "fill", "size": size, "place": os.path.abspath(place)}
        self._call(info.path, request, info)

    def decode_previews(
        self, info: VideoInfo, size: tuple[int, int], previews: int
    ) -> tuple[np.ndarray, bool]:
        """As decode.survey."""
        request = {"do": "survey", "size": size, "previews": previews}
        answer, video = self._call(info.path, request, info)
        assert video is not None
        return video, answer["moves"]

    def _call(
        self, path: str, request: dict, info: VideoInfo | None = None, size: int = 0
    ) -> tuple[dict, np.ndarray | None]:
        pixels = info.frames * info.height * info.width if info else 0
        if info:  # a child's current folder is that of its start
            request |= {"info": info.to_json() | {"path": os.path.abspath(path)}}
        work = size / BYTES_A_SECOND + pixels / PIXELS_A_SECOND
        deadline = time.monotonic() + self.timeout + work
        with self._lock:
            child = self._idle.pop() if self._idle else None
        child = child or self._spawn(deadline)
        try:
            _send(child, request)
            answer = json.loads(_line(child, deadline))
            video = None
            if "shape" in answer:
                data = _bytes(child, int(np.prod(answer["shape"])), deadline)
                video = np.frombuffer(data, np.uint8).reshape(answer["shape"])
        except TimeoutError:
            _kill(child)
            spent = self.timeout + work
            raise BadVideo(
                path, f"no answer from the decoder in {spent:.0f} s", lasting=False
            ) from None
        except (EOFError, BrokenPipeError):
            code = _kill(child)
            # Killed from outside (by the system, short of memory) or ended by an error
            # of this program, the file is not to blame for good.
            lasting = code < 0 and code not in (-signal.SIGKILL, -signal.SIGTERM)
            reason = f"the decoder crashed (status {code})"
            raise BadVideo(path, reason, lasting) from None
        except BaseException:  # an interrupt amid an answer: the child is out of step
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
        """Start a child. Raises UserError where this machine does not let it start."""
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
            _line(child, deadline)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            status = _kill(child) if child else error
            raise UserError(
                f"the process that decodes videos does not start ({status}): is there "
                "memory for it? ulimit -v says how much may be used"
            ) from None
        return child


def _send(child: subprocess.Popen, request: dict) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()


def _bytes(child: subprocess.Popen, count: int, deadline: float) -> bytearray:
    """Exactly ``count`` bytes. Raises TimeoutError, EOFError."""
    assert child.stdout is not None
    data, handle = bytearray(), child.stdout.fileno()
    ready = select.poll()
    ready.register(handle, select.POLLIN)
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(1000 * left):
            raise TimeoutError
        part = os.read(handle, min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _line(child: subprocess.Popen, deadline: float) -> bytes:
    """An answer: its length in 8 hexadecimal digits, then that many bytes."""
    return bytes(_bytes(child, int(_bytes(child, 8, deadline), 16), deadline))


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
        _wait(children.pop())  # closing its input ends it


def _answer(request: dict) -> tuple[dict, np.ndarray | None]:
    if request["do"] in ("probe", "inspect"):
        index = getattr(decode, request["do"])
        return {"info": index(request["path"]).to_json()}, None
    info = VideoInfo.from_json(request["info"])
    size = request["size"] and tuple(request["size"])
    if request["do"] == "read":
        video = decode.read_frames(info, request["numbers"], size)
        return {"shape": video.shape}, video
    if request["do"] == "survey":
        video, moves = decode.decode_previews(info, size, request["previews"])
        return {"shape": video.shape, "moves": moves}, video
    shape = (info.frames, *decode.cover_size(info.height, info.width, size))
    cache.write_entry(request["place"], decode.frames(info, size=size), shape)
    return {}, None


def serve(memory: int) -> None:
    """Answer requests on standard input until it ends."""
    # Signals to the whole group (Ctrl-C, a scheduler) are the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Where less is allowed already, that holds.
    limits = [memory, *resource.getrlimit(resource.RLIMIT_AS)]
    memory = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    _write_answer(output, {})  # ready
    for line in sys.stdin.buffer:
        video = None
        try:
            answer, video = _answer(json.loads(line))
        except BadVideo as error:
            answer = {"reason": error.reason}
        except MemoryError:
            answer = {"memory": True}
        except OSError as error:  # of the cache: no room, no right to write
            answer = {"os_error": [error.errno, error.strerror]}
        _write_answer(output, answer, b"" if video is None else video.tobytes())


def _write_answer(output: BinaryIO, answer: dict, pixels: bytes = b"") -> None:
    text = json.dumps(answer).encode()
    output.write(b"%08x" % len(text) + text + pixels)
    output.flush()
