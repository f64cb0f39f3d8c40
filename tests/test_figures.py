"""Every figure in the documents is held by a file that its section names."""

import json

import pytest

from configs import vdm
from perf import sizes
from tests import figures


def test_every_figure_names_its_command_and_its_file():
    assert not figures.main()  # python -m tests.figures


DOCUMENT = """# One

Of {printed} at `w = .5` (section 3.1, arXiv:2204.03458, CC-BY 3.0, jax 0.10.2).

    python train.py --config.train.learning_rate=2e-3  # {file}

| steps | a | b |
|---|---|---|
| 64 | .5 ± .1 | {cell} |

## Two

Nothing in 3 steps of 16x16 pixels, see [`w`](docs/x.md).
"""
TRUE = {"printed": "1.19 GiB", "cell": "7", "file": "found.json"}


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Return a function that lists DOCUMENT with some of its parts changed."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    held = {"bytes": 1.1934 * 2**30, "share": 0.4961, "error": 0.1, "n": 7}
    (tmp_path / "found.json").write_text(json.dumps(held))

    def listed(text: str = DOCUMENT, **changed: str) -> list[str]:
        path = tmp_path / "a.md"
        path.write_text(text.format(**TRUE | changed))
        figures.numbers.cache_clear()
        return figures.missing(path)

    return listed


def test_a_document_that_follows_the_rule_has_nothing_listed(listed):
    assert listed() == []


@pytest.mark.parametrize(
    "changed, line, figure",
    [
        ({"printed": "1.2 GiB and .7 points"}, 3, ".7"),
        ({"printed": "1.2 GiB in\n18 minutes"}, 4, "18 minutes"),
        ({"printed": "1.18 GiB"}, 3, "1.18 GiB"),
        ({"printed": "1,461,148 parameters"}, 3, "1,461,148"),
        ({"printed": "an error of 2e-7"}, 3, "2e-7"),
        ({"printed": "-.37"}, 3, ".37"),
        ({"cell": "8"}, 9, "8"),
        ({"cell": "1.5 (real 7)"}, 9, "1.5"),
    ],
)
def test_a_figure_that_no_file_holds_is_listed(listed, changed, line, figure):
    (found,) = listed(**changed)
    assert found.startswith(f"a.md:{line}: {figure} ") and "found.json" in found


def test_a_figure_without_a_file_or_a_command_is_listed(listed):
    assert "none is named" in listed(file="lost.json")[0]
    (found,) = listed(DOCUMENT.replace("python train.py", "train"))
    assert found == "a.md:3: figures without a command"


def test_the_figures_of_another_section_are_not_held(listed):
    moved = DOCUMENT.replace("Nothing in 3 steps", "Now 1.19 GiB")
    assert [line.split(" is")[0] for line in listed(moved)] == [
        "a.md:13: 1.19 GiB",
        "a.md:13: figures without a command",
    ]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name == "text_small" else pytest.mark.slow)
        for name in vdm.VARIANTS[:-1]
    ],
)
def test_parameters_are_those_of_the_file(variant):
    written = json.loads(sizes.FILE.read_text())["configs"]["vdm"]
    assert sizes.of_config(vdm, variant) == written[variant]


def test_sizes_of_shipped_models_are_those_of_the_file():
    written = json.loads(sizes.FILE.read_text())["shipped"]
    folder = sizes.ROOT / "models" / "shapes"
    assert sizes.shipped(folder) == written["models/shapes"]
    files = [*sizes.ROOT.glob("models/*/params.safetensors")]
    files += sizes.ROOT.glob(f"models/*/{sizes.DIFFUSERS}")
    files += sizes.ROOT.glob("cascades/*/*/params.safetensors")
    names = {str(path.parent.relative_to(sizes.ROOT)) for path in files}
    assert names | {"cascades/shapes"} == {*written}
