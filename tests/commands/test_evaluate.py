"""evaluate.py: of a model, and of folders of videos."""

import json

import numpy as np
import pytest

from tests.run_command import call, refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos={own}"], "needs --reference=DIR and --out=DIR"),
        (["--num_frames=8", "--workdir=models/shapes"], "goes with --videos, not with"),
        (["--videos={own}", "--guidance_scale=2"], "goes with --workdir of a model or"),
        (["{all}", "--size=big"], "HEIGHTxWIDTH"),
        (["{all}", "--size=40000x40000"], "from 8 to 1024"),
        (["{all}", "--num_frames=9"], "--num_frames=8 at most"),
        (["{all}", "--reference={empty}"], "no videos found"),
        (["{all}", "--videos={broken}"], "holds no videos of sample.py"),
        (["{all}", "--baseline_reports={empty}"], "results.json cannot be read"),
    ],
)
def test_evaluate_refuses_folders(tmp_path, flags, message):
    places = {name: tmp_path / name for name in ("own", "empty", "broken", "out")}
    for name in ("own", "empty", "broken"):
        places[name].mkdir()
    np.savez(places["own"] / "samples.npz", videos=np.zeros((4, 8, 16, 16, 3), "u1"))
    (places["broken"] / "samples.npz").write_text("cut")
    whole = ["--videos={own}", "--reference={own}", "--out={out}", "--num_frames=8"]
    flags = [f for flag in flags for f in (whole if flag == "{all}" else [flag])]
    assert message in refused("evaluate", *(f.format(**places) for f in flags))
    assert not places["out"].exists()


def test_evaluate_prints_and_reports(run, tmp_path):
    done = call(
        "evaluate", f"--workdir={run}", f"--out={tmp_path}", "--num=4",
        "--guidance_scale=1,2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in ("real", "chance", "samples, guidance_scale 2", "frozen frame"):
        assert row in done.stdout
    assert (tmp_path / "index.html").stat().st_size > 10_000
    flags = [f"--workdir={run}", f"--out={tmp_path}", "--num=4", "--steps=2"]
    done = call(
        "evaluate", *flags, "--compare_steps=1,2,1"
    )  # replaces the first report
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["pixels"]
    names = [row["row"] for row in rows[:3]]
    assert names == ["samples", "samples, 1 steps", "training real"]
    assert rows[0]["frame_fd"] != rows[1]["frame_fd"]
    assert "steps=0" in refused("evaluate", *flags, "--compare_steps=0")
    assert "numbers (int)" in refused("evaluate", *flags, "--compare_steps=x")
    assert "/absent" in refused("evaluate", *flags, "--show_samples=/absent")
    wrong = refused("evaluate", *flags, "--guidance_scale=1,-1")
    assert "guidance_scale=-1" in wrong
    occupied = f"--out={tmp_path}/index.html"
    assert "cannot be an output folder" in refused("evaluate", flags[0], occupied)
    assert "numbers" in refused("evaluate", f"--workdir={run}", "--guidance_scale=x")
