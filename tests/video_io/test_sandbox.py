"""The decoder in a child process: vdm_jax/video_io/sandbox.py."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.video_io.samples import (
    FRAMES,
    make_file,
)
from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.video_io import BadVideo, file_types, sandbox
from vdm_jax.video_io.sandbox import SandboxedDecoder


def test_the_sandboxed_decoder_gives_the_same_frames(videos, decoder):
    info = video_io.probe(videos["dense.mp4"])
    np.testing.assert_equal(vars(decoder.inspect(str(videos["dense.mp4"]))), vars(info))
    here = video_io.read_frames(info, [5, 2, 9], (16, 16))
    assert (decoder.read_frames(info, [5, 2, 9], (16, 16)) == here).all()
    previews, moves = decoder.decode_previews(info, (16, 16), 4)
    ends = video_io.read_frames(info, [0, FRAMES - 1], (16, 16))
    assert moves and (previews[[0, -1]] == video_io.crop(ends, (16, 16))).all()


def test_a_child_that_hangs_or_crashes_fails_one_file(videos):
    decoder = SandboxedDecoder()
    path = str(videos["dense.mp4"])
    decoder.inspect(path)
    (process,) = decoder._idle
    os.kill(process.pid, signal.SIGINT)  # the parent handles Ctrl-C
    assert decoder.inspect(path).frames == FRAMES
    os.kill(process.pid, signal.SIGSTOP)
    decoder.timeout = 1.0
    with pytest.raises(BadVideo, match="no answer from the decoder in 1 s") as caught:
        decoder.inspect(path)
    assert not caught.value.lasting and process.poll() is not None
    decoder.timeout = 60.0
    assert decoder.inspect(path).frames == FRAMES
    (process,) = decoder._idle
    process.send_signal(signal.SIGSEGV)
    process.wait()
    with pytest.raises(BadVideo, match="crashed"):
        decoder.inspect(path)
    copy = pickle.loads(pickle.dumps(decoder))
    assert copy.inspect(path).frames == FRAMES
    (process,) = copy._idle
    copy.close()
    assert process.poll() == 0


def test_a_child_without_memory_fails_one_file(tmp_path):
    path = make_file(tmp_path, "frames", video=np.zeros((1, 2000, 2000, 3), np.uint8))
    info = video_io.probe(path)
    decoder = SandboxedDecoder(memory=700 << 20)
    with pytest.raises(BadVideo, match="ran out of memory"):
        decoder.read_frames(info, [0] * 200)  # 2.4 GB
    decoder.close()


def test_a_lower_existing_memory_limit_is_kept(videos):
    code = "import sys; from vdm_jax.video_io.sandbox import SandboxedDecoder; "
    code += "print(SandboxedDecoder().inspect(sys.argv[1]).frames)"
    limited = ["sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", sys.executable, "-c"]
    done = subprocess.run(
        [*limited, code, videos["a.mkv"]], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{FRAMES}\n", "")


def test_a_child_that_does_not_start_is_a_user_error(videos, monkeypatch):
    for program in ("/bin/false", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(UserError, match="does not start .* ulimit -v"):
            SandboxedDecoder().inspect(str(videos["a.mkv"]))


def test_a_child_imports_nothing_from_the_current_folder(videos, tmp_path, monkeypatch):
    for name in ("json", "numpy", "av", "PIL", "vdm_jax", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep + str(pathlib.Path(__file__).parents[2])
    )
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    decoder = SandboxedDecoder()
    assert decoder.inspect(str(videos["a.mkv"])).frames == FRAMES
    decoder.close()


def test_children_end_with_their_parent(videos):
    code = (
        "import os, sys; from vdm_jax.video_io.sandbox import SandboxedDecoder\n"
        "decoder = SandboxedDecoder(); decoder.inspect(sys.argv[1])\n"
        "print(decoder._idle[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(videos["a.mkv"])]
    killed = subprocess.run(command, capture_output=True, text=True)
    status = pathlib.Path(f"/proc/{killed.stdout.strip()}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_child_does_not_import_jax():
    code = "import sys, vdm_jax.video_io.sandbox; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert sandbox.MEMORY_LIMIT > file_types.MAX_PIXELS * 3 * 16
