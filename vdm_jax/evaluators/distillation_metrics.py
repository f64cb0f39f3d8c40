"""Scores of the rows of a distillation's evaluation, and their columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vdm_jax.metrics import frechet, pixel_statistics
from vdm_jax.metrics.by_source import ATTRIBUTE_METRICS
from vdm_jax.metrics.tables import format_cells
from vdm_jax.metrics.video_arrays import group_by_video, to_float64

FEATURES = {
    "frame_fd": pixel_statistics.pixel_features,
    "motion_fd": pixel_statistics.motion_features,
}
COLUMNS = {
    "row": ("", ""),
    "nfe": ("NFE", ",d"),
    "videos": ("videos", ",d"),
    "all_attributes": ("all attributes", ".3f"),
    "template_mse": ("template mse", ".3f"),
    "position_std": ("position std", ".3f"),
    "position_std_error": ("±", ".3f"),
    "frame_fd": ("frame FD", ".3f"),
    "frame_fd_error": ("±", ".3f"),
    "frame_fd_ratio": ("ratio", ".2f"),
    "motion_fd": ("motion FD", ".3f"),
    "motion_fd_error": ("±", ".3f"),
    "motion_fd_ratio": ("ratio", ".2f"),
    "rmse_to_teacher": ("RMSE to teacher", ".3f"),
    "seconds": ("s / video", ".3f"),
}
NOTE = (
    "The first row is the reference of the others. Ratios are to its distances with as "
    "many videos. RMSE to teacher is the root mean square difference from its video of "
    "the same number, which starts from the same noise. ± is the standard error over "
    "draws of the row's videos. Frechet distances are comparable at equal numbers of "
    "videos only. NFE is the number of function evaluations: guidance calls the "
    "teacher twice per step, a guidance-distilled student once. Seconds exclude "
    "compilation."
)


class DistillationMetrics:
    """Scores of videos that have the labels and the noise of the reference row.

    Frechet distances are to held-out clips with the same labels. Ratios are to the
    distances of as many videos of the reference row.
    """

    def __init__(self, real: np.ndarray, labels: np.ndarray | None, source: str):
        self.clips, self.labels = real, labels
        self.attributes = ATTRIBUTE_METRICS.get(source) if labels is not None else None
        self.reference: np.ndarray | None = None  # set after its row is sampled

    def _distances(self, videos: np.ndarray, errors: bool = True) -> dict[str, float]:
        scores, n = {}, len(videos)
        for name, features in FEATURES.items():
            a, b = features(videos), features(self.clips[:n])
            if errors:
                a, b = (group_by_video(x, n) for x in (a, b))
                scores |= frechet.distance_scores(name, a, b)
            else:
                scores[name] = frechet.frechet_of_features(a, b)
        return scores

    def __call__(self, videos: np.ndarray) -> dict[str, float]:
        """Return the scores of videos uint8 [n, f, h, w, c]."""
        n = len(videos)
        scores: dict[str, float] = {"videos": n}
        if self.attributes:
            assert self.labels is not None
            scores |= self.attributes.attribute_scores(videos, self.labels[:n])
        scores |= self._distances(videos)
        first = videos if self.reference is None else self.reference[:n]
        reference = self._distances(first, errors=False)
        difference = to_float64(videos) - to_float64(first)
        scores |= {
            f"{name}_ratio": scores[name] / reference[name] for name in reference
        }
        return scores | {
            "rmse_to_teacher": float(np.sqrt(np.square(difference).mean()))
        }

    def real_row(self, clips: np.ndarray) -> dict[str, Any]:
        """Return the row of training clips, the best that as many videos can reach."""
        row: dict[str, Any] = {"row": "real clips", "videos": len(clips)}
        if self.attributes:
            unspecified = np.full_like(self.labels, -1)
            scores = self.attributes.attribute_scores(clips, unspecified)
            names = ("template_mse", "position_std", "position_std_error")
            row |= {name: scores[name] for name in names}
        return row | self._distances(clips)


def format_shown_cells(rows: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Return headings and formatted cells of the columns that any row has."""
    shown = {k: v for k, v in COLUMNS.items() if any(k in row for row in rows)}
    return format_cells(rows, shown)


def format_row(row: dict) -> str:
    """Return a row as one line of text."""
    parts = [
        f"{heading} {row[key]:{form}}"
        for key, (heading, form) in COLUMNS.items()
        if key in row and heading not in ("", "±")
    ]
    return f"{row['row']}: " + ", ".join(parts)
