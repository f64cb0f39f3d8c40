"""docs/tour.md is followed: each stop exists and calls the next one."""

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest

from configs import shapes
from tests.run_command import ROOT
from vdm_jax import build

STOP = re.compile(
    r"^( *)(\d+\.|-) `([\w/]+\.py):([\w.]+)`(?:\s+\(through\s+`(\w+)`\))?\s+(\w[^\n])",
    re.MULTILINE,
)


class Stop(NamedTuple):
    """A line of the page. through: the attribute of a model that leads to it."""

    number: int  # 0: called by the numbered stop above it
    file: str
    name: str
    through: str

    @property
    def called_name(self) -> str:
        """How a caller names it: a method, a function, the class of a __call__."""
        *owner, last = self.name.split(".")
        if last == "__main__":
            return self.file
        return owner[-1] if last == "__call__" else last


def read_paths(text: str) -> dict[str, list[Stop]]:
    """Return the stops of each section of the page."""
    _, *sections = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {
        title: [
            Stop(int(mark[:-1] or 0), file, name, through)
            for _, mark, file, name, through, _ in STOP.findall(body)
        ]
        for title, body in zip(sections[::2], sections[1::2], strict=True)
    }


@cache
def source(file: str, name: str) -> str:
    """Return the code of a function or method, without comments and docstrings."""
    node: ast.AST = ast.parse((ROOT / file).read_text())
    for part in name.split(".") if name != "__main__" else ():
        inner = list(ast.iter_child_nodes(node))
        named = [each for each in inner if getattr(each, "name", None) == part]
        assert named, f"{file} has no {name}"
        node = named[-1]
    for each in ast.walk(node):
        if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
            each.value = ast.Constant(None)
    return ast.unparse(node)


def edges(stops: list[Stop]) -> list[tuple[Stop, Stop]]:
    """Return (caller, called) of a path."""
    numbered = [stop for stop in stops if stop.number]
    links = [*zip(numbered, numbered[1:], strict=False)]
    caller = stops[0]
    for stop in stops:
        caller = stop if stop.number else caller
        if not stop.number:
            links.append((caller, stop))
    return links


def follow(caller: Stop, called: Stop) -> None:
    """Fail unless the source of one stop names the other."""
    code = source(caller.file, caller.name)
    source(called.file, called.name)
    assert re.search(rf"\b{called.through or called.called_name}\b", code), (
        f"{caller.file}:{caller.name} does not call {called.called_name}"
    )


PATHS = read_paths((ROOT / "docs" / "tour.md").read_text())


@pytest.mark.parametrize("title", PATHS)
def test_each_stop_calls_the_next(title):
    stops = PATHS[title]
    numbers = [stop.number for stop in stops if stop.number]
    assert numbers == [*range(1, len(numbers) + 1)]
    for caller, called in edges(stops):
        follow(caller, called)


def test_the_paths_are_short_and_reach_the_network():
    prompt, config, *_ = PATHS.values()
    for stops, script in ((prompt, "sample.py"), (config, "train.py")):
        numbered = [stop for stop in stops if stop.number]
        assert numbered[0].file == script and len(numbered) <= 12
        assert numbered[-1].name == "UNet3D.__call__"


def test_the_page_has_no_other_stops():
    """Every line that begins with a number or a dash was read."""
    text = (ROOT / "docs" / "tour.md").read_text()
    lines = re.findall(r"^ *(?:\d+\.|-) ", text, re.MULTILINE)
    assert len(lines) == sum(map(len, PATHS.values())) > 30


def test_other_functions_of_the_page_exist():
    text = (ROOT / "docs" / "tour.md").read_text()
    for file, name in re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", text):
        assert source(file, name or "__main__")


def test_attributes_of_the_model_lead_there():
    model = build.build_model(shapes.get_config("smoke"))
    prompt, config, *_ = PATHS.values()
    for stop in {s for s in (*prompt, *config) if s.through}:
        owner = type(getattr(model, stop.through))
        assert stop.name == f"{owner.__name__}.__call__"
        assert stop.file == owner.__module__.replace(".", "/") + ".py"


def test_a_broken_path_is_noticed():
    page = (
        "## A\n\n1. `sample.py:__main__` a b.\n"
        "2. `vdm_jax/commands/train.py:_train` a b.\n"
    )
    (link,) = edges(read_paths(page)["A"])
    with pytest.raises(AssertionError, match="does not call _train"):
        follow(*link)
    with pytest.raises(AssertionError, match="has no absent"):
        source("sample.py", "absent")
