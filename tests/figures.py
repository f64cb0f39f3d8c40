"""List figures of the documents that no file of the repository holds.

    python -m tests.figures

A *figure* is a number in a text with a decimal point, an exponent, a comma or a unit;
in a table with such numbers also any number that fills a cell. Headings and a table's
first column are names. Code (between back quotes, indented, fenced) holds commands,
settings, limits and equations.

The rule: a section (from one heading to the next) with figures names, in code or by a
link, the command that prints them and the files that hold them, JSON or a test. Each
figure is a number of one of these files, rounded to the printed digits (for weights,
the size in bytes). docs/papers.md holds the papers' figures.

Short figures match by chance in long files (of the documents' figures with a wrong last
digit, one in four): a listed figure is wrong, an unlisted one may be.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/*.md",
    "experiments/*/README.md",
    "models/*/README.md",
    "cascades/*/README.md",
)
PAPERS = ROOT / "docs" / "papers.md"
SETTINGS = ROOT / "docs" / "settings.md"  # printed from the declarations

UNITS = {  # in seconds, bytes, counts and fractions; a file may have either
    "%": 0.01, "µs": 1e-6, "ms": 1e-3, "s": 1, "seconds": 1, "min": 60, "minutes": 60,
    "hours": 3600, "KB": 1e3, "MB": 1e6, "GB": 1e9, "MiB": 2**20, "GiB": 2**30,
    "M": 1e6, "million": 1e6, "B": 1e9, "billion": 1e9, "GFLOP": 1,
}  # fmt: skip
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)"
NUMBER = re.compile(
    rf"(?<![\w.,/])(?<![A-Za-z]-)({DIGITS}(?:e-?\d\d?)?)(?![,.]?\w)(?:\s?({'|'.join(UNITS)})(?!\w))?"
)
CELL = re.compile(rf"[-+±]?{DIGITS}")
# Names of papers' parts, of packages, models and licences are no figures.
NAME = re.compile(
    r"arXiv:[\d.]+|CC-BY [\d.]+|(?:Open-Sora|Wan) [\d.]+"
    r"|\d+(?:\.\d+){2,}|Python [\d.]+(?: to [\d.]+)?"
    r"|(?:[Ss]ections?|[Aa]ppendix|[Ee]quations?|[Tt]ables?)\s"
    r"[\d.]+\d(?:(?:, | and | to )[\d.]+\d)*"
)
CODE = re.compile(r"(`+)(.+?)\1", re.S)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)]*)\)")
RUNS = re.compile(r"\b(python|make|pytest) ")


class Section:
    """The text between two headings, with its first line number, and its code."""

    def __init__(self, number: int = 1):
        self.first = number
        self.text = ""
        self.code: list[str] = []

    def close(self) -> "Section":
        """Move inline code and the targets of links from text to code; return self."""

        def code(match: re.Match) -> str:
            self.code.append(match[2])
            return "`" + "\n" * match[2].count("\n")

        def link(match: re.Match) -> str:
            self.code.append(match[3])
            return "" if match[1] else match[2]

        self.text = LINK.sub(link, CODE.sub(code, self.text))
        return self

    def figures(self) -> Iterator[tuple[int, str, str]]:
        """Yield (line, digits, unit) of each figure."""
        lines = self.text.splitlines()
        prose = [line * (line[:1] != "|") for line in lines]
        yield from self._numbers("\n".join(prose), self.first)
        for first, rows in self._tables(lines):
            cells = [
                (first + i, cell.strip())
                for i, row in enumerate(rows)
                for cell in row.strip("|").split("|")[1:]
            ]
            known = [figure for at, cell in cells for figure in self._numbers(cell, at)]
            whole = [(at, cell) for at, cell in cells if known and CELL.fullmatch(cell)]
            yield from known
            yield from (
                figure
                for at, cell in whole
                for figure in self._numbers(cell, at, integers=True)
                if figure not in known
            )

    def _tables(self, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield (line of the first row, rows) of each table, without headings."""
        for i, line in enumerate(lines):
            if line.startswith("|---"):
                rows = list(takewhile(lambda row: row[:1] == "|", lines[i + 1 :]))
                yield self.first + i + 1, rows

    @staticmethod
    def _numbers(
        text: str, first: int, integers: bool = False
    ) -> Iterator[tuple[int, str, str]]:
        text = NAME.sub(lambda match: re.sub(r"\S", "x", match[0]), text)
        for match in NUMBER.finditer(text):
            digits, unit = match[1], match[2]
            if integers or unit or {*digits} & {*".,e"}:
                yield first + text.count("\n", 0, match.start()), digits, unit or ""

    def files(self, folder: Path) -> list[Path]:
        """Return files that code and links name, from the root or the document."""
        names = {name for code in self.code for name in re.split(r"[\s'\"=]+", code)}
        found = {(at / name).resolve() for name in names for at in (ROOT, folder)}
        return sorted(
            path for path in found if path.is_relative_to(ROOT) and path.is_file()
        )


def sections(text: str) -> Iterator[Section]:
    """Yield the sections of a document."""
    section, fenced, indented = Section(), False, False
    for number, line in enumerate(text.splitlines(), 1):
        blank = not section.text or section.text.endswith("\n\n")
        indented = line.startswith("    ") and (indented or blank)
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or indented:
            section.code.append(line)
        elif re.match("#+ ", line):
            yield section.close()
            section = Section(number)
        else:
            section.text += line
        section.text += "\n"
    yield section.close()


@cache
def numbers(path: Path) -> list[float]:
    """Return the numbers of a file that holds figures; of weights, the size."""
    test = path.is_relative_to(ROOT / "tests")
    if path.suffix != ".json" and not test and path != PAPERS:
        return [float(path.stat().st_size)] * (path.suffix == ".safetensors")
    found = re.findall(
        r"(?<![\w.])\d*\.?\d+(?:[eE][-+]?\d+)?", path.read_text().replace("_", "")
    )
    return [float(number) for number in found]


def held(digits: str, unit: str, known: list[float]) -> bool:
    """Return whether a number rounds to a figure, with its unit or without."""
    value = float(digits.replace(",", ""))
    mantissa, _, power = digits.partition("e")
    places = len(mantissa.partition(".")[2]) - int(power or 0)
    half = 0.5 * 10.0**-places * (1 + 1e-6)
    scales = {1, UNITS.get(unit, 1)}
    return any(abs(n / by - value) <= half for n in known for by in scales)


def missing(path: Path) -> list[str]:
    """Return what is wrong in a document, one line each."""
    found, name = [], path.relative_to(ROOT)
    for section in sections(path.read_text()):
        files = [file for file in section.files(path.parent) if numbers(file)]
        known = [number for file in files for number in numbers(file)]
        named = ", ".join(str(f.relative_to(ROOT)) for f in files) or "none is named"
        figures = [*section.figures()]
        found += [
            f"{name}:{line}: {digits} {unit} is in no file ({named})"
            for line, digits, unit in figures
            if not held(digits, unit, known)
        ]
        runs = any(RUNS.search(code) for code in section.code)
        if figures and files != [PAPERS] and not runs:
            found.append(f"{name}:{figures[0][0]}: figures without a command")
    return found


def main() -> list[str]:
    """Return what is wrong in all documents."""
    documents = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    return [
        line
        for path in documents
        if path not in (PAPERS, SETTINGS)
        for line in missing(path)
    ]


if __name__ == "__main__":
    print("\n".join(listed := main()))
    sys.exit("Name the file, or put a setting into code." if listed else 0)
