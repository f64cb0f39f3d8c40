"""What all reports share: options, printed tables, results.json, the page."""

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from vdm_jax.evaluators.results import write_results
from vdm_jax.metrics.tables import format_table
from vdm_jax.report import page


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Where a report is written, and what it shows besides the evaluated videos."""

    out: Path
    commands: Sequence[str] = ()  # listed in the page
    sample_folders: Sequence[Path] = ()  # of sample.py, shown in the page
    baseline_reports: Sequence[Path] = ()  # folders; their scores follow ours in tables


def write_report(
    report: ReportOptions,
    results: dict[str, Any],
    tables: Sequence[page.Table],
    sections: Sequence[page.Section],
    *,
    name: str,
    summary: str,
) -> None:
    """Print the tables; write OUT/results.json and the page OUT/index.html.

    sections precede the tables in the page, commands follow them.
    """
    for table in tables:
        print(f"\n{table.title}\n{format_table(table.headings, table.rows)}")
    if protocol := results.get("protocol"):
        print("\n" + "; ".join(f"{key} {value}" for key, value in protocol.items()))
    write_results(report.out, results)
    versions = [f"{name} {version(name)}" for name in ("jax", "flax", "optax")]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    note = f"Python {platform.python_version()}, {', '.join(versions)}, on {device}."
    commands = page.Commands("Commands", report.commands, note=note)
    path = report.out / "index.html"
    content = [*sections, *tables, commands]
    page.write(path, title=f"vdm_jax: {name}", summary=summary, sections=content)
    print(f"\nthe report: {path}")
