"""Every command has -h: the flags and what they mean, with status 0."""

import subprocess
import sys

import pytest
from absl import flags

from tests.run_command import ROOT, call

FLAGS = flags.FLAGS
MODULES = {
    "vdm_jax.data": "check",
    "vdm_jax.data.assets": "Download",
    "vdm_jax.demo": "--out",
    "vdm_jax.doctor": "installed",
    "vdm_jax.export": "--workdir",
    "vdm_jax.settings": "docs/settings.md",
    "vdm_jax.text": "--captions",
}


@pytest.mark.parametrize(
    "command", ["train", "sample", "edit", "distill", "evaluate", "export", "plan"]
)
def test_a_command_lists_all_its_flags(command, flags_of):
    defined = {
        name
        for name in flags_of(command)
        if (FLAGS.find_module_defining_flag(name) or "").startswith("vdm_jax.")
    }
    done = call(command, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[0] for line in done.stdout.splitlines() if "  --" in line}
    assert len(defined) > 3 and {f"--{name}" for name in defined} == listed
    assert call(command, "--help", "--num=x").stdout == done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_does(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "-h"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert MODULES[module] in done.stdout


def test_the_readme_lists_every_module():
    """Each module that runs by `python -m`."""
    runnable = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in (ROOT / "vdm_jax").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
        and path.name not in ("__init__.py", "main.py")
    }
    assert runnable == {*MODULES}
    readme = (ROOT / "README.md").read_text()
    missing = {module for module in runnable if f"python -m {module}" not in readme}
    assert not missing
