"""Synthetic sample videos in every container, encoded by the tests."""

from fractions import Fraction

import av
import av.error
import numpy as np
from PIL import Image

from vdm_jax import video_io

FRAMES, HEIGHT, WIDTH = 26, 32, 48
GOP = 8


def synthetic_video(frames=FRAMES, height=HEIGHT, width=WIDTH, channels=3):
    """Return smooth colours that differ much from frame to frame."""
    rows, columns = np.mgrid[:height, :width] / height
    waves = [
        np.sin(3 * rows + 2 * columns + 0.2 * n + c)
        for n in range(frames)
        for c in range(channels)
    ]
    video = np.reshape(waves, (frames, channels, height, width)).transpose(0, 2, 3, 1)
    return np.round(127.5 + 110 * video).astype(np.uint8)


VIDEO = synthetic_video()
# name -> container, codec, keyframe distance, options
FORMATS = {
    "dense.mp4": ("mp4", "libx264", GOP, {"bf": "2"}),
    "single.mp4": ("mp4", "libx264", 999, {"bf": "3"}),
    "a.mov": ("mov", "mpeg4", GOP, {"bf": "2"}),
    "vp8.webm": ("webm", "libvpx", GOP, {}),
    "vp9.webm": ("webm", "libvpx-vp9", GOP, {"cpu-used": "8", "deadline": "realtime"}),
    "a.mkv": ("matroska", "libx264", GOP, {"bf": "2"}),
    "b.avi": ("avi", "mpeg4", GOP, {"bf": "2"}),
    "mislabelled.avi": ("avi", "libx264", GOP, {"bf": "2"}),
    "a.mpg": ("mpeg", "mpeg2video", GOP, {"bf": "2"}),
    "a.ts": ("mpegts", "libx264", GOP, {"bf": "2"}),
    "a.m2ts": ("mpegts", "mpeg2video", GOP, {"bf": "2", "mpegts_m2ts_mode": "1"}),
    "a.wmv": ("asf", "wmv2", GOP, {}),
    "a.flv": ("flv", "libx264", GOP, {"bf": "2"}),
    "a.ogv": ("ogg", "libvpx", GOP, {}),
    "a.3gp": ("3gp", "libx264", GOP, {"bf": "2"}),
}
MANY_KEYFRAMES = {"dense.mp4", "a.mov", "vp8.webm", "vp9.webm", "a.mkv", "a.3gp"}


def encode(path, container, codec, gop, options, video=VIDEO, fps=25, pts=None, **set_):
    muxer = {"movflags": "faststart"}
    options = dict(options)
    if "mpegts_m2ts_mode" in options:
        muxer = {"mpegts_m2ts_mode": options.pop("mpegts_m2ts_mode")}
    with av.open(path, "w", format=container, options=muxer) as out:
        stream = out.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.bit_rate = gop, 3_000_000
        for name, value in set_.items():
            place = stream if hasattr(stream, name) else stream.codec_context
            setattr(place, name, value)
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(video):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def make_file(folder, name, **changes):
    """Write a file of FORMATS, a gif, a webp or a folder of frames."""
    path = folder / name
    video = changes.pop("video", VIDEO)
    pictures = [Image.fromarray(pixels) for pixels in video]
    if name.endswith((".gif", ".webp")):
        more = {"lossless": True} if name.endswith(".webp") else {}
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=40, **more
        )
    elif name == "frames":
        path.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(path / f"frame{number}.png")
    else:
        encode(str(path), *FORMATS[name], video=video, **changes)
    return path


NAMES = [*FORMATS, "a.gif", "a.webp", "frames"]


def read_clip(path, start=0, count=None, stride=1, size=None):
    """Return every ``stride``-th frame from ``start`` on, cropped to ``size``."""
    info = video_io.probe(path)
    numbers = range(start, info.frames, stride)[:count]
    video = video_io.read_frames(info, numbers, size)
    return video if size is None else video_io.crop(video, size)
