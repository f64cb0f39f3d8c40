"""How the frames of prepared clips may be stored: size, error and speed.

    python -m perf.frame_encodings

Clips of the packages' footage are written to a shard as `vdm_jax.data prepare` does,
each a record of 31 frames, and read again as in training: 16 frames in a row of it.

- bytes a frame: of the shard, by its frames;
- PSNR: in dB, of all frames;
- written, read: clips per second of CPU time, in one process.

Raw frames are compressed by the shard, with zstd. H.264 is 4:4:4 in an mp4, by the
preset veryfast. Prints a table and writes perf/frame_encodings.json.
"""

import argparse
import contextlib
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from perf import rows
from vdm_jax import video_io
from vdm_jax.data import clips
from vdm_jax.video_io import images

HERE = Path(__file__).parent
SIDES = 64, 128, 256
STORED, CLIP = 31, 16  # frames
FILES = "bunny", "trailer", "city"
RAW, JPEG, H264 = "raw, zstd 1", "JPEG 95, 4:4:4", "H.264 crf 12, every 8th"

Encode = Callable[[np.ndarray], list[bytes]]
Decode = Callable[[list[bytes], Sequence[int]], np.ndarray]


class Encoding(NamedTuple):
    """From a video uint8 [n, h, w, 3] to parts of a record, and frames of it back."""

    encode: Encode
    decode: Decode
    options: str = "group_size:1,uncompressed"


def raw(options: str) -> Encoding:
    """Return frames as they are."""

    def decode(parts: list[bytes], numbers: Sequence[int]) -> np.ndarray:
        flat = np.frombuffer(parts[0], np.uint8)
        side = int((flat.size // STORED // 3) ** 0.5)
        return flat.reshape(STORED, side, side, 3)[numbers]

    return Encoding(lambda video: [video.tobytes()], decode, options)


def pictures(kind: str, **settings: Any) -> Encoding:
    """Return an encoding of each frame by Pillow."""

    def encode(video: np.ndarray) -> list[bytes]:
        parts = []
        for frame in video:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, kind, **settings)
            parts.append(file.getvalue())
        return parts

    def decode(parts: list[bytes], numbers: Sequence[int]) -> np.ndarray:
        return np.stack([images.read_image(io.BytesIO(parts[i])) for i in numbers])

    return Encoding(encode, decode)


def h264(keyframes: int, crf: int) -> Encoding:
    """Return H.264 with a keyframe every so many frames."""

    def encode(video: np.ndarray) -> list[bytes]:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
            stream = container.add_stream("libx264", rate=8, options=options)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv444p"
            stream.codec_context.gop_size = keyframes
            for pixels in video:
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return [file.getvalue()]

    def decode(parts: list[bytes], numbers: Sequence[int]) -> np.ndarray:
        frames = []
        with av.open(io.BytesIO(parts[0]), "r") as container:
            container.streams.video[0].thread_type = "NONE"
            for i, frame in enumerate(container.decode(video=0)):
                if i in numbers:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if i == numbers[-1]:
                    break
        return np.stack(frames)

    return Encoding(encode, decode)


ENCODINGS = {
    "raw": raw("group_size:1,uncompressed"),
    RAW: raw("group_size:1,zstd:1"),
    "raw, zstd 3": raw("group_size:1,zstd:3"),
    JPEG: pictures("JPEG", quality=95, subsampling=0),
    "JPEG 90, 4:2:0": pictures("JPEG", quality=90),
    "WebP 90": pictures("WEBP", quality=90, method=2),
    "WebP, lossless": pictures("WEBP", lossless=True, quality=0, method=0),
    "H.264 crf 12, every frame a keyframe": h264(1, 12),
    H264: h264(8, 12),
}


def footage(side: int, number: int) -> list[np.ndarray]:
    """Return clips uint8 [31, side, side, 3] at equal distances in the files."""
    made = []
    for name in FILES:
        info = video_io.probe(clips.FOOTAGE[name].asset.verified_path())
        starts = np.linspace(30, info.frames - STORED - 1, number // len(FILES))
        for start in starts.astype(int):
            numbers = range(start, start + STORED)
            video = video_io.read_frames(info, numbers, (side, side))
            made.append(np.ascontiguousarray(video_io.crop(video, (side, side))))
    return made


def join(parts: list[bytes]) -> bytes:
    """Return a record of parts: their number and lengths first."""
    lengths = np.array([len(parts), *map(len, parts)], np.uint32)
    return lengths.tobytes() + b"".join(parts)


def separate(record: bytes) -> list[bytes]:
    """Return the parts of a record."""
    number = int(np.frombuffer(record, np.uint32, 1)[0])
    lengths = np.frombuffer(record, np.uint32, number, offset=4)
    ends = 4 + 4 * number + np.cumsum(lengths, dtype=np.int64)
    return [
        record[end - n : end]
        for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def measure(encoding: Encoding, videos: list[np.ndarray], turns: int) -> dict:
    """Return bytes a frame, PSNR, and clips per second of CPU time."""
    rng = np.random.default_rng(0)
    starts = rng.integers(STORED - CLIP + 1, size=(turns, len(videos)))
    written, read = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "shard")
        for _ in range(turns):
            begun = time.process_time()
            with contextlib.closing(ArrayRecordWriter(path, encoding.options)) as file:
                for video in videos:
                    file.write(join(encoding.encode(video)))
            written.append(time.process_time() - begun)
        size = os.path.getsize(path)
        records: Any = ArrayRecordDataSource([path])
        error = np.mean(
            [
                np.mean(
                    (encoding.decode(separate(r), range(STORED)) - v.astype(int)) ** 2
                )
                for r, v in zip(records, videos, strict=True)
            ]
        )
        for turn in range(turns):
            begun = time.process_time()
            for i, start in enumerate(starts[turn]):
                encoding.decode(separate(records[i]), range(start, start + CLIP))
            read.append(time.process_time() - begun)
    return {
        "bytes_a_frame": round(size / len(videos) / STORED),
        "psnr": round(float(10 * np.log10(255**2 / error)), 1) if error else None,
        "written": round(len(videos) / min(written), 1),
        "read": round(len(videos) / min(read), 1),
    }


def make_rows(table: list[dict], machine: str, command: str) -> list[dict]:
    """Return rows that compare JPEG and H.264 to raw frames with zstd."""
    about: dict[str, Any] = {"machine": machine, "command": command}
    made = []
    for side in SIDES:
        found = {row["encoding"]: row for row in table if row["side"] == side}
        for name in (JPEG, H264):
            for key, what, better in (
                ("bytes_a_frame", "bytes a frame", "lower"),
                ("written", "clips written a second", "higher"),
                ("read", "clips read a second", "higher"),
            ):
                ratio = found[name][key] / found[RAW][key]
                title = f"{side} px, {what}: {name} over {RAW}"
                made.append(rows.make_row(title, ratio, better=better, **about))
    return made


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--turns", type=int, default=2)
    flags = parser.parse_args()
    table = []
    for side in SIDES:
        videos = footage(side, flags.clips)
        for name, encoding in ENCODINGS.items():
            row = measure(encoding, videos, flags.turns)
            table.append({"side": side, "encoding": name, **row})
            print(*table[-1].values(), sep="  ", flush=True)
    command = "python -m perf.frame_encodings"
    command += f" --clips={flags.clips} --turns={flags.turns}"
    made = make_rows(table, f"{platform.machine()}, one core, CPU", command)
    setting = {"stored_frames": STORED, "clip_frames": CLIP, "files": FILES}
    rows.write(HERE / "frame_encodings.json", made, table=table, setting=setting)


if __name__ == "__main__":
    main()
