"""Single frames of sprites, of photographs and of one colour, for an autoencoder."""

import dataclasses
from typing import Any

import numpy as np

from vdm_jax.data import sprites
from vdm_jax.data.source import Clip
from vdm_jax.errors import UserError

CLIP_FRAMES = 8  # of the clips of sprites from which frames are taken


@dataclasses.dataclass(frozen=True)
class Colours:
    """Frames of one random colour, which norms of a network see in no other frame."""

    height: int
    width: int
    held_out: bool = False

    name = "colours"
    names = ("colours",)
    sizes = ()
    label_vocabulary = ()
    flip = True

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load `frames` equal frames; the colour depends on the index alone."""
        colour = np.random.default_rng((self.held_out, index)).integers(256, size=3)
        shape = (frames, self.height, self.width, 3)
        video = np.broadcast_to(colour.astype(np.uint8), shape)
        return Clip(video=video, caption="a colour")

    def split(self, held_out: bool) -> "Colours":
        """Return the part with other colours, or the training part."""
        return dataclasses.replace(self, held_out=held_out)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The source. Item i is of part i modulo their number.

    Of eight items four are photographs, two are stills of sprites, one is a frame of a
    clip of sprites and one is of one colour.
    """

    parts: tuple[Any, ...]  # of Source

    name = "pictures"
    label_vocabulary = ()
    flip = True  # the caption of a single frame has no direction

    @property
    def names(self) -> tuple[str, ...]:
        """What the items are made of, for the fingerprint."""
        return sum((part.names for part in self.parts), ())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the parts, for the fingerprint."""
        return sum((part.sizes for part in self.parts), ())

    def __len__(self) -> int:
        return 2**31 - 1

    def load(self, index: int, rng: np.random.Generator, frames: int) -> Clip:
        """Load the picture of item `index`: one frame."""
        number, place = index // len(self.parts), index % len(self.parts)
        part = self.parts[place]
        clip = part.load(number % len(part), rng, 1)
        return Clip(video=clip["video"], caption=clip["caption"] or "a photograph")

    def split(self, held_out: bool) -> "Pictures":
        """Return the part with other places and photographs, or the training part."""
        return Pictures(tuple(part.split(held_out) for part in self.parts))


def open_pictures(config) -> Pictures:
    """Open the source of a config.

    config.data.path is that of sprites, as "everyday+gradients". The photographs are
    those of its backgrounds: frames of the published clips.

    Raises:
      UserError: more than one frame, or as `open_sprites` and `open_clips`.
    """
    if config.video.frames != 1:
        raise UserError(
            f"config.video.frames={config.video.frames}: pictures are single frames: "
            "set it to 1"
        )
    stills = sprites.open_sprites(config)
    geometry = dataclasses.replace(stills.geometry, frames=CLIP_FRAMES)
    clips = dataclasses.replace(stills, geometry=geometry)
    photographs = sprites.open_photographs(config)
    colours = Colours(config.video.height, config.video.width)
    drawn = (stills, clips, stills, colours)
    return Pictures(tuple(part for each in drawn for part in (each, photographs)))
