"""`evaluate.py` on a distillation."""

import json
import shutil

import numpy as np
import pytest

from vdm_jax import data, runs, sampling
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.evaluators import distillations
from vdm_jax.evaluators.reports import ReportOptions


def test_teacher_rows_ignore_its_sampling_config_and_another_teacher_is_refused(
    done, tmp_path, monkeypatch
):
    monkeypatch.setattr(distillations, "SAMPLERS", ("ddim",))
    workdir, own = tmp_path / "copy", tmp_path / "teacher"
    shutil.copytree(done, workdir)
    record = json.loads((workdir / "distill.json").read_text())
    shutil.copytree(record["teacher"], own)
    own_config = runs.read_config(own)
    own_config.sample.update(
        langevin_delta=0.1, sampling_schedule="flow", guidance_schedule="oscillating:1"
    )
    (own / "config.json").write_text(own_config.to_json_best_effort())
    (workdir / "distill.json").write_text(json.dumps(record | {"teacher": str(own)}))
    ask = dict(overrides={"batch_size": 3}, guidance_scale=1.0, seed=0)
    rows = distillations.evaluate(
        workdir, ReportOptions(tmp_path / "out"), num=4, num_key_samples=3, **ask
    )
    by_name = {row["row"]: row for row in rows}
    assert by_name["teacher, ddim, 8 steps"]["videos"] == 4
    # Without guidance, a guidance-distilled student of as many steps is the teacher.
    assert by_name["student, 8 steps"]["rmse_to_teacher"] < 0.05
    changed = json.dumps(record | {"teacher": str(own), "checksum": "0"})
    (workdir / "distill.json").write_text(changed)
    with pytest.raises(UserError, match="not any more, the teacher"):
        distillations.evaluate(
            workdir, ReportOptions(tmp_path / "out"), num=4, num_key_samples=3, **ask
        )


def test_rows_are_stored_as_they_are_finished(done, tmp_path, monkeypatch):
    monkeypatch.setattr(distillations, "SAMPLERS", ("ddim", "dpm"))
    workdir = done
    ask = dict(
        num=4,
        num_key_samples=5,
        overrides={"batch_size": 4},
        guidance_scale=None,
        seed=0,
    )
    calls, original = [], sampling.sample

    def sample(model, params, num, settings, inputs, run):
        calls.append((run.seed, inputs.cond["label"]))
        return original(model, params, num, settings, inputs, run)

    monkeypatch.setattr(distillations.sampling, "sample", sample)
    rows = distillations.evaluate(workdir, ReportOptions(tmp_path), **ask)
    own = runs.read_config(workdir)
    real = pipeline.held_out_batch(own, data.open_source(own), ask["num_key_samples"])
    for seed, labels in calls:  # all rows have the noise and the held-out labels
        assert seed == 0
        np.testing.assert_array_equal(labels, real["label"][: len(labels)])
    by_name = {row["row"]: row for row in rows}
    assert by_name["student, 4 steps"]["nfe"] == 4
    assert by_name["teacher, dpm, 4 steps"]["nfe"] == 8
    assert by_name["student, 4 steps"]["videos"] == 5
    assert by_name["teacher, ddim, 2 steps"]["videos"] == 4
    assert by_name["teacher, ddim, 8 steps"]["rmse_to_teacher"] == 0
    stored = {}
    for path in (tmp_path / "rows").glob("*.json"):
        scores, origin = map(json.loads(path.read_text()).get, ("scores", "origin"))
        if origin["sampler_setting"]["sampler"] == "dpm":  # the students' noise levels
            assert origin["settings"]["sampling_schedule"] == "cosine"
        if student := origin["sampler_setting"]["path"]:
            assert origin["parameters"] == runs.load(workdir / student).checksum
        with np.load(path.with_suffix(".npz")) as arrays:
            stored[scores["row"]] = scores, arrays["videos"] / 127.5
    reference = stored["teacher, ddim, 8 steps"][1]
    for scores, videos in stored.values():
        rmse = np.sqrt(np.square(videos - reference[: len(videos)]).mean())
        assert scores["rmse_to_teacher"] == pytest.approx(rmse)
    assert (tmp_path / "index.html").stat().st_size > 10_000
    monkeypatch.setattr(distillations.sampling, "sample", lambda *args, **kwargs: 1 / 0)
    assert distillations.evaluate(workdir, ReportOptions(tmp_path), **ask) == rows
    with pytest.raises(ZeroDivisionError):
        distillations.evaluate(workdir, ReportOptions(tmp_path), **ask | {"seed": 1})
