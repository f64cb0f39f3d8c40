import importlib.util
import math

import pytest

from vdm_jax.errors import UserError
from vdm_jax.planning import topology
from vdm_jax.planning.topology import CHIPS, Topology


@pytest.mark.parametrize(
    ("text", "chips"), [("v5e:4x4", 16), ("v5p:8x8x8", 512), ("h100:8", 8)]
)
def test_a_topology_has_the_product_of_its_sizes(text, chips):
    one = Topology.parse(text)
    assert one.num_chips == chips and str(one) == text
    if one.is_tpu:
        assert Topology.parse(text, slices=2).num_chips == 2 * chips


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:4x4", "a chip of v5e, v5p, v6e, h100"),
        ("v5e", "as v5e:4x4"),
        ("v5e:4", "v5e has 2 dimension"),
        ("v5p:4x4", "v5p has 3 dimension"),
        ("v5e:0x4", "v5e has 2 dimension"),
        ("v5e:4x", "a chip of"),
    ],
)
def test_a_topology_that_is_none_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Topology.parse(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_compiler_one_line_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for text, package in (("v5e:4x4", "libtpu"), ("h100:8", "'jax.cuda13.'")):
        with pytest.raises(UserError, match=f"pip install {package}") as caught:
            topology.check_compiler(Topology.parse(text))
        assert caught.value.status == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [name for name, c in CHIPS.items() if c.flops_per_cycle]
)
def test_the_clock_of_a_tpu_is_one_of_a_chip(kind):
    """Peak FLOPs over those of a cycle: 1.5 GHz of v5e, 1.75 of v5p and v6e."""
    expected = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}[kind]
    assert math.isclose(CHIPS[kind].clock, expected, rel_tol=0.003)
