"""Damaged files of an evaluation are left out or replaced, without a traceback."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vdm_jax import video_io
from vdm_jax.evaluators import distillations, results, sections
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.metrics import feature_cache

VIDEOS = np.arange(2 * 4 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 4, 8, 8, 3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_damaged_preview_is_left_out_by_name(tmp_path, capsys, content):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    for step in (1, 2):
        path = tmp_path / "samples" / f"step-{step:07d}.npz"
        video_io.write_npz(path, VIDEOS)
    path.write_bytes(content)
    _, previews = sections.training_sections(tmp_path, 8)
    assert [grid.caption for grid in previews.grids] == ["step 1"]
    assert "step-0000002.npz is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("json", b""),
        ("json", b"[]"),
        ("json", b'{"origin": {}}'),
        ("json", b"[" * 100_000),
        ("json", b"\xff"),
        ("npz", b""),
        ("npz", b"PK\x03\x04"),
    ],
)
def test_a_damaged_row_is_sampled_again(tmp_path, monkeypatch, name, content):
    counts = []

    def sample(model, params, count, settings, inputs, run):
        counts.append(count)
        return VIDEOS[:count].astype(np.float32) / 127.5 - 1

    monkeypatch.setattr(distillations.sampling, "sample", sample)
    monkeypatch.setattr(distillations.sampling, "nfe", lambda *args: 8)
    row = distillations.SamplerSetting("ddim", 8, 2)
    settings = distillations.sampling.Settings(sampler="ddim", batch_size=2)
    config = SimpleNamespace(data=SimpleNamespace(source="folder", stride=1))
    teacher = SimpleNamespace(model=None, params=None, checksum="0", config=config)
    evaluation = distillations.Evaluation(
        tmp_path, ReportOptions(tmp_path), teacher, 1.0, 0, {"video": VIDEOS // 2}, {}
    )

    def measure():
        counts.clear()
        scores, videos = distillations._measure_row(evaluation, row, settings, None)
        return json.dumps(scores), videos  # errors of two videos are NaN, unlike itself

    (tmp_path / "rows").mkdir()
    first, videos = measure()
    assert counts and measure()[0] == first and not counts  # stored
    (tmp_path / "rows" / f"{row.key}.{name}").write_bytes(content)
    again, videos = measure()
    assert (
        counts and json.loads(again)["row"] == row.name and videos.shape == VIDEOS.shape
    )
    assert measure()[0] == again and not counts


def test_features_that_cannot_be_cached_are_reported_and_used(tmp_path, capsys):
    (tmp_path / "a").write_text("a file")
    features = feature_cache.cached_features(
        tmp_path / "a" / "b", "x", "p", VIDEOS, lambda v: v[:, 0]
    )
    assert (features == VIDEOS[:, 0]).all()
    assert "not cached: " in capsys.readouterr().err


def test_results_are_strictly_json_and_whole(tmp_path):
    content = {"a": [np.nan, np.inf, 1.5], "b": {"c": "x"}}
    results.write_results(tmp_path, content)
    text = (tmp_path / results.RESULTS).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": [None, None, 1.5], "b": {"c": "x"},
    }  # fmt: skip
