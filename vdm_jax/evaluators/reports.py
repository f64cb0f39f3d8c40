"""What all reports share: options, printed tables, results.json, the page."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

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


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while videos are sampled; yield progress(name, done, total)."""
    with tqdm(unit="call", leave=False, disable=None) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(name, refresh=False)
            bar.update(done - bar.n)

        yield progress


def write_report(
    report: ReportOptions,
    results: dict[str, Any],
    tables: Sequence[page.Table],
    sections: Sequence[page.Section],
    environment: Sequence[page.Section] = (),
    *,
    name: str,
    summary: str,
) -> None:
    """Print the tables; write OUT/results.json and the page OUT/index.html.

    sections precede the tables in the page, commands and environment follow them.
    """
    for table in tables:
        print(f"\n{table.title}\n{format_table(table.headings, table.rows)}")
    if protocol := results.get("protocol"):
        print("\n" + "; ".join(f"{key} {value}" for key, value in protocol.items()))
    write_results(report.out, results)
    commands = page.Commands("Commands", report.commands)
    path = report.out / "index.html"
    page.write(
        path, title=f"vdm_jax: {name}", summary=summary,
        sections=[*sections, *tables, commands, *environment],
    )  # fmt: skip
    print(f"\nthe report: {path}")
