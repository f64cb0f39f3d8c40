"""Folders of synthetic videos for the tests of the folder source."""

import types

import numpy as np
from PIL import Image

from vdm_jax import video_io
from vdm_jax.data.folder_index import VideoFile
from vdm_jax.video_io import cache, decode

FRAMES, HEIGHT, WIDTH = 12, 24, 32


def footage(seed=0, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """Return noise blocks, with the frame number as grey in the top left corner."""
    rng = np.random.default_rng(seed)
    video = rng.integers(60, 256, (frames, height // 8, width // 8, 3), np.uint8)
    video = video.repeat(8, 1).repeat(8, 2)
    video[:, :8, :8] = 6 * np.arange(frames)[:, None, None, None]
    return video


def number(frame):
    """Return the frame numbers that `footage` wrote, after decoding."""
    return np.round(frame[..., 1:4, 1:4, :].mean((-3, -2, -1)) / 6).astype(int)


def make_mp4(path, seed=0, frames=FRAMES, fps=8, video=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = footage(seed, frames) if video is None else video
    video_io.write_video(path, video, fps, scale=1, overwrite=True)


def make_frames(path, seed=0, frames=FRAMES):
    path.mkdir(parents=True)
    for n, pixels in enumerate(footage(seed, frames)):
        Image.fromarray(pixels).save(path / f"{n}.png")


def config(folder_, cache_dir_, **changes):
    video = {"frames": 4, "height": HEIGHT, "width": WIDTH, "channels": 3, "fps": 8}
    data = {"path": str(folder_), "stride": 1, "target_fps": 0.0, "crop": "center"}
    data |= {
        "validation_fraction": 0.25,
        "cache_dir": str(cache_dir_),
        "cache_gib": 0.01,
    }
    data |= {"max_bad_fraction": 1.0}
    video |= {name: changes[name] for name in video if name in changes}
    data |= {name: changes[name] for name in data if name in changes}
    assert set(changes) <= set(video) | set(data)
    space = types.SimpleNamespace
    return space(video=space(**video), data=space(**data))


class InProcessDecoder:
    """A SandboxedDecoder without children, whose start takes 0.3 s."""

    inspect = staticmethod(decode.inspect)
    read_frames = staticmethod(video_io.read_frames)

    def fill_entry(self, info, size, place):
        cache.write_entry(place, video_io.decode_frames(info, size=size))

    def close(self):
        pass


def rng(seed=0):
    return np.random.default_rng(seed)


def stub(name, frames=FRAMES):
    info = video_io.VideoInfo(
        name, "mp4", "h264", 24, 32, 0, np.arange(frames), 1, np.zeros(1, int)
    )
    return VideoFile(name, 1, info, None, (), 0, frames)


def names(files):
    return {file.name for file in files}
