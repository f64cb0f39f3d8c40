"""Every JSON of perf/ has rows of one form, and every script writes its own."""

import json
from pathlib import Path

import pytest

from perf import context, length, options, packing, race, remat, rows, scaling, sizes

PERF = Path(__file__).parents[2] / "perf"
FILES = sorted(PERF.glob("*.json"))
KEYS = {"name", "target", "result", "better", "machine", "command"}


def is_met(row) -> bool:
    if row["better"] == "lower":
        return row["result"] <= row["target"]
    return row["result"] >= row["target"]


def check(content) -> None:
    assert content["rows"]
    names = [row["name"] for row in content["rows"]]
    assert len(names) == len(set(names))
    for row in content["rows"]:
        assert KEYS <= row.keys() <= KEYS | {"closed"}, row
        assert isinstance(row["result"], int | float), row
        assert isinstance(row["target"], int | float | None), row
        assert row["better"] in ("lower", "higher"), row
        for key in ("name", "machine", "command"):
            assert isinstance(row[key], str) and row[key], row
        if "closed" in row:  # a reason, of a target that is missed
            assert len(row["closed"]) > 20, row
            assert row["target"] is not None and not is_met(row), row


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rows_have_the_form(path):
    check(json.loads(path.read_text()))
    assert path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_run_the_script(path):
    for row in json.loads(path.read_text())["rows"]:
        module = f"python -m perf.{path.stem}"
        assert module in row["command"] or row["command"] == "make bench", row


def test_results_are_those_of_the_figures():
    """Rows of the files equal the rows that the scripts make of the files' figures."""

    def load(name):
        return json.loads((PERF / f"{name}.json").read_text())

    content = load("race")
    first = content["rows"][0]
    made = race.make_rows(content["sides"], first["machine"], first["command"])
    assert made == content["rows"]
    content = load("options")
    first = content["rows"][0]
    made = options.make_rows(content["options"], first["machine"], first["command"])
    assert made == content["rows"]
    content = load("remat")
    assert remat.make_rows(content["settings"]) == content["rows"]
    content = load("sizes")
    assert sizes.make_rows(content["configs"], content["shipped"]) == content["rows"]
    content = load("scaling")
    assert scaling.make_rows(content["cases"]) == content["rows"]
    content = load("packing")
    first = content["rows"][0]
    made = packing.make_rows(content["ways"], first["machine"], first["command"])
    assert made == content["rows"]
    content = load("context")
    assert context.make_rows(content["pieces"]) == content["rows"]
    content = load("length")
    (row,) = content["rows"]
    assert length.make_row(content["lengths"], row["machine"], row["command"]) == row


def test_a_row_of_another_form_is_found(tmp_path):
    good = rows.make_row("a", 2.0, better="lower", machine="m", command="c", target=1.0)
    rows.write(tmp_path / "a.json", [good, good | {"name": "b", "closed": "x" * 30}])
    check(json.loads((tmp_path / "a.json").read_text()))
    for bad in (
        {"better": "smaller"},
        {"result": "1 s"},
        {"unit": "s"},
        {"closed": "no"},
        {"closed": "x" * 30, "target": 3.0},  # met, so it cannot be out of reach
    ):
        with pytest.raises(AssertionError):
            check({"rows": [good | bad]})
