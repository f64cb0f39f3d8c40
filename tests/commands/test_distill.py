"""distill.py: what it refuses, and a distillation from end to end."""

import json
import re

import pytest

from tests.run_command import SMOKE, call, refused

DISTIL = "--config=configs/distill_shapes.py:smoke"


DISTIL_MISTAKES = [
    ([SMOKE], "one of train.py: give one of distill.py"),
    ([DISTIL, "--teacher=/absent"], "/absent is not a run"),
    ([DISTIL, "--config.distill.start_steps=12"], "a power of two"),
    ([DISTIL, "--config.distill.steps=8"], "steps"),
    ([DISTIL, "--config.distill.guidance_range=(2.0,)"], "the lowest and the highest"),
    ([DISTIL, "--config.distill.guidance_lr=-1.0"], "guidance_lr=-1"),
    ([DISTIL, "--config.data.path=/absent", "--config.mesh.data=3"], "mesh data=3"),
]


@pytest.mark.parametrize(("flags", "message"), DISTIL_MISTAKES)
def test_distill_refuses(run, tmp_path, flags, message):
    flags = [f"--workdir={tmp_path}/d", f"--teacher={run}", *flags]
    assert message in refused("distill", *flags)
    assert not (tmp_path / "d").exists()


def test_a_distillation_from_end_to_end(run, tmp_path):
    """Its workdir is that of its last student for every command."""
    workdir = f"--workdir={tmp_path}/d"
    assert "of distill.py" in refused("train", DISTIL, workdir)
    flags = [f"--teacher={run}", DISTIL, "--config.distill.guidance_range=()"]
    two = "--config.distill.start_steps=2"
    done = call(
        "distill", workdir, *flags, two, "--config.distill.metric=r2_to_teacher"
    )
    assert done.returncode == 0, done.stderr
    assert "1 steps: r2_to_teacher" in done.stdout
    done = call("sample", workdir, f"--out={tmp_path}/s", "--num=2")
    assert done.returncode == 0, done.stderr
    fields = json.loads((tmp_path / "s" / "samples.json").read_text())["sample"]
    assert fields["steps"] == 1 and fields["guidance_scale"] == 1
    wrong = refused("evaluate", workdir, "--steps=4")
    assert "--cascade, not with --workdir of a distillation" in wrong
    done = call("evaluate", workdir, "--num=2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"student, 1 step: [\d.]+ s a video", done.stdout)
    done = call("export", workdir, f"--out={tmp_path}/e")
    assert done.returncode == 0, done.stderr
    exported = json.loads((tmp_path / "e" / "config.json").read_text())
    assert exported["init_from"] == "" and exported["sample"]["steps"] == 1
    assert (tmp_path / "e" / "metrics.jsonl").is_file()
