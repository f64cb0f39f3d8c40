"""The table of networks, with cheap ones in their place; protocols; folders."""

import json
from pathlib import Path

import numpy as np
import pytest

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.evaluators import folders, models
from vdm_jax.metrics import (
    frechet,
    perceptual,
    pixel_statistics,
    protocol,
    reference_sets,
)
from vdm_jax.metrics.kernel import kernel_distance
from vdm_jax.metrics.tables import format_cells
from vdm_jax.metrics.video_arrays import to_float64

PROTOCOL: protocol.Protocol = {"clips": 8, "frames": 8, "size": "16x16"}


class Cheap(perceptual.PerceptualNetworks):
    """Means of cells in the place of what the networks see."""

    def __init__(self):
        self.asked = []

    def i3d_logits(self, name, videos):
        self.asked.append(name)
        return pixel_statistics.pixel_features(videos).reshape(len(videos), -1)[:, ::97]

    def frame_features(self, name, videos):
        found = pixel_statistics.pixel_features(videos)
        return found.reshape(*videos.shape[:2], -1)[:, :, ::5]

    def diversity(self, name, videos):
        return float(np.std(to_float64(videos), axis=0).mean())


@pytest.fixture(scope="module")
def clips():
    """Squares that drift over a ramp: uint8 [40, 8, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    videos = np.zeros((40, 8, 16, 16, 3), np.uint8)
    videos[:] = (np.arange(16) * 6)[:, None]
    for video in videos:
        colour, (y, x), dx = rng.integers(90, 255, 3), rng.integers(0, 9, 2), 1
        for t, frame in enumerate(video):
            left = min(x + dx * (t // 2), 12)
            frame[y : y + 4, left : left + 4] = colour
    return videos


@pytest.mark.parametrize("f", [2, 3, 8, 15, 16, 20])
def test_short_clips_are_played_forth_and_back(f):
    videos = np.arange(f)[None, :, None, None, None] * np.ones((2, 1, 1, 1, 1))
    found = perceptual.ping_pong(videos)[0, :, 0, 0, 0]
    assert len(found) == max(f, 16)
    assert (found[:f] == np.arange(f)).all()
    assert (np.abs(np.diff(found)) == 1).all()


def test_rows_are_the_same_clips_as_the_pixel_table_has(clips):
    networks = Cheap()
    rows = perceptual.network_table(clips[:8], clips[8:32], clips[32:], networks)
    pixels = pixel_statistics.pixel_table(clips[:8], clips[8:32], clips[32:])
    names = ["samples", "training real", "held-out real", *reference_sets.DISTORTIONS]
    assert [row["row"] for row in rows] == [row["row"] for row in pixels] == names
    assert networks.asked == ["reference", *names]
    by_name = {row["row"]: row for row in rows}
    assert all(row["clips"] == 8 for row in rows)
    for figure in ("fvd", "frame_fd_efficientnet"):
        assert by_name["noise"][figure] > by_name["training real"][figure]
    assert by_name["global mean"]["diversity"] == pytest.approx(0, abs=1e-6)
    cells = format_cells(rows, perceptual.COLUMNS)
    assert cells[0][0] == "8 clips a row" and len(cells[1]) == len(rows)


def test_without_held_out_clips_their_row_is_left_out(clips):
    rows = pixel_statistics.pixel_table(clips[:8], clips[8:], None)
    assert "held-out real" not in [row["row"] for row in rows]
    assert all(np.isnan(row["closer_to_train"]) for row in rows)


def test_claims_are_all_kept_by_real_clips_and_none_by_a_flat_colour():
    spoilt = [
        {"row": name, "fvd": fvd, "frame_fd_efficientnet": frame}
        for name, fvd, frame in (
            ("frozen frame", 300.0, 9.0),
            ("per-video mean", 200.0, 20.0),
            ("4x4 blur", 400.0, 30.0),
            ("global mean", 500.0, 40.0),
        )
    ]

    def said(fvd, frame, motion, sharpness):
        pixels = [{"row": "samples", "motion": motion, "sharpness": sharpness}]
        own = {"row": "samples", "fvd": fvd, "frame_fd_efficientnet": frame}
        return [row[-1] for row in perceptual.acceptance_checks(pixels, [own, *spoilt])]

    assert said(100.0, 5.0, 1.0, 1.0) == ["yes"] * 4
    assert said(199.0, 19.9, 0.5, 0.8) == ["yes"] * 4
    assert said(200.0, 20.0, 0.49, 0.79) == ["no"] * 4
    assert said(500.0, 40.0, 1.5, 1.25) == ["no"] * 4
    assert said(250.0, 5.0, 1.0, 1.0) == ["no", "yes", "yes", "yes"]


def report_of(folder: Path, measured, rows=None) -> Path:
    folder.mkdir()
    rows = [dict.fromkeys(pixel_statistics.COLUMNS, 1.0)] if rows is None else rows
    (folder / "results.json").write_text(
        json.dumps({"protocol": measured, "pixels": rows})
    )
    return folder


def test_what_a_network_is_given_and_remembered_by(clips, tmp_path, monkeypatch):
    """The real class, its networks in place of which a record stands."""
    given = []

    def logits(params, videos, progress):
        assert params == "i3d" and progress
        given.append(videos)
        return videos.mean((1, 2, 3))

    monkeypatch.setattr(perceptual.i3d, "load", lambda: "i3d")
    monkeypatch.setattr(perceptual.i3d, "logits", logits)
    networks = perceptual.PerceptualNetworks(tmp_path)
    grey = perceptual.to_uint8_rgb(to_float64(clips[:2, ..., :1]))
    assert (grey == clips[:2, ..., :1]).all() and grey.shape[-1] == 3
    first = networks.i3d_logits("a", clips[:2])
    assert (networks.i3d_logits("a", clips[:2]) == first).all() and len(given) == 1
    assert (given[0] == perceptual.ping_pong(clips[:2])).all()
    monkeypatch.setattr(perceptual.i3d, "PROTOCOL", "another")
    networks.i3d_logits("a", clips[:2])
    assert len(given) == 2
    assert "forth and back to 16" in str(networks.protocol(8)["FVD"])
    assert networks.protocol(16)["FVD"] == "another"


def test_a_folder_that_cannot_keep_features_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be an output folder"):
        perceptual.PerceptualNetworks(tmp_path / "file" / "features").check()


def test_the_figures_are_of_their_own_features(clips):
    """Against the functions of which the table is made, on the clips it names."""
    networks = Cheap()
    rows = perceptual.network_table(clips[:8], clips[8:32], clips[32:], networks)
    reference, named = reference_sets.reference_sets(clips[:8], clips[8:32], clips[32:])
    for row in rows:
        videos = perceptual.to_uint8_rgb(named[row["row"]]())
        pair = [networks.i3d_logits("", v) for v in (videos, reference)]
        assert row["fvd"] == perceptual.i3d.fvd(*pair)
        one = [x[:, None] for x in pair]
        assert row["fvd_error"] == frechet.frechet_error(*one)
        assert row["fvd_infinite"] == frechet.frechet_infinity(*one)
        figures = row["fvd_kernel"], row["fvd_kernel_error"]
        assert figures == kernel_distance(*one)
        score = perceptual.i3d.inception_score(pair[0])[0]
        assert row["inception_score_i3d"] == score
        frames = [networks.frame_features("", v) for v in (videos, reference)]
        flat = (x.reshape(-1, x.shape[-1]) for x in frames)
        assert row["frame_fd_efficientnet"] == frechet.frechet_of_features(*flat)
        error = frechet.frechet_error(*frames)
        assert row["frame_fd_efficientnet_error"] == error
    spoilt = reference_sets.DISTORTIONS["frozen frame"](
        to_float64(named["training real"]())
    )
    assert (named["frozen frame"]() == spoilt).all()


WORDS = dict.fromkeys(pixel_statistics.COLUMNS, "a word")


@pytest.mark.parametrize("rows", [[], {}, [1], [{}], [{"row": "samples"}], [WORDS]])
def test_a_report_without_its_figures_is_named(tmp_path, rows):
    with pytest.raises(UserError, match="holds no figures of pixels"):
        models.read_baseline_reports(
            [report_of(tmp_path / "a", PROTOCOL, rows)], PROTOCOL
        )
    (tmp_path / "a" / "results.json").write_text("[]")
    with pytest.raises(UserError, match="is no report"):
        models.read_baseline_reports([tmp_path / "a"], PROTOCOL)


def test_a_report_of_before_a_column_is_read_beside_new_ones(clips, tmp_path):
    """What it lacks is not known; what it has must be a number all the same."""
    older = report_of(tmp_path / "older", PROTOCOL)
    others = models.read_baseline_reports([older], PROTOCOL)
    tables, figures = models.measure_tables(clips[:8], clips[8:32], None, None, others)
    assert [table.title for table in tables] == ["Pixel statistics", models.BIAS_TITLE]
    own, other, *_ = tables[1].rows
    assert "–" not in own and own[0] == "samples"
    assert other == [str(older), "1.00", "–", "–", "–", "–", "1.000", *4 * ["–"]]
    newer = report_of(tmp_path / "newer", PROTOCOL, figures["pixels"])
    assert models.read_baseline_reports([newer], PROTOCOL)
    wrong = figures["pixels"][0] | {"frame_fd_infinite": "many"}
    with pytest.raises(UserError, match="holds no figures of pixels"):
        models.read_baseline_reports(
            [report_of(tmp_path / "w", PROTOCOL, [wrong])], PROTOCOL
        )


def test_curves_by_steps_are_of_their_rows():
    rows = [{"frame_fd": 1.0, "motion_fd": 0.1}, {"frame_fd": 3.0, "motion_fd": 0.2}]
    frame, move = models.step_sections([64, 8], rows)
    assert frame.lines[0].x.tolist() == [64, 8]
    assert frame.lines[0].y.tolist() == [1.0, 3.0]
    assert move.lines[0].y.tolist() == [0.1, 0.2]
    assert models.step_sections([64], rows[:1]) == []


def test_others_are_compared_only_where_measured_alike(tmp_path):
    alike = report_of(tmp_path / "alike", PROTOCOL)
    assert list(models.read_baseline_reports([alike], PROTOCOL)) == [str(alike)]
    for name, value in (("clips", 16), ("frames", 9), ("size", "8x8"), ("more", 1)):
        other = report_of(tmp_path / name, PROTOCOL | {name: value})
        with pytest.raises(UserError, match=f"with {name} {value}, this would be"):
            models.read_baseline_reports([alike, other], PROTOCOL)
    older = report_of(tmp_path / "older", "a line of words")
    with pytest.raises(UserError, match="holds no protocol"):
        models.read_baseline_reports([older], PROTOCOL)
    with pytest.raises(UserError, match="holds no results.json"):
        models.read_baseline_reports([tmp_path / "none"], PROTOCOL)


def test_anybodys_videos_beside_real_ones(clips, tmp_path, capsys):
    """One folder of files, one of sample.py's."""
    real, own = tmp_path / "real", tmp_path / "own"
    for folder in (real, own):
        folder.mkdir()
    for i, clip in enumerate(clips[:12]):
        video_io.write_video(real / f"{i:02d}.mp4", clip, fps=8)
    (real / "notes.txt").write_text("not a video")
    np.savez(own / "samples.npz", videos=clips[20:28])
    given = dict(num=6, frames=4, stride=2, size=None, networks=Cheap(), seed=0)
    found = folders.compare_folders(
        own, real, tmp_path / "out", **given, baseline_reports=[], commands=["evaluate"]
    )
    assert found["protocol"]["clips"] == 6 and found["protocol"]["size"] == "16x16"
    assert found["protocol"]["encoding"] == "pixels, reference files"
    assert {row["clips"] for row in found["networks"] + found["pixels"]} == {6}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["pixels"][0]["closer_to_train"] is None
    )  # there are no held-out clips
    page = (tmp_path / "out" / "index.html").read_text()
    assert "More than a toy?" in page and "global mean" in page
    assert "FVD" in capsys.readouterr().out
    again = folders.compare_folders(
        own, real, tmp_path / "again", **given, baseline_reports=[tmp_path / "out"],
        commands=[],
    )  # fmt: skip
    assert again["networks"] == found["networks"]
    other = folders.compare_folders(
        own,
        real,
        tmp_path / "other",
        **{**given, "seed": 1},
        baseline_reports=[],
        commands=[],
    )
    assert other["networks"][0]["fvd"] != found["networks"][0]["fvd"]
    for i, clip in enumerate(clips[20:32]):  # others in the reference's place
        video_io.write_video(real / f"{i:02d}.mp4", clip, fps=8, overwrite=True)
    with pytest.raises(UserError, match="with real clips"):
        folders.compare_folders(
            own, real, tmp_path / "not", **given, baseline_reports=[tmp_path / "out"],
            commands=[],
        )  # fmt: skip
    with pytest.raises(UserError, match="with frames 4, this would be with 3"):
        folders.compare_folders(
            own, real, tmp_path / "not", **{**given, "frames": 3},
            baseline_reports=[tmp_path / "out"], commands=[],
        )  # fmt: skip
    assert not (tmp_path / "not").exists()
    with pytest.raises(UserError, match="--frames=4 at most"):
        folders.read_videos(own, 6, 5, 2, None)
    # played at the rate of what was read: every second frame at 8 a second
    assert folders.read_videos(real, 6, 4, 2, None)[1:] == ("files", pytest.approx(4.0))
    told = own / "samples.json"
    told.write_text('{"command": "c", "workdir": "w", "fps": 6}')
    assert folders.read_videos(own, 6, 4, 2, None)[1:] == ("pixels", 3.0)
    for text in ("[]", "{}", '{"command": "c", "workdir": "w", "fps": 0}'):
        told.write_text(text)
        with pytest.raises(UserError, match="is not what sample.py writes"):
            folders.read_videos(own, 6, 4, 2, None)
    drawn = [folders.read_videos(real, 3, 4, 1, None, seed)[0] for seed in (0, 1)]
    assert (drawn[0] != drawn[1]).any()
