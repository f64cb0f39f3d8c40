"""results.json of a report: its protocol, and reading those of other reports.

A protocol is what must be equal before scores may be compared. Frechet distances change
more with the number of clips, the frames, the size or the weights than between two
models, so scores of different protocols are refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.files import write_json
from vdm_jax.metrics import perceptual, pixel_statistics
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.video_arrays import unique_videos, videos_digest
from vdm_jax.runs import read_json

Protocol = dict[str, str | int | float]
RESULTS = "results.json"

# Columns that a report of another model must have, and columns that older ones lack.
COLUMNS = {
    "pixels": (pixel_statistics.COLUMNS, pixel_statistics.BIAS_COLUMNS),
    "networks": (perceptual.COLUMNS, perceptual.BIAS_COLUMNS),
}

# Keys of results.json that reports of version 0.1 have under other names.
RENAMED_KEYS = {
    "shapes": "attributes",
    "nearer": "closer_to_train",
    "class_score": "inception_score_i3d",
    "joint": "all_attributes",
    "fit_error": "template_mse",
    "spread": "position_std",
    "spread_error": "position_std_error",
    "off": "rmse_to_teacher",
    "calls": "nfe",
    "frame distance": "frame_fd_efficientnet",
}
RENAMED_PROTOCOL = ("played forth and back to", "repeated forward and backward to")


def make_protocol(
    num: int,
    training: np.ndarray,
    held_out: np.ndarray | None,
    networks: PerceptualNetworks | None,
    **others: str | int,
) -> Protocol:
    """Return the protocol by which `num` videos are compared with real clips."""
    real = [training] if held_out is None else [training, held_out]
    counts = [len(unique_videos(clips)) for clips in real]
    _, frames, height, width, _ = training.shape
    protocol: Protocol = {
        "clips": min(num, counts[0] // 2, *counts[1:]),
        "frames": frames,
        "size": f"{height}x{width}",
        "real clips": videos_digest(*real)[:16],
        **others,
    }
    if held_out is not None:
        protocol["training clips"] = counts[0]
    return protocol | (networks.protocol(frames) if networks else {})


def data_fields(config: Any) -> dict[str, str | int]:
    """Return what a protocol says of the data of a model."""
    source = f"{config.data.source} {config.data.path}".strip()
    return {"data": source, "stride": config.data.stride, "encoding": "pixels"}


def read_baseline_reports(folders: Sequence[Path], own: Protocol) -> dict[str, dict]:
    """Return results.json of other reports by the names of their folders.

    own: the protocol of this evaluation.

    Raises:
      UserError: a folder holds no report, or one of another protocol.
    """
    reports = {}
    for folder in folders:
        path = folder / RESULTS
        if not path.is_file():
            raise UserError(f"{folder} holds no {RESULTS}: give a report's folder")
        report = migrate_results(read_json(path))
        if not isinstance(report, dict):
            raise UserError(f"{path} is no report of evaluate.py: run it again")
        check_same_protocol(own, report.get("protocol"), path)
        for name in ("pixels", "networks") if "FVD" in own else ("pixels",):
            if not _has_scores(report.get(name), name):
                raise UserError(f"{path} holds no scores of {name}: run it again")
        reports[str(folder)] = report
    return reports


def check_same_protocol(own: Protocol, other: Any, path: Path) -> None:
    """Raise UserError naming the first entry in which protocols differ."""
    if not isinstance(other, dict):
        raise UserError(f"{path} holds no protocol: run evaluate.py again")
    for name in {**own, **other}:
        a, b = own.get(name, "none"), other.get(name, "none")
        if a != b:
            raise UserError(
                f"{path} was measured with {name} {b}, this evaluation with {a}: "
                "scores compare only under one protocol; run one of them again"
            )


def _has_scores(rows: Any, name: str) -> bool:
    """Return whether the first row has a number or null in every column."""
    required, optional = COLUMNS[name]
    match rows:
        case [dict(row), *_]:
            scores = [row.get(key, "") for key in required]
            scores += [row.get(key) for key in optional]
            return all(isinstance(score, float | int | None) for score in scores)
    return False


def migrate_results(results: Any) -> Any:
    """Return results with the current names of keys (RENAMED_KEYS)."""
    match results:
        case dict():
            return {
                RENAMED_KEYS.get(
                    key, key.replace("frame_distance", "frame_fd_efficientnet")
                ): migrate_results(value)
                for key, value in results.items()
            }
        case list():
            return [migrate_results(value) for value in results]
        case str():
            return results.replace(*RENAMED_PROTOCOL)
    return results


def write_results(out: Path, results: dict) -> None:
    """Write OUT/results.json as strict JSON: null for NaN and infinity."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    write_json(out / RESULTS, plain(results))
