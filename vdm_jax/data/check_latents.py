"""Check a folder of stored latents: every record is read, and z is measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vdm_jax.data import check, stored_latents
from vdm_jax.data.source import BadClip
from vdm_jax.data.stored_latents import PARTS, StoredLatents
from vdm_jax.errors import UserError

MOST_NAMED = 3  # clips in a message


def run(folder: Path, as_json: bool = False) -> None:
    """Print the facts of a folder. Raises UserError as `StoredLatents`."""
    found = facts(folder)
    print(json.dumps(found, indent=1) if as_json else check.as_text(found))


def facts(folder: Path, most: int = 0) -> dict[str, Any]:
    """Return what a folder has, and the statistics of its z.

    The mean and the variance are of z as training draws it. `scale` is by what the
    scaling factor of the autoencoder must be multiplied for a variance of 1.

    most: records of a part that are read, spread evenly; 0 reads all.

    Raises:
      UserError: as `StoredLatents`, or no training record that was read is whole.
    """
    manifest = stored_latents.read_complete_manifest(folder)
    stored = StoredLatents(folder, manifest)
    frames = manifest["z_shape"][0]
    rng = np.random.default_rng(0)  # of no effect on whole clips
    damaged, read, captions, sums = [], 0, set(), []
    for part in PARTS:
        source = stored.split(part != PARTS[0])
        step = max(1, len(source) // most) if most else 1
        for index in tqdm(range(0, len(source), step), part, leave=False, disable=None):
            read += 1
            try:
                clip = source.load(index, rng, frames)
            except BadClip as error:
                damaged.append(str(error))
                continue
            captions.add(clip["caption"])
            if part == PARTS[0]:
                values = clip["latents"]
                deviation = values[..., values.shape[-1] // 2 :].mean(dtype=np.float64)
                sums.append([*stored_latents.statistics(values), deviation])
    if not sums:
        raise UserError(_all_damaged(damaged))
    means, squares, deviations = zip(*sums, strict=True)
    mean, square = np.mean(means, 0), np.mean(squares, 0)
    variance = square.mean() - mean.mean() ** 2
    return {
        "folder": str(folder),
        "latents": manifest["clips"],
        "z": f"{'x'.join(map(str, manifest['z_shape']))} {manifest['dtype']}",
        "videos": "x".join(map(str, manifest["video"])),
        "data set": f"{manifest['data']['source']} {manifest['path']}".strip(),
        "autoencoder": manifest["codec_path"],
        "captions": len(captions - {""}),
        "labels": [", ".join(names) for names in manifest["label_vocabulary"]],
        "read": read,
        "damaged": damaged,
        "mean": round(float(mean.mean()), 6),
        "variance": round(float(variance), 6),
        "means": _numbers(mean),
        "deviations": _numbers(np.sqrt(square - mean**2)),
        "posterior": round(float(np.mean(deviations)), 6),
        "scale": round(float(variance**-0.5), 6),
    }


def _all_damaged(damaged: list[str]) -> str:
    """Return the message for latents without a whole training record."""
    more = f" and {len(damaged) - MOST_NAMED} more" if damaged[MOST_NAMED:] else ""
    return (
        f"no training clip that was read is whole: {'; '.join(damaged[:MOST_NAMED])}"
        f"{more}: delete the shards that are named and repeat the command that wrote "
        "them, python -m vdm_jax.data latents, which writes what is missing"
    )


def _numbers(values: np.ndarray) -> str:
    """Return the value of each channel as text."""
    return " ".join(f"{value:.4g}" for value in values)
