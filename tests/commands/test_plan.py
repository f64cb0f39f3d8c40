"""plan.py: what is refused, and with a compiler of TPUs a whole plan."""

import json
import os
import subprocess
import sys

import pytest

from tests.run_command import ROOT, SMOKE, call
from vdm_jax.commands.plan import mesh_axes
from vdm_jax.errors import UserError
from vdm_jax.planning import topology
from vdm_jax.planning.topology import Topology


def test_a_mesh_of_a_flag_is_all_axes_and_data_the_rest():
    ones = {"slice": 1, "fsdp": 1, "tensor": 1, "context": 1}
    assert mesh_axes("fsdp=16") == ones | {"data": -1, "fsdp": 16}
    assert mesh_axes("slice=2,data=4") == ones | {"slice": 2, "data": 4}
    assert mesh_axes("") == {}


@pytest.mark.parametrize("text", ["fsdp", "fsdp=0", "model=2", "fsdp=2,", "a=1;b=2"])
def test_a_mesh_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="such as fsdp=4,context=2") as caught:
        mesh_axes(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:4x4"], "give --config (a model) or --workdir"),
        ([SMOKE], "topology"),
        ([SMOKE, "--topology=v5e"], "as v5e:4x4"),
        ([SMOKE, "--topology=h100:8", "--mesh=slice=2"], "slice=2 is of TPUs"),
        ([SMOKE, "--topology=v5e:4x4", "--system=control_video"], "--work=sample"),
        ([SMOKE, "--topology=v5e:4x4", "--num_frames=9"], "goes with --system"),
        ([SMOKE, "--topology=v5e:4x4", "--batch_per_chip=-1"], "batch_per_chip"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message):
    done = call("plan", *flags)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_the_compiler_a_plan_ends_with_one_line():
    missing = []
    for text in ("v5e:4x4", "h100:8"):
        try:
            topology.check_compiler(Topology.parse(text))
        except UserError:
            missing.append(text)
    if not missing:
        pytest.skip("the compilers of all chips are installed")
    done = call("plan", SMOKE, f"--topology={missing[0]}")
    assert done.returncode == 2 and "pip install" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.slow
def test_a_plan_by_the_compiler(tmp_path):
    pytest.importorskip("libtpu", reason="needs libtpu: make setup EXTRA=plan")
    out = tmp_path / "plan.json"
    command = [sys.executable, "plan.py", SMOKE, "--topology=v5e:2x2", f"--json={out}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("XLA_FLAGS", None)  # of the tests; libtpu refuses them
    seen = []
    for flags in (["--mesh=data=4"], ["--mesh=fsdp=4"], ["--mesh=fsdp=4"]):
        subprocess.run(command + flags, cwd=ROOT, env=environment, check=True)
        seen.append(json.loads(out.read_text()))
    replicated, split, again = seen
    assert split == again  # by what was kept of it
    assert split["state_bytes"] < replicated["state_bytes"] < 4 * split["state_bytes"]
    assert split["flops"] == replicated["flops"] > 0
    assert replicated["collectives"].keys() == {"all-reduce"}
    # Each gradient is reduced once, in float32, and some scalars; those of two biases
    # of one sum are equal, and one of them is reduced.
    gradients = 4 * replicated["parameters"]
    assert 0.99 * gradients < replicated["collective_bytes"] < 1.1 * gradients
    assert split["collectives"]["all-gather"]["calls"] > 0
    assert split["state_bytes"] < split["memory_bytes"] < 2**34 and split["fits"]
    assert split["utilisation"] is None
