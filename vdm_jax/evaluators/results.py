"""results.json of a report: its protocol, and reading those of other reports.

A protocol is what must be equal before scores may be compared. Frechet distances change
more with the number of clips, the frames, the size or the weights than between two
models, so scores of different protocols are refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import UserError
from vdm_jax.evaluators.clips import RealClips
from vdm_jax.files import write_json
from vdm_jax.metrics import perceptual, pixel_statistics
from vdm_jax.metrics.perceptual import PerceptualNetworks
from vdm_jax.metrics.video_arrays import unique_videos, videos_digest
from vdm_jax.runs import read_json

Protocol = dict[str, str | int | float]
RESULTS = "results.json"

# Columns that a report of another model must have; it may lack others.
COLUMNS = {"pixels": pixel_statistics.COLUMNS, "networks": perceptual.COLUMNS}
OF_MOTION = {"motion_fd", "motion", "fvd", "fvd_error", "inception_score_i3d"}


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


def model_protocol(
    config: Any,
    real: RealClips,
    num: int,
    seed: int,
    networks: PerceptualNetworks | None,
) -> Protocol:
    """Return the protocol by which `num` samples of a model are measured."""
    return make_protocol(
        num, real.training, real.held_out["video"], networks,
        seed=seed, data=f"{config.data.source} {config.data.path}".strip(),
        stride=config.data.stride, encoding="pixels",
    )  # fmt: skip


def read_baseline_reports(folders: Sequence[Path], own: Protocol) -> dict[str, dict]:
    """Return results.json of other reports by the paths of their folders.

    own: the protocol of this evaluation.

    Raises:
      UserError: a folder holds no report, or one of another protocol.
    """
    reports = {str(folder): read_json(folder / RESULTS, dict) for folder in folders}
    for folder, report in reports.items():
        _check_protocol(own, report.get("protocol"), folder)
        for kind in COLUMNS if "diversity" in own else ("pixels",):
            lacks = OF_MOTION if own["frames"] == 1 else set()
            if not _has_scores(report.get(kind), {*COLUMNS[kind]} - lacks):
                raise UserError(f"{folder} holds no scores of {kind}: run it again")
    return reports


def _check_protocol(own: Protocol, other: Any, folder: str) -> None:
    """Raise UserError naming the first entry in which protocols differ."""
    other = other if isinstance(other, dict) else {}
    for name in {**own, **other}:
        a, b = own.get(name, "none"), other.get(name, "none")
        if a != b:
            raise UserError(
                f"{folder} was measured with {name} {b}, this evaluation with {a}: "
                "scores compare only under one protocol; run one of them again"
            )


def _has_scores(rows: Any, columns: set[str]) -> bool:
    """Return whether the first row has all columns, and numbers or null only."""
    match rows:
        case [dict(row), *_] if columns <= row.keys():
            scores = [value for key, value in row.items() if key != "row"]
            return all(isinstance(score, float | int | None) for score in scores)
    return False


def write_results(out: Path, results: dict) -> None:
    """Write OUT/results.json as strict JSON: null for NaN and infinity."""
    plain = json.loads(json.dumps(results), parse_constant=lambda name: None)
    write_json(out / RESULTS, plain)
