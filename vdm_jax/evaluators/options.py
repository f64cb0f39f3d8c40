"""Options that all reports share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Where a report is written, and what it shows besides the evaluated videos."""

    out: Path
    commands: Sequence[str] = ()  # listed in the page
    sample_folders: Sequence[Path] = ()  # of sample.py, shown in the page
    baseline_reports: Sequence[Path] = ()  # folders; their scores follow ours in tables
