"""Scores by pretrained networks: FVD and an inception score (I3D), frames, diversity.

The Frechet distance of single frames is by EfficientNet, diversity by LPIPS. Features
cost seconds a clip on a CPU, so they are cached by the content of the videos: an
interrupted command resumes, and features of real clips are computed once.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.files import make_folder
from vdm_jax.metrics import (
    efficientnet,
    feature_cache,
    frechet,
    i3d,
    lpips,
    reference_sets,
)
from vdm_jax.metrics.protocol import Protocol
from vdm_jax.metrics.tables import Row, distance_columns
from vdm_jax.metrics.video_arrays import to_float64
from vdm_jax.video_io.cache import default_folder

MIN_I3D_FRAMES = 16  # shorter clips are repeated forward and backward (`ping_pong`)
COLUMNS = {
    "row": ("{clips} clips a row", ""),
    "fvd": ("FVD", ".0f"),
    "fvd_error": ("±", ".0f"),
    "frame_fd_efficientnet": ("frame FD (EfficientNet)", ".2f"),
    "frame_fd_efficientnet_error": ("±", ".2f"),
    "inception_score_i3d": ("IS (I3D)", ".2f"),
    "diversity": ("diversity", ".3f"),
}
NOTE = (
    "FVD is the Frechet distance of I3D logits. Frame FD (EfficientNet) is the Frechet "
    "distance of EfficientNet-lite0 features of single frames; FID has another "
    "network. IS (I3D) is an inception score over the 400 classes of I3D. Diversity is "
    "the mean LPIPS of pairs of videos. ± is the standard error over draws of the "
    "row's own clips, without that of the reference (reports without the table below "
    "have a bootstrap's, up to twice as large). All scores depend on the number of "
    "clips, so compare rows: real clips, and real clips distorted in one way each."
)
BIAS_COLUMNS = {
    "row": ("{clips} clips a row", ""),
    **distance_columns("fvd", "FVD", ".0f"),
    **distance_columns("frame_fd_efficientnet", "frame FD (EfficientNet)", ".2f"),
}


def ping_pong(videos: np.ndarray, frames: int = MIN_I3D_FRAMES) -> np.ndarray:
    """Extend videos [n, f, ...] to at least `frames` by forward and backward passes.

    The order of frames is 0 1 2 3 2 1 0 1 ...: no frame follows itself, and the motion
    has no jump.
    """
    f = videos.shape[1]
    if f >= frames:
        return videos
    one_period = [*range(f), *range(f - 2, 0, -1)]
    return videos[:, np.resize(one_period, frames)]


def to_uint8_rgb(videos: np.ndarray) -> np.ndarray:
    """Return videos as uint8 RGB, so that all sets have the same quantisation."""
    if videos.dtype != np.uint8:
        videos = np.round((to_float64(videos) + 1) * 127.5).astype(np.uint8)
    return np.repeat(videos, 3, axis=-1) if videos.shape[-1] == 1 else videos


class PerceptualNetworks:
    """Features of videos by I3D, EfficientNet and LPIPS, cached in a folder.

    Weights are loaded when the first feature that is not cached is computed.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder or default_folder() / "features"
        self._loaded: dict[str, Any] = {}

    @staticmethod
    def protocol(frames: int) -> Protocol:
        """Return what the scores of clips of so many frames depend on."""
        fvd = i3d.PROTOCOL
        if frames < MIN_I3D_FRAMES:
            fvd += f", repeated forward and backward to {MIN_I3D_FRAMES} frames"
        return {
            "FVD": fvd,
            "frame_fd_efficientnet": efficientnet.PROTOCOL,
            "diversity": lpips.PROTOCOL,
        }

    def check(self) -> None:
        """Raise UserError if weights are missing or the cache cannot be written."""
        make_folder(self.folder)
        for asset in (i3d.WEIGHTS, efficientnet.WEIGHTS, lpips.WEIGHTS):
            asset.verified_path()

    def _params(self, network) -> Any:
        name = network.__name__
        if name not in self._loaded:
            self._loaded[name] = network.load()
        return self._loaded[name]

    def i3d_logits(self, name: str, videos: np.ndarray) -> np.ndarray:
        """Return I3D logits [n, 400] of `ping_pong(videos)`."""
        videos = ping_pong(videos)

        def extract(videos):
            return i3d.logits(self._params(i3d), videos, progress=True)

        return feature_cache.cached_features(
            self.folder, name, i3d.PROTOCOL, videos, extract
        )

    def frame_features(self, name: str, videos: np.ndarray) -> np.ndarray:
        """Return EfficientNet features of every frame, [n, f, 1280]."""

        def extract(videos):
            params = self._params(efficientnet)
            return efficientnet.frame_features(params, videos).astype(np.float32)

        features = feature_cache.cached_features(
            self.folder, name, efficientnet.PROTOCOL, videos, extract
        )
        return features.reshape(*videos.shape[:2], -1)

    def diversity(self, name: str, videos: np.ndarray) -> float:
        """Return the mean LPIPS of pairs; NaN for frames smaller than LPIPS accepts."""
        if min(videos.shape[2:4]) < lpips.MIN_SIDE:
            return float("nan")

        def extract(videos):
            return np.array([lpips.diversity(self._params(lpips), videos)])

        score = feature_cache.cached_features(
            self.folder, name, lpips.PROTOCOL, videos, extract
        )
        return float(score[0])


def network_table(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    networks: PerceptualNetworks,
    seed: int = 0,
) -> list[Row]:
    """Return a row of network scores per set of `reference_sets`.

    A row has the keys of COLUMNS and BIAS_COLUMNS, and clips, their number.
    """
    reference, named = reference_sets.reference_sets(samples, training, held_out, seed)
    n = len(reference)
    reference = to_uint8_rgb(reference)
    reference_logits = networks.i3d_logits("reference", reference)[:, None]
    reference_frames = networks.frame_features("reference", reference)
    rows = []
    for name, make in named.items():
        print(f"{name}: {n} clips", flush=True)
        videos = to_uint8_rgb(make())
        logits = networks.i3d_logits(name, videos)
        frames = networks.frame_features(name, videos)
        score, _ = i3d.inception_score(logits)
        rows.append(
            {
                "row": name,
                "clips": n,
                **frechet.distance_scores("fvd", logits[:, None], reference_logits),
                **frechet.distance_scores(
                    "frame_fd_efficientnet", frames, reference_frames
                ),
                "inception_score_i3d": score,
                "diversity": networks.diversity(name, videos),
            }
        )
    return rows


DEGENERATE_ROWS = ("frozen frame", "per-video mean", "global mean", "4x4 blur")


def acceptance_checks(pixels: list[Row], networks: list[Row]) -> list[list]:
    """Return rows (check, score, limits, yes or no) of the samples.

    The limits of FVD and of the frame FD are scores of distorted real clips.
    """
    by_name = {row["row"]: row for row in networks}
    own: dict[str, Any] = {**pixels[0], **networks[0]}
    degenerate_fvd: Any = min(by_name[name]["fvd"] for name in DEGENERATE_ROWS)
    mean_fd: Any = by_name["per-video mean"]["frame_fd_efficientnet"]

    def row(check: str, score: float, low: float, high: float, form: str) -> list:
        limits = f"below {high:{form}}" if low < 0 else f"{low:{form}} to {high:{form}}"
        passed = low <= score < high
        return [check, f"{score:{form}}", limits, "yes" if passed else "no"]

    return [
        row("FVD, below stills, means and blur", own["fvd"], -1, degenerate_fvd, ".0f"),
        row(
            "frame FD (EfficientNet), below per-video mean",
            own["frame_fd_efficientnet"],
            -1,
            mean_fd,
            ".2f",
        ),
        row("motion over real", own["motion"], 0.5, 1.5, ".2f"),
        row("sharpness over real", own["sharpness"], 0.8, 1.25, ".2f"),
    ]
