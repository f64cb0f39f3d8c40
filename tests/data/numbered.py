"""A source whose clips show the number of their item, and its batches."""

import dataclasses
import itertools

import numpy as np
from ml_collections import ConfigDict

from vdm_jax.data import pipeline
from vdm_jax.data.source import BadClip, Clip


def config(**changes):
    """Return a config; the changes are fields of config.data, and the seed."""
    made = ConfigDict(
        {
            "seed": changes.pop("seed", 0),
            "conditioning": {"text_dim": 0},
            "video": {"frames": 3, "height": 8, "width": 8, "channels": 3, "fps": 8},
            "data": {
                "source": "shapes",
                "batch_size": 4,
                "joint_image_frames": 0,
                "stride": 1,
                "target_fps": 0.0,
                "flip": False,
                "crop": "center",
                "workers": 0,
                "max_bad_fraction": 0.2,
                "label_vocabulary": None,
                "mean": None,
                "variance": None,
            },
        }
    )
    made.data.update(changes)
    return made.lock()


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Item i is a clip with i in channel 0 and a random number in channel 1.

    Column 0 is marked in channel 2 to detect flips. Items in `bad` are unusable.
    """

    items: int = 10
    bad: tuple[int, ...] = ()
    held_out: bool = False
    loaded: list = dataclasses.field(default_factory=list, compare=False)

    name = "numbered"
    names = ("a", "b")
    sizes = (1, 2)
    label_vocabulary = (tuple(map(str, range(100))),)
    flip = True

    def __len__(self):
        return 5 if self.held_out else self.items

    def split(self, held_out):
        return dataclasses.replace(self, held_out=held_out)

    def load(self, index, rng, frames):
        self.loaded.append(index)
        noise = int(rng.integers(256))
        if index in self.bad:
            raise BadClip(f"item {index}", "broken")
        video = np.zeros((frames, 8, 8, 3), np.uint8)
        video[..., 0] = index + 100 * self.held_out
        video[..., 1] = noise
        video[:, :, 0, 2] = 255
        return Clip(video=video, label=np.array([index], np.int32), caption=f"c{index}")


def take(batches, n):
    found = list(itertools.islice(batches, n))
    batches.close()
    return found


def stream(source, n, **changes):
    return take(pipeline.train_batches(config(**changes), source), n)


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key], err_msg=key)


def items_of(batches):
    return np.concatenate([b["video"][:, 0, 0, 0, 0] for b in batches])
