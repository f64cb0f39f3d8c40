"""Imports point one way: each room imports only what stands on a lower floor."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors",),
    ("files",),
    ("command", "config_files"),
    ("agreement",),
    ("diffusion", "networks", "video_io", "checkpoint", "sharding", "weights"),
    ("data", "conditioning", "stages"),
    ("text",),
    ("model",),
    ("sampling",),
    ("evaluation", "cascade"),
    ("training",),
    ("cli", "doctor"),
    ("export",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "vdm_jax").parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms of vdm_jax that a module imports, at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("vdm_jax.")}
    return rooms


def arrows_up(room: str, source: str) -> set[str]:
    """Rooms that this one must not import: on its own floor or above."""
    return {
        other
        for other in imported_rooms(source)
        if other != room and FLOOR[other] >= FLOOR[room]
    }


MODULES = [
    path
    for path in sorted((ROOT / "vdm_jax").rglob("*.py"))
    if path != ROOT / "vdm_jax" / "__init__.py"
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert arrows_up(room_of(path), path.read_text()) == set()


def test_an_arrow_up_is_seen():
    assert arrows_up("networks", "from vdm_jax.diffusion import process") == {
        "diffusion"
    }
    assert arrows_up("data", "def f():\n    import vdm_jax.training.fit") == {
        "training"
    }


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_import_nothing_of_the_library(path):
    assert imported_rooms(path.read_text()) == set()
