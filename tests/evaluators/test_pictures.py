"""Evaluation of models of one frame, and of models of sprites."""

import functools
import json

import numpy as np
import pytest

from configs import shapes
from tests.metrics.cheap_networks import CheapNetworks
from tests.sprite_cases import needs_pictures
from vdm_jax import build, data, runs
from vdm_jax.data import pipeline
from vdm_jax.data.sprites import is_held_out
from vdm_jax.evaluators import clips, models, results
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.metrics import sprite_scores

NUM = 12
WRONG = 3  # samples, which show another object


def sprites_config(frames):
    config = shapes.get_config("smoke").unlock()
    config.video.update(frames=frames, height=48, width=48)
    config.data.update(
        source="sprites", path="small", mean=-0.3, variance=0.2, label_vocabulary=()
    )
    config.data.label_vocabulary = data.open_source(config).label_vocabulary
    return config


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Return a function that evaluates held-out clips in place of samples."""
    monkeypatch.setattr(clips, "TRAINING_CLIPS", 2 * NUM)
    few = functools.partial(sprite_scores.reference_scores, n=6)
    monkeypatch.setattr(sprite_scores, "reference_scores", few)

    def run(config, change):
        held_out = pipeline.held_out_batch(config, data.open_source(config), NUM)
        videos = change(held_out["video"], held_out["label"])

        def sample(cascade, num, cond, *, seed, progress, on_stage):
            trained = runs.TrainedModel(None, None, None, 7, "")
            on_stage(cascade.stages[0], trained, None)
            return {cascade.stages[0].name: videos / 127.5 - 1}

        monkeypatch.setattr(models.cascades, "sample", sample)
        cascade = clips.model_cascade(build.build_model(config), config, tmp_path)
        options = ReportOptions(tmp_path / "out")
        found = models.evaluate(
            cascade, options, num=NUM, seed=0, networks=CheapNetworks()
        )
        return held_out["label"], found, options.out

    return run


@needs_pictures
def test_stills_of_seen_and_unseen_labels_are_scored_apart(evaluate, capsys):
    """Three samples show another object on the right background."""
    config = sprites_config(1)
    source = data.open_source(config)

    def change(videos, labels):
        videos = videos.copy()
        for i in range(WRONG):
            number, value = (labels[i, 0] + 4) % 24, labels[i, 1]  # as seen as before
            background = source.background(value, np.random.default_rng(0))
            centre = np.array([[24.0, 24.0]])
            videos[i] = source.render(
                number, source.geometry.sizes[0], centre, background
            )
        return videos

    labels, found, out = evaluate(config, change)
    rows = found["attributes"]
    unseen = is_held_out(labels).any(1)
    right = np.arange(NUM) >= WRONG
    for name, part in (
        ("samples", unseen | True),
        ("samples, seen", ~unseen),
        ("samples, unseen", unseen),
    ):
        row = rows[name]
        assert row["clips"] == part.sum() > 0
        assert row["object"] == pytest.approx(right[part].mean())
        assert row["background"] == 1
        low, high = row["object_interval"]
        assert low < row["object"] < high or row["object"] == high == 1
    assert rows["real"]["all_attributes"] == 1 and rows["noise"]["object"] == 0
    assert "direction" not in rows["real"]
    text = capsys.readouterr().out
    assert "samples, unseen" in text and "95%" in text and "motion" not in text
    assert {"frozen frame", "motion"}.isdisjoint(found["pixels"][0])
    assert "frozen frame" not in [row["row"] for row in found["pixels"]]
    assert {"fvd", "inception_score_i3d"}.isdisjoint(found["networks"][0])
    page = (out / "index.html").read_text()
    assert "12 pictures of 48x48" in page
    stored = json.loads((out / "results.json").read_text())
    baselines = results.read_baseline_reports([out], stored["protocol"])
    assert list(baselines) == [str(out)]


@needs_pictures
def test_clips_are_compared_with_the_path_of_the_real_ones(evaluate):
    """All samples are moved down by two pixels."""
    move = functools.partial(np.roll, shift=2, axis=2)
    _, found, _ = evaluate(sprites_config(4), lambda videos, labels: move(videos))
    row = found["attributes"]["samples"]
    assert row["direction"] == row["object"] == row["identity"] == 1
    assert row["trajectory_error"] == pytest.approx(2, abs=0.3)
    assert "trajectory_error" not in found["attributes"]["real"]
