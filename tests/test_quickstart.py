"""docs/quickstart.ipynb: its cells run, with tiny numbers and without Jupyter."""

import ast
import base64
import json
import os
import sys

import pytest

from tests.run_command import ROOT

TINY = {"NUM": 2, "VARIANT": "smoke", "TRAIN_STEPS": 2, "UPDATES": 1}
NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())


def code_cells() -> list[dict]:
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict) -> object:
    """Run a cell as Jupyter does; return the value of its last expression."""
    tree = ast.parse(source)
    last = None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names) if last else None


def test_the_notebook_is_valid_and_holds_no_outputs():
    assert NOTEBOOK["nbformat"] == 4
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_cells():
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))
    assert code_cells()[0]["metadata"]["tags"] == ["parameters"]


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict = {"__name__": "__main__"}
    parameters, *cells = ("".join(cell["source"]) for cell in code_cells())
    run_cell(parameters, names)
    assert names.keys() >= TINY.keys() | {"RUNS"}
    names |= TINY | {"RUNS": str(tmp_path)}
    values = [run_cell(cell, names) for cell in cells]
    pictures = [
        value._repr_html_() for value in values if isinstance(value, names["Grid"])
    ]
    assert len(pictures) == 5 and os.path.samefile(".", ROOT)
    for picture in pictures:
        content = picture.split("base64,")[1].split('"')[0]
        assert base64.b64decode(content).startswith(b"GIF89a")
    assert [row["steps"] for row in names["rounds"]] == [4]
