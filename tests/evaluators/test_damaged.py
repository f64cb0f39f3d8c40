"""What an evaluation finds damaged is left out or made again; no traceback."""

import json

import numpy as np
import pytest

from vdm_jax import video_io
from vdm_jax.evaluators import distillations, models
from vdm_jax.metrics import feature_cache

VIDEOS = np.arange(2 * 4 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 4, 8, 8, 3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_damaged_look_is_left_out_by_name(tmp_path, capsys, content):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    for step in (1, 2):
        path = tmp_path / "samples" / f"step-{step:07d}.npz"
        video_io.write_npz(path, VIDEOS)
    path.write_bytes(content)
    _, films = models.training_sections(tmp_path, 8)
    assert [film.caption for film in films.grids] == ["step 1"]
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
def test_a_damaged_row_is_made_again(tmp_path, monkeypatch, name, content):
    made = []

    def sample(model, params, count, settings, **how):
        made.append(count)
        return VIDEOS[:count].astype(np.float32) / 127.5 - 1

    monkeypatch.setattr(distillations.sampling, "sample", sample)
    monkeypatch.setattr(distillations.sampling, "nfe", lambda *of: 8)
    arm = distillations.SamplerSetting("ddim", 8, 2)
    settings = distillations.sampling.Settings(batch_size=2)
    loaded = type("Loaded", (), {"model": None, "params": None})

    def row():
        made.clear()
        measure = lambda videos: {"videos": len(videos)}  # noqa: E731
        return distillations._row(
            tmp_path, arm, {"seed": 0}, loaded, settings, None, measure, 0
        )

    first, videos = row()
    assert made and row()[0] == first and not made  # kept
    (tmp_path / f"{arm.key}.{name}").write_bytes(content)
    again, videos = row()
    assert made and again["row"] == first["row"] and videos.shape == VIDEOS.shape
    assert row()[0] == again and not made


def test_features_that_cannot_be_kept_are_told_and_used(tmp_path, capsys):
    (tmp_path / "a").write_text("a file")
    found = feature_cache.cached_features(
        tmp_path / "a" / "b", "x", "p", VIDEOS, lambda v: v[:, 0]
    )
    assert (found == VIDEOS[:, 0]).all()
    assert "not cached: " in capsys.readouterr().err


def test_results_are_strictly_json_and_whole(tmp_path):
    results = {"a": [np.nan, np.inf, 1.5], "b": {"c": "x"}}
    models.write_results(tmp_path, results)
    text = (tmp_path / models.RESULTS).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": [None, None, 1.5], "b": {"c": "x"},
    }  # fmt: skip
