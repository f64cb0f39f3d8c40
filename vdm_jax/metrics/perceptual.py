"""Scores by pretrained networks: FVD and an inception score (I3D), frames, diversity.

The Frechet distance of single frames is by EfficientNet, diversity by LPIPS. Pictures,
videos of one frame, have no scores of I3D, a network of motion. Features cost seconds a
clip on a CPU, so they are cached by the content of the videos: an interrupted command
resumes, and features of real clips are computed once.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.files import cache_folder, make_folder
from vdm_jax.metrics import efficientnet, i3d, lpips
from vdm_jax.metrics.feature_cache import cached_features
from vdm_jax.metrics.frechet import distance_scores
from vdm_jax.metrics.reference_sets import ReferenceSets
from vdm_jax.metrics.tables import Row, distance_columns
from vdm_jax.metrics.video_arrays import group_by_video, to_float64

MIN_I3D_FRAMES = 16  # shorter clips are repeated forward and backward (`ping_pong`)
COLUMNS = {
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
    "row's own clips, without that of the reference. All scores depend on the number "
    "of clips, so compare rows: real clips, and real clips distorted in one way each. "
    "FVD and the frame FD hardly depend on motion: see the pixel statistics too."
)
BIAS_COLUMNS = distance_columns(COLUMNS, "fvd", "frame_fd_efficientnet")


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
        self.folder = folder or cache_folder() / "features"
        self._loaded: dict[str, Any] = {}

    @staticmethod
    def protocol(frames: int) -> dict[str, str]:
        """Return what the scores of clips of so many frames depend on."""
        fvd = i3d.PROTOCOL
        if frames < MIN_I3D_FRAMES:
            fvd += f", repeated forward and backward to {MIN_I3D_FRAMES} frames"
        return {
            **({"FVD": fvd} if frames > 1 else {}),
            "frame_fd_efficientnet": efficientnet.PROTOCOL,
            "diversity": lpips.PROTOCOL,
        }

    def check(self) -> None:
        """Raise UserError if weights are missing or the cache cannot be written."""
        make_folder(self.folder)
        for asset in (i3d.WEIGHTS, efficientnet.WEIGHTS, lpips.WEIGHTS):
            asset.verified_path()

    def _features(self, network, name: str, videos: np.ndarray, extract) -> np.ndarray:
        """Return extract(params of the network's module, videos), cached."""

        def compute(videos: np.ndarray) -> np.ndarray:
            if network not in self._loaded:
                self._loaded[network] = network.load()
            return extract(self._loaded[network], videos)

        return cached_features(self.folder, name, network.PROTOCOL, videos, compute)

    def i3d_logits(self, name: str, videos: np.ndarray) -> np.ndarray:
        """Return I3D logits [n, 400] of `ping_pong(videos)`."""
        return self._features(
            i3d, name, ping_pong(videos), lambda *args: i3d.logits(*args, progress=True)
        )

    def frame_features(self, name: str, videos: np.ndarray) -> np.ndarray:
        """Return EfficientNet features of every frame, [n, f, 1280]."""
        features = self._features(
            efficientnet, name, videos,
            lambda *args: efficientnet.frame_features(*args).astype(np.float32),
        )  # fmt: skip
        return group_by_video(features, len(videos))

    def diversity(self, name: str, videos: np.ndarray) -> float:
        """Return the mean LPIPS of pairs; NaN for frames smaller than LPIPS accepts."""
        if min(videos.shape[2:4]) < lpips.MIN_SIDE:
            return float("nan")
        score = self._features(
            lpips, name, videos, lambda *args: np.array([lpips.diversity(*args)])
        )
        return float(score[0])


def network_rows(sets: ReferenceSets, networks: PerceptualNetworks) -> list[Row]:
    """Return a row of network scores per named set.

    A row has the keys of COLUMNS and BIAS_COLUMNS, and clips, their number.
    """
    n = len(sets.reference)
    reference = to_uint8_rgb(sets.reference)
    moves = reference.shape[1] > 1
    reference_logits = networks.i3d_logits("reference", reference) if moves else None
    reference_frames = networks.frame_features("reference", reference)
    rows = []
    for name, make in sets.named.items():
        print(f"{name}: {n} clips", flush=True)
        videos = to_uint8_rgb(make())
        row: Row = {"row": name, "clips": n}
        if reference_logits is not None:
            logits = networks.i3d_logits(name, videos)
            row |= distance_scores("fvd", logits[:, None], reference_logits[:, None])
            row["inception_score_i3d"] = i3d.inception_score(logits)
        frames = networks.frame_features(name, videos)
        row |= distance_scores("frame_fd_efficientnet", frames, reference_frames)
        row["diversity"] = networks.diversity(name, videos)
        rows.append(row)
    return rows
