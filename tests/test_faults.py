"""The fault table of docs/reliability.md names what injects or tests each fault."""

import re
from pathlib import Path

import pytest

from reliability.faults import FAULTS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reliability.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in TEXT.partition("| event |")[2].partition("\n\n")[0].splitlines()[2:]
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_names_a_test_or_a_fault(row):
    assert len(row) == 4, row
    names = re.findall(r"`([^`]+)`", row[3])
    assert names, row
    for name in names:
        if name.endswith(".py"):
            assert (ROOT / name).is_file(), name
        else:
            assert name in FAULTS, name
