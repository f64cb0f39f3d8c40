"""results.json: protocols, reports of other models."""

import json
from pathlib import Path

import pytest

from tests.metrics.cheap_networks import drifting_squares
from vdm_jax.errors import UserError
from vdm_jax.evaluators import results, tables
from vdm_jax.metrics import pixel_statistics
from vdm_jax.metrics.reference_sets import reference_sets

PROTOCOL: results.Protocol = {"clips": 8, "frames": 8, "size": "16x16"}
WORDS = dict.fromkeys(pixel_statistics.COLUMNS, "a word")


def write_report(folder: Path, protocol, rows=None) -> Path:
    folder.mkdir()
    rows = [dict.fromkeys(pixel_statistics.COLUMNS, 1.0)] if rows is None else rows
    content = {"protocol": protocol, "pixels": rows}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("rows", [[], {}, [1], [{}], [{"row": "samples"}], [WORDS]])
def test_a_report_without_scores_is_named(tmp_path, rows):
    report = write_report(tmp_path / "a", PROTOCOL, rows)
    with pytest.raises(UserError, match="holds no scores of pixels"):
        results.read_baseline_reports([report], PROTOCOL)
    (tmp_path / "a" / "results.json").write_text("[]")
    with pytest.raises(UserError, match="is not what was written"):
        results.read_baseline_reports([tmp_path / "a"], PROTOCOL)


def test_a_report_without_a_later_column_has_dashes_there(tmp_path):
    """A column that a report has must hold a number."""
    clips = drifting_squares()
    older = write_report(tmp_path / "older", PROTOCOL)
    others = results.read_baseline_reports([older], PROTOCOL)
    sets = reference_sets(clips[:8], clips[8:32], None)
    scores = tables.measure(sets, clips[8:32], None)
    page_tables = tables.score_tables(scores, others)
    titles = [table.title for table in page_tables]
    assert titles == ["Pixel statistics", tables.BIAS_TITLE]
    own, other, *_ = page_tables[1].rows
    assert "–" not in own and own[0] == "samples"
    assert other == [str(older), "1.00", "–", "–", "–", "–", "1.000", *4 * ["–"]]
    newer = write_report(tmp_path / "newer", PROTOCOL, scores["pixels"])
    assert results.read_baseline_reports([newer], PROTOCOL)
    wrong = scores["pixels"][0] | {"frame_fd_infinite": "many"}
    report = write_report(tmp_path / "wrong", PROTOCOL, [wrong])
    with pytest.raises(UserError, match="holds no scores of pixels"):
        results.read_baseline_reports([report], PROTOCOL)


@pytest.mark.parametrize("name", ["shapes", "clips", "bouncing", "shapes_8step"])
def test_shipped_reports_have_the_present_columns(name):
    path = Path(__file__).parents[2] / "models" / name / "results.json"
    report = json.loads(path.read_text())
    assert {*pixel_statistics.COLUMNS} <= {*report["pixels"][0]}


def test_reports_of_another_protocol_are_refused(tmp_path):
    same = write_report(tmp_path / "same", PROTOCOL)
    assert list(results.read_baseline_reports([same], PROTOCOL)) == [str(same)]
    for name, value in (("clips", 16), ("frames", 9), ("size", "8x8"), ("more", 1)):
        other = write_report(tmp_path / name, PROTOCOL | {name: value})
        with pytest.raises(UserError, match=f"with {name} {value}, this evaluation"):
            results.read_baseline_reports([same, other], PROTOCOL)
    older = write_report(tmp_path / "older", "a line of words")
    with pytest.raises(UserError, match="older was measured with clips none"):
        results.read_baseline_reports([older], PROTOCOL)
    with pytest.raises(UserError, match="results.json cannot be read"):
        results.read_baseline_reports([tmp_path / "none"], PROTOCOL)
