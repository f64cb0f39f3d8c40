"""Imports point one way: each package imports only what is in a layer below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("errors",),
    ("area_means", "files", "memory", "migration", "partition", "trees"),
    ("npz", "storage", "cascade_file", "child_process", "initialization"),
    ("buckets", "manifest", "shards"),
    ("runtime", "config_files", "scalars"),
    ("agreement", "settings"),
    ("diffusion", "networks", "video_io", "checkpoint", "sharding", "pretrained"),
    ("clip_shards", "latents"),
    ("causal_latents",),
    ("codec",),
    ("data", "conditions"),
    ("text",),
    ("model",),
    ("build",),
    ("diffusers_folder",),
    ("runs",),
    ("adapters", "image_text", "shipped"),
    ("sampling", "diffusers_export"),
    ("metrics",),
    ("controls",),
    ("cascade",),
    ("api",),
    ("training",),
    ("distillation",),
    ("report",),
    ("evaluators", "systems"),
    ("planning",),
    ("commands", "demo", "doctor"),
    ("export",),
)
LAYER = {package: i for i, packages in enumerate(LAYERS) for package in packages}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "vdm_jax").parts[0].removesuffix(".py")


def imported_packages(source: str) -> set[str]:
    """Packages of vdm_jax that a module imports, at its top or inside a function."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        packages |= {n.split(".")[1] for n in names if n.startswith("vdm_jax.")}
    return packages


def upward_imports(package: str, source: str) -> set[str]:
    """Packages that this one must not import: of its own layer or above."""
    return {
        other
        for other in imported_packages(source)
        if other != package and LAYER[other] >= LAYER[package]
    }


MODULES = [
    path
    for path in sorted((ROOT / "vdm_jax").rglob("*.py"))
    if path != ROOT / "vdm_jax" / "__init__.py"
]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert upward_imports(package_of(path), path.read_text()) == set()


def test_an_upward_import_is_seen():
    assert upward_imports("networks", "from vdm_jax.diffusion import process") == {
        "diffusion"
    }
    assert upward_imports(
        "data", "def f():\n    import vdm_jax.training.train_loop"
    ) == {"training"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_import_the_declared_settings_only(path):
    assert imported_packages(path.read_text()) <= {"settings"}
