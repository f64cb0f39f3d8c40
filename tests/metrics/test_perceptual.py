"""The table of network metrics, with cheap networks."""

import numpy as np
import pytest

from tests.metrics.cheap_networks import CheapNetworks, drifting_squares
from vdm_jax.errors import UserError
from vdm_jax.metrics import (
    frechet,
    perceptual,
    pixel_statistics,
    reference_sets,
)
from vdm_jax.metrics.kernel import kernel_distance
from vdm_jax.metrics.tables import format_cells
from vdm_jax.metrics.video_arrays import to_float64


@pytest.fixture(scope="module")
def clips():
    return drifting_squares()


@pytest.mark.parametrize("f", [2, 3, 8, 15, 16, 20])
def test_short_clips_are_repeated_forward_and_backward(f):
    videos = np.arange(f)[None, :, None, None, None] * np.ones((2, 1, 1, 1, 1))
    found = perceptual.ping_pong(videos)[0, :, 0, 0, 0]
    assert len(found) == max(f, 16)
    assert (found[:f] == np.arange(f)).all()
    assert (np.abs(np.diff(found)) == 1).all()


def test_rows_are_the_same_clips_as_the_pixel_table_has(clips):
    networks = CheapNetworks()
    sets = reference_sets.reference_sets(clips[:8], clips[8:32], clips[32:])
    rows = perceptual.network_rows(sets, networks)
    pixels = pixel_statistics.pixel_rows(sets, clips[8:32])
    names = ["samples", "training real", "held-out real", *reference_sets.DISTORTIONS]
    assert [row["row"] for row in rows] == [row["row"] for row in pixels] == names
    assert networks.names == ["reference", *names]
    by_name = {row["row"]: row for row in rows}
    assert all(row["clips"] == 8 for row in rows)
    for figure in ("fvd", "frame_fd_efficientnet"):
        assert by_name["noise"][figure] > by_name["training real"][figure]
    assert by_name["global mean"]["diversity"] == pytest.approx(0, abs=1e-6)
    cells = format_cells(rows, perceptual.COLUMNS)
    assert cells[0][0] == "8 clips a row" and len(cells[1]) == len(rows)


def test_without_held_out_clips_their_row_is_left_out(clips):
    rows = pixel_statistics.pixel_rows(
        reference_sets.reference_sets(clips[:8], clips[8:], None), clips[8:]
    )
    assert "held-out real" not in [row["row"] for row in rows]
    assert all(np.isnan(row["closer_to_train"]) for row in rows)


def test_networks_get_uint8_clips_and_features_are_cached(clips, tmp_path, monkeypatch):
    seen = []

    def logits(params, videos, progress):
        assert params == "i3d" and progress
        seen.append(videos)
        return videos.mean((1, 2, 3))

    monkeypatch.setattr(perceptual.i3d, "load", lambda: "i3d")
    monkeypatch.setattr(perceptual.i3d, "logits", logits)
    networks = perceptual.PerceptualNetworks(tmp_path)
    grey = perceptual.to_uint8_rgb(to_float64(clips[:2, ..., :1]))
    assert (grey == clips[:2, ..., :1]).all() and grey.shape[-1] == 3
    first = networks.i3d_logits("a", clips[:2])
    assert (networks.i3d_logits("a", clips[:2]) == first).all() and len(seen) == 1
    assert (seen[0] == perceptual.ping_pong(clips[:2])).all()
    monkeypatch.setattr(perceptual.i3d, "PROTOCOL", "another")
    networks.i3d_logits("a", clips[:2])
    assert len(seen) == 2
    assert "forward and backward to 16" in str(networks.protocol(8)["FVD"])
    assert networks.protocol(16)["FVD"] == "another"


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be an output folder"):
        perceptual.PerceptualNetworks(tmp_path / "file" / "features").check()


def test_scores_are_those_of_the_metrics_on_the_same_clips(clips):
    networks = CheapNetworks()
    sets = reference_sets.reference_sets(clips[:8], clips[8:32], clips[32:])
    rows = perceptual.network_rows(sets, networks)
    reference, named = sets
    for row in rows:
        videos = perceptual.to_uint8_rgb(named[row["row"]]())
        pair = [networks.i3d_logits("", v) for v in (videos, reference)]
        assert row["fvd"] == perceptual.i3d.fvd(*pair)
        one = [x[:, None] for x in pair]
        assert row["fvd_error"] == frechet.frechet_error(*one)
        assert row["fvd_infinite"] == frechet.frechet_infinity(*one)
        figures = row["fvd_kernel"], row["fvd_kernel_error"]
        assert figures == kernel_distance(*one)
        score = perceptual.i3d.inception_score(pair[0])
        assert row["inception_score_i3d"] == score
        frames = [networks.frame_features("", v) for v in (videos, reference)]
        flat = (x.reshape(-1, x.shape[-1]) for x in frames)
        assert row["frame_fd_efficientnet"] == frechet.frechet_of_features(*flat)
        error = frechet.frechet_error(*frames)
        assert row["frame_fd_efficientnet_error"] == error
    real = to_float64(named["training real"]())
    frozen = reference_sets.DISTORTIONS["frozen frame"](real)
    assert (named["frozen frame"]() == frozen).all()
