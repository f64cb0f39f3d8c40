"""How near an autoencoder's reconstructions are, next to bicubic resizing.

    python -m experiments.autoencoder.reconstruction [FOLDER]

FOLDER is an AutoencoderKL of 64x64 frames, by default models/autoencoder. Bicubic
resizing goes through 18x19 pixels, 1026 values, as many as the latents' 1024 and two
more; they are not rounded.

`sets`: PSNR in dB and LPIPS of held-out frames, means with 95% intervals. Frames of a
block of footage look alike, so intervals are by resampling blocks. `flat`: what frames
of one colour come back as, in levels of 255: the mean difference to the colour, and the
amplitude of the mean 4x4 tile, which a checkerboard has. Writes reconstruction.json and
reconstruction.png, in which real frames are above reconstructions and bicubic ones.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs import autoencoder as config_file
from vdm_jax import data, latents
from vdm_jax.data import sprites
from vdm_jax.data.clips import PERIOD
from vdm_jax.data.sprite_vocabulary import COLOUR_VALUES
from vdm_jax.metrics import lpips
from vdm_jax.metrics.reconstruction import psnr
from vdm_jax.metrics.tables import format_cells, format_table
from vdm_jax.sampling import to_uint8
from vdm_jax.video_io.picture_grid import write_picture_grid

FILE = Path(__file__).with_suffix(".json")
NUM = 100  # sprites of a set
SMALL = (19, 18)  # width and height that bicubic resizing goes through
STEP = 3  # held-out photographs from one to the next: neighbours look alike
RESAMPLES = 2000
BORDER = 8  # pixels of a flat frame that are left out: zero padding shows there
NUM_FLAT = 64  # random colours
SHOWN = 8  # frames of a set on the sheet
COLUMNS = {
    "n": ("n", "d"), "psnr": ("PSNR", ".2f"),
    "psnr_interval": ("95%", "s"), "lpips": ("LPIPS", ".4f"),
    "lpips_interval": ("95%", "s"),
}  # fmt: skip


def held_out_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return frames uint8 [n, 64, 64, 3] of each set, and the group of each frame."""
    config = config_file.get_config()
    source: Any = data.open_source(config).split(True)
    stills, photographs, clips, *_ = source.parts
    assert isinstance(stills, sprites.Sprites) and isinstance(clips, sprites.Sprites)
    rng = np.random.default_rng(0)

    def draw(source, items) -> tuple[np.ndarray, np.ndarray]:
        videos = [source.load(int(i), rng, 1)["video"] for i in items]
        return np.concatenate(videos), np.arange(len(videos))

    unseen = sprites.open_sprites(with_path(config, "all+gradients")).split(True)
    is_new = unseen.labels[:, 0] >= stills.sizes[0]  # each vocabulary begins the next
    rounds = rng.integers(1000, size=NUM) * len(unseen.labels)
    new = rng.choice(np.flatnonzero(is_new), NUM) + rounds
    shown = range(0, len(photographs), STEP)
    frames, _ = draw(photographs, shown)
    files, starts = photographs.items[shown].T  # type: ignore[attr-defined]
    return {
        "stills of sprites": draw(stills, rng.integers(2**20, size=NUM)),
        "frames of clips of sprites": draw(clips, rng.integers(2**20, size=NUM)),
        "drawings never trained on": draw(unseen, new),
        "photographs": (frames, files * 10**6 + starts // PERIOD),
    }


def with_path(config: Any, path: str) -> Any:
    """Return a copy of a config with another config.data.path."""
    config = config.copy_and_resolve_references().unlock()
    config.data.path = path
    return config


def reconstruct(folder: Path, frames: np.ndarray) -> np.ndarray:
    """Return the decoded mean latents of frames uint8 [n, h, w, 3]."""
    autoencoder, params = latents.load(folder)
    x = frames.astype(np.float32) / 127.5 - 1
    z = np.concatenate(list(autoencoder.stream_encode(params, x)))
    return to_uint8(np.concatenate(list(autoencoder.stream_decode(params, z))))


def bicubic(frames: np.ndarray) -> np.ndarray:
    """Return frames that were made small and large again, in float32 between."""

    def both(channel: np.ndarray) -> np.ndarray:
        image = Image.fromarray(channel.astype(np.float32))
        small = image.resize(SMALL, Image.Resampling.BICUBIC)
        return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))

    pixels = [[both(frame[..., c]) for c in range(3)] for frame in frames]
    return np.moveaxis(np.array(pixels), 1, -1).round().clip(0, 255).astype(np.uint8)


def interval(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Return the 95% bootstrap interval of a mean, by resampling whole groups."""
    _, inverse = np.unique(groups, return_inverse=True)
    sums, counts = (np.bincount(inverse, w) for w in (values, np.ones(len(values))))
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def scores(frames: np.ndarray, again: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Return PSNR and LPIPS of reconstructions, with intervals."""
    params = lpips.load()
    each = {
        "psnr": psnr(frames[None], again[None])[0],
        "lpips": lpips.video_distance(params, frames[:, None], again[:, None]),
    }
    row: dict[str, Any] = {"n": len(frames), "groups": len(np.unique(groups))}
    for name, values in each.items():
        row |= {
            name: float(values.mean()),
            f"{name}_interval": interval(values, groups),
        }
    return row


def flat_colours(folder: Path, colours: np.ndarray) -> tuple[dict, np.ndarray]:
    """Return measures of frames of one colour, in levels of 255, and what was decoded.

    colours: uint8 [n, 3].
    """
    shape = (len(colours), 64, 64, 3)
    again = reconstruct(folder, np.broadcast_to(colours[:, None, None], shape))
    inner = slice(BORDER, -BORDER)
    pixels = again[:, inner, inner].astype(float)
    side = pixels.shape[1] // 4
    tiles = pixels.reshape(-1, side, 4, side, 4, 3).mean((1, 3))
    pattern = abs(tiles - tiles.mean((1, 2), keepdims=True)).max((1, 2, 3))
    difference = abs(pixels - colours[:, None, None])
    return {
        "n": len(colours),
        "mean difference": float(difference.mean()),
        "grid, mean": float(pattern.mean()),
        "grid, largest": float(pattern.max()),
    }, again


def main() -> None:
    """Measure, print, write."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("models/autoencoder")
    command = "python -m experiments.autoencoder.reconstruction"
    results: dict[str, Any] = {"command": command, "folder": str(folder)}
    results |= {"sets": {}, "flat": {}}
    pictures = []
    for title, (frames, groups) in held_out_sets().items():
        rows = []
        shown = np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)
        pictures.append(frames[shown])
        for name, again in (
            ("autoencoder", reconstruct(folder, frames)),
            ("bicubic", bicubic(frames)),
        ):
            rows.append({"row": name} | scores(frames, again, groups))
            pictures.append(again[shown])
        results["sets"][title] = rows
        print(f"\n{title}, {rows[0]['groups']} groups")
        cells = [r | {k: "{:.4g} to {:.4g}".format(*r[k]) for k in r if "_i" in k}
                 for r in rows]  # fmt: skip
        print(format_table(*format_cells(cells, COLUMNS)))
    random = np.random.default_rng(0).integers(256, size=(NUM_FLAT, 3))
    named = COLOUR_VALUES.reshape(-1, 3)
    for name, colours in (("backgrounds of sprites", named), ("random", random)):
        row, again = flat_colours(folder, colours.astype(np.uint8))
        results["flat"][name] = row
        pictures.append(again[:SHOWN])
        print(f"{name} colours: {row}")
    FILE.write_text(json.dumps(results, indent=1) + "\n")
    sheet = np.concatenate(pictures)
    picture = FILE.with_suffix(".png")
    write_picture_grid(picture, sheet, columns=SHOWN, overwrite=True)


if __name__ == "__main__":
    main()
