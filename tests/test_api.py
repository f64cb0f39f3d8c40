"""The Python API: the lines of README.md and docs/api.md are run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vdm_jax
from vdm_jax import runs, sampling
from vdm_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def python_blocks(page: str) -> str:
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    )


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_documented_lines_run(page, tmp_path, monkeypatch):
    code = python_blocks(page)
    assert "vdm_jax.load(" in code and "vdm_jax.sample(" in code
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, page, "exec"), names)
    trained, videos = names["trained"], names["videos"]
    assert videos.shape[1:] == trained.model.shape and videos.dtype == np.uint8
    assert [path.suffix for path in tmp_path.glob("*.gif")] == [".gif"]


def test_a_sample_is_that_of_the_library():
    trained = vdm_jax.load(ROOT / "models" / "shapes_8step")
    videos = vdm_jax.sample(trained, 2, label="red", seed=3, steps=8)
    settings = sampling.Settings.from_config(trained.config.sample)
    labels = sampling.label_array(trained.model, 2, "red")
    inputs, run = sampling.SamplingInputs({"label": labels}), sampling.Run(seed=3)
    same = sampling.sample(trained.model, trained.params, 2, settings, inputs, run)
    np.testing.assert_array_equal(videos, sampling.to_uint8(same))
    assert isinstance(trained, runs.TrainedModel) and trained.step == -1


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="config.json"):
        vdm_jax.load(ROOT / "docs")
    trained = vdm_jax.load(ROOT / "models" / "shapes_8step")
    with pytest.raises(UserError, match="steps=0"):
        vdm_jax.sample(trained, steps=0)


def test_the_package_imports_no_jax():
    code = (
        "import sys, vdm_jax; assert 'load' in dir(vdm_jax);"
        "assert not {'jax', 'numpy', 'vdm_jax.runs'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        vdm_jax.absent  # type: ignore[attr-defined]  # noqa: B018
