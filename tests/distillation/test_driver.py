"""A distillation ends the same, whatever interrupts it."""

import json
import shutil

import numpy as np
import pytest

from tests.distillation.cases import UPDATES, config, equal, last, noisy, teacher_config
from vdm_jax import runs
from vdm_jax.distillation import driver
from vdm_jax.distillation.driver import distill
from vdm_jax.errors import UserError
from vdm_jax.pretrained import params as params_file
from vdm_jax.training import trainer
from vdm_jax.training.stop import PreemptionSignal
from vdm_jax.training.train import train


def test_rounds_json_and_the_students(done, teacher):
    workdir = done
    found = json.loads((workdir / "rounds.json").read_text())
    assert [row["steps"] for row in found] == [8, 4, 2, 1]
    for row in found:
        assert set(row) == {"steps", "updates", "loss", "metric", "seconds", "path"}
        assert row["updates"] == UPDATES and row["loss"] > 0 and row["seconds"] > 0
        own = runs.read_config(workdir / row["path"])
        assert own.sample.steps == row["steps"] and own.sample.sampler == "ddim"
        assert own.network == runs.read_config(teacher).network
        assert own.conditioning.guidance_range == [1.0, 5.0]
        assert (workdir / row["path"] / "samples" / "step-0000004.gif").is_file()
    rates = [runs.read_config(workdir / r["path"]).train.learning_rate for r in found]
    assert rates == [2e-3, *[config().train.learning_rate] * 3]
    assert runs.read_config(workdir).sample.steps == 1
    assert equal(last(workdir), last(workdir / "rounds/0001"))
    assert not equal(last(workdir), last(workdir / "rounds/0002"))


def test_a_second_call_has_nothing_to_do(done, teacher):
    workdir = done
    before = last(workdir)
    distill(config(), str(teacher), workdir)
    assert equal(before, last(workdir))


def test_killed_anywhere_it_ends_the_same(done, teacher, tmp_path, monkeypatch):
    """In a round, after its last checkpoint, after its row; in any round."""
    add_text, commit, count = trainer.add_text, driver.commit_round, [0]

    class Killed(Exception):
        pass

    def killed(*args, **kwargs):
        raise Killed

    def add_until(batch, captions):  # called once a step
        count[0] -= 1
        return add_text(batch, captions) if count[0] else killed()

    def commit_and_die(*args):
        commit(*args)
        killed()

    def dies(module, name, replacement):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, replacement)
            distill(config(), str(teacher), tmp_path)

    for updates in (1, 3):  # before the checkpoint of the second update, and after
        count[0] = updates
        dies(trainer, "add_text", add_until)
    dies(driver, "commit_round", killed)
    dies(driver, "commit_round", commit_and_die)
    dies(driver, "commit_round", killed)
    count[0] = 7  # in the last round
    dies(trainer, "add_text", add_until)
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == 3
    distill(config(), str(teacher), tmp_path)
    assert equal(last(tmp_path), last(done))


@pytest.mark.slow
def test_a_time_limit_saves_and_exits(done, teacher, tmp_path):
    """However short it is, every call makes progress."""
    calls = 0
    while True:
        calls += 1
        try:
            distill(config(), str(teacher), tmp_path, PreemptionSignal(0.001))
            break
        except SystemExit as left:
            assert left.code == 42
    assert calls > 4
    assert equal(last(tmp_path), last(done))


@pytest.mark.slow
def test_without_guidance_stochastic_and_by_r2_to_teacher(teacher, tmp_path):
    value = config(
        **{
            "distill.guidance_range": (),
            "distill.sampler": "stochastic",
            "distill.metric": "r2_to_teacher",
            "distill.end_steps": 2,
            "distill.max_metric_drop": 2.0,
        }
    )
    found = distill(value, str(teacher), tmp_path)
    assert [row["steps"] for row in found] == [4, 2]
    assert all(np.isfinite(row["metric"]) and row["metric"] <= 1 for row in found)
    own = runs.read_config(tmp_path)
    assert own.sample.sampler == "stochastic" and own.conditioning.guidance_range == []


def test_a_round_that_loses_too_much_stops_the_run(teacher, tmp_path, monkeypatch):
    metrics = iter([0.9, 0.85, 0.6, 0.6, 0.6, 0.6])
    monkeypatch.setattr(
        driver.Distiller, "evaluate_student", lambda *args: next(metrics)
    )
    value = config(**{"distill.max_metric_drop": 0.1})
    with pytest.raises(
        UserError, match="shape_accuracy fell from 0.850 to 0.600"
    ) as caught:
        distill(value, str(teacher), tmp_path)
    assert caught.value.status == 5
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == 2
    with pytest.raises(UserError, match="fell"):  # the same command does not accept it
        distill(value, str(teacher), tmp_path)
    value = config(
        **{"distill.max_metric_drop": 0.5, "distill.updates_last_rounds": UPDATES + 2}
    )
    found = distill(value, str(teacher), tmp_path)
    assert [row["updates"] for row in found] == [4, 4, 6, 6]


def test_changes_that_are_refused_when_it_resumes(done, teacher):
    workdir = done
    for changes in (
        {"seed": 1},
        {"distill.start_steps": 16},
        {"distill.guidance_range": (1.0, 3.0)},
        {"distill.metric": "r2_to_teacher"},
    ):
        with pytest.raises(UserError, match=list(changes)[0]):
            distill(config(**changes), str(teacher), workdir)


def test_a_damaged_last_checkpoint_resumes_its_round(done, teacher, tmp_path):
    """The next round never starts from an older checkpoint."""
    workdir = tmp_path / "copy"
    shutil.copytree(done, workdir)
    kept = json.loads((workdir / "rounds.json").read_text())[:3]  # 8, 4 and 2 steps
    (workdir / "rounds.json").write_text(json.dumps(kept))
    shutil.rmtree(workdir / "rounds/0001")
    folder = workdir / f"rounds/0002/checkpoints/{UPDATES}"
    victim = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    found = distill(config(), str(teacher), workdir)
    assert [row["steps"] for row in found] == [8, 4, 2, 1]
    assert equal(last(workdir), last(done))


def test_a_damaged_table_and_the_teacher_s_videos_are_made_again(
    done, teacher, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(done, workdir)
    before = json.loads((workdir / "rounds.json").read_text())
    (workdir / "rounds.json").write_text('[{"steps": "x"}]')
    (workdir / "teacher.npz").write_bytes(b"PK")
    rows = distill(config(), str(teacher), workdir)
    assert [(row["steps"], row["metric"]) for row in rows] == [
        (row["steps"], row["metric"]) for row in before
    ]
    assert json.loads((workdir / "rounds.json").read_text()) == rows
    assert (workdir / "bad-rounds.json").is_file()
    assert (workdir / "bad-teacher.npz").is_file()
    assert "rounds are evaluated again" in capsys.readouterr().err
    for content in (b"", b"[]", b"null", b"[" * 100_000):
        (workdir / "distill.json").write_bytes(content)
        with pytest.raises(UserError, match="distill.json is not"):
            distill(config(), str(teacher), workdir)


def test_a_workdir_that_holds_something_else_is_left_alone(done, teacher):
    with pytest.raises(UserError, match="holds a model already"):
        distill(config(), str(teacher), teacher)
    assert {path.name for path in teacher.iterdir()} == {
        "config.json",
        "params.safetensors",
    }
    with pytest.raises(UserError, match="the workdir of a distillation"):
        train(teacher_config(), done)


def test_another_teacher_is_refused_until_the_first_round_is_done(
    done, teacher, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    loaded = runs.load(teacher)
    params_file.write(other / "params.safetensors", noisy(loaded.params))
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(driver, "commit_round", lambda *args: 1 / 0)
        distill(config(), str(teacher), workdir)
    with pytest.raises(UserError, match="not any more, the teacher"):
        distill(config(), str(other), workdir)
    shutil.copytree(done, tmp_path / "later")
    assert len(distill(config(), str(other), tmp_path / "later")) == 4
    record = json.loads((tmp_path / "later" / "distill.json").read_text())
    assert record["teacher"] == str(teacher)
