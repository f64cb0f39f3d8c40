"""Draw sprites with their captions.

``python -m vdm_jax.data sprites`` writes a contact sheet of the data source sprites:
one still of each object, or some clips.
"""

import argparse

import numpy as np

from vdm_jax import runtime, settings, video_io
from vdm_jax.data import sprites
from vdm_jax.settings.sections import Data, TopLevel, Video

NUM_CLIPS = 24  # rows of a sheet of clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``sprites``."""
    parser.add_argument(
        "--path", default="small", help="as config.data.path: everyday, all+gradients"
    )
    parser.add_argument("--num_frames", type=int, default=1, help="1 draws stills")
    for name in ("height", "width"):
        parser.add_argument(f"--{name}", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="of places and captions")
    parser.add_argument(
        "--out", default="sprites.png", type=runtime.path_type,
        help="contact sheet to write (an existing file is replaced)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> str:
    """Write the sheet; return the text to print. Raises UserError as the source."""
    frames, height, width = (
        getattr(arguments, name) for name in ("num_frames", "height", "width")
    )
    sections = {
        "": TopLevel(seed=arguments.seed),
        "video": Video(frames=frames, height=height, width=width),
        "data": Data(source="sprites", path=arguments.path),
    }
    config = settings.compose(sections)
    settings.check_config(config, sections)
    source = sprites.open_sprites(config).split(True)
    rng = np.random.default_rng(arguments.seed)
    objects = np.arange(len(source.label_vocabulary[0]))
    if frames > 1:
        objects = rng.permutation(objects)[:NUM_CLIPS]
    # The labels are sorted by object: each has as many.
    each = len(source.labels) // source.sizes[0]
    rounds = rng.integers(2**20, size=len(objects)) * len(source.labels)
    items = rounds + objects * each + rng.integers(each, size=len(objects))
    clips = [source.load(int(i), rng, frames) for i in items]
    videos = [clip["video"] for clip in clips]
    captions = [clip["caption"] for clip in clips]
    video_io.write_sheet(arguments.out, videos, labels=captions, overwrite=True)
    kind = "stills" if frames == 1 else f"clips of {frames} frames"
    return f"{len(videos)} {kind} of {width}x{height} -> {arguments.out}"
