"""What networks that know other videos and photographs see, in one table.

FVD and a class score by I3D, the Frechet distance of single frames by EfficientNet,
diversity by LPIPS. They cost seconds a clip on a CPU, so the features of every row are
kept by the content of its videos: the same command goes on where it was left, and real
clips are paid for once.
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

MIN_I3D_FRAMES = (
    16  # of a clip that FVD is given; a shorter one is played forth and back
)
COLUMNS = {
    "row": ("{clips} clips a row", ""),
    "fvd": ("FVD", ".0f"),
    "fvd_error": ("±", ".0f"),
    "frame_fd_efficientnet": ("frame distance", ".2f"),
    "frame_fd_efficientnet_error": ("±", ".2f"),
    "inception_score_i3d": ("class score", ".2f"),
    "diversity": ("diversity", ".3f"),
}
NOTE = (
    "FVD: Frechet distance of I3D's logits. Frame distance: of EfficientNet-lite0's "
    "features of single frames (not FID, which is another network's). Class score: an "
    "inception score over I3D's 400 classes. Diversity: mean LPIPS of pairs of videos. "
    "± is a standard error by the chance of the row's own clips: that of the "
    "reference is not in it (reports of before there was the table below have a "
    "bootstrap's, up to twice as wide). All fall or rise with the number of clips, so "
    "read them beside the other rows: real clips, and real clips spoilt in one way "
    "each."
)
BIAS_COLUMNS = {
    "row": ("{clips} clips a row", ""),
    **distance_columns("fvd", "FVD", ".0f"),
    **distance_columns("frame_fd_efficientnet", "frame distance", ".2f"),
}


def ping_pong(videos: np.ndarray, frames: int = MIN_I3D_FRAMES) -> np.ndarray:
    """Videos [n, f, ...] played forth and back until they have `frames` at least.

    0 1 2 3 2 1 0 1 ...: no frame is shown twice in a row, and no cut is made.
    """
    f = videos.shape[1]
    if f >= frames:
        return videos
    there_and_back = [*range(f), *range(f - 2, 0, -1)]
    return videos[:, np.resize(there_and_back, frames)]


def to_uint8_rgb(videos: np.ndarray) -> np.ndarray:
    """uint8 RGB, as videos are when they are written: all rows have steps alike."""
    if videos.dtype != np.uint8:
        videos = np.round((to_float64(videos) + 1) * 127.5).astype(np.uint8)
    return np.repeat(videos, 3, axis=-1) if videos.shape[-1] == 1 else videos


class PerceptualNetworks:
    """The weights, loaded when a feature is not on disk already."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder or default_folder() / "features"
        self._loaded: dict[str, Any] = {}

    @staticmethod
    def protocol(frames: int) -> Protocol:
        """What the figures depend on beside the videos."""
        found: Protocol = {"FVD": i3d.PROTOCOL, "frame distance": efficientnet.PROTOCOL}
        found["diversity"] = lpips.PROTOCOL
        if frames < MIN_I3D_FRAMES:
            found["FVD"] = (
                f"{i3d.PROTOCOL}, played forth and back to {MIN_I3D_FRAMES} frames"
            )
        return found

    def check(self) -> None:
        """Raise UserError if weights are missing, with the command that brings them,
        or if features cannot be kept.
        """
        make_folder(self.folder)
        for asset in (i3d.WEIGHTS, efficientnet.WEIGHTS, lpips.WEIGHTS):
            asset.verified_path()

    def _params(self, network) -> Any:
        name = network.__name__
        if name not in self._loaded:
            self._loaded[name] = network.load()
        return self._loaded[name]

    def i3d_logits(self, name: str, videos: np.ndarray) -> np.ndarray:
        """I3D's of videos as `played`, [n, 400]."""
        videos = ping_pong(videos)

        def extract(videos):
            return i3d.logits(self._params(i3d), videos, progress=True)

        return feature_cache.cached_features(
            self.folder, name, i3d.PROTOCOL, videos, extract
        )

    def frame_features(self, name: str, videos: np.ndarray) -> np.ndarray:
        """EfficientNet's of every frame, [n, f, 1280]."""

        def extract(videos):
            found = efficientnet.frame_features(self._params(efficientnet), videos)
            return found.astype(np.float32)

        found = feature_cache.cached_features(
            self.folder, name, efficientnet.PROTOCOL, videos, extract
        )
        return found.reshape(*videos.shape[:2], -1)

    def diversity(self, name: str, videos: np.ndarray) -> float:
        """Mean LPIPS of pairs; NaN where the frames are too small for it."""
        if min(videos.shape[2:4]) < lpips.MIN_SIDE:
            return float("nan")

        def extract(videos):
            return np.array([lpips.diversity(self._params(lpips), videos)])

        found = feature_cache.cached_features(
            self.folder, name, lpips.PROTOCOL, videos, extract
        )
        return float(found[0])


def network_table(
    samples: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray | None,
    networks: PerceptualNetworks,
    seed: int = 0,
) -> list[Row]:
    """The rows of `statistics.compared`: keys of COLUMNS and BIAS, and clips."""
    reference, named = reference_sets.reference_sets(samples, training, held_out, seed)
    n = len(reference)
    reference = to_uint8_rgb(reference)
    of_video = networks.i3d_logits("reference", reference)
    of_frame = networks.frame_features("reference", reference)
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
                **frechet.distance_scores("fvd", logits[:, None], of_video[:, None]),
                **frechet.distance_scores("frame_fd_efficientnet", frames, of_frame),
                "inception_score_i3d": score,
                "diversity": networks.diversity(name, videos),
            }
        )
    return rows


DEGENERATE_ROWS = ("frozen frame", "per-video mean", "global mean", "4x4 blur")


def acceptance_checks(pixels: list[Row], networks: list[Row]) -> list[list]:
    """Rows (claim, figure, asked, yes or no) of the samples, beside spoilt clips."""
    seen = {row["row"]: row for row in networks}
    own: dict[str, Any] = {**pixels[0], **networks[0]}
    least: Any = min(seen[name]["fvd"] for name in DEGENERATE_ROWS)
    mean: Any = seen["per-video mean"]["frame_fd_efficientnet"]

    def row(claim: str, figure: float, low: float, high: float, form: str) -> list:
        asked = f"below {high:{form}}" if low < 0 else f"{low:{form}} to {high:{form}}"
        passed = low <= figure < high
        return [claim, f"{figure:{form}}", asked, "yes" if passed else "no"]

    return [
        row("FVD, below stills, means and blur", own["fvd"], -1, least, ".0f"),
        row(
            "frame distance, below per-video mean",
            own["frame_fd_efficientnet"],
            -1,
            mean,
            ".2f",
        ),
        row("motion over real", own["motion"], 0.5, 1.5, ".2f"),
        row("sharpness over real", own["sharpness"], 0.8, 1.25, ".2f"),
    ]
