"""Rounds and configs of students; distillations that are refused."""

from pathlib import Path
from typing import Any

import pytest

from configs import distill_dit, dit
from tests.distillation.cases import config, teacher_config
from vdm_jax import build
from vdm_jax.distillation import rounds
from vdm_jax.distillation.driver import distill
from vdm_jax.errors import UserError
from vdm_jax.runs import TrainedModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.start_steps": 48}, "a power of two"),
        ({"distill.start_steps": 2048}, "start_steps=2048: one of 1, 2, 4"),
        (
            {"distill.end_steps": 8},
            "end_steps=8: from 1 to below distill.start_steps=8",
        ),
        ({"distill.sampler": "stochastic", "distill.end_steps": 1}, "from 2 to below"),
        ({"distill.updates_per_round": 0}, "updates_per_round=0: an integer from 1"),
        ({"distill.guidance_range": (3.0, 2.0)}, "the lowest scale first"),
        ({"distill.guidance_range": (2.0,)}, r"guidance_range=\(2.0,\): \(a number"),
        ({"distill.guidance_range": ("a", "b")}, "a number from 1 to 1000"),
        ({"distill.sampler": "heun"}, "one of ddim, stochastic"),
        ({"distill.loss_weighting": "sum"}, "one of constant"),
        ({"distill.metric": "fid"}, "one of r2_to_teacher, shape_accuracy"),
        ({"distill.max_metric_drop": float("nan")}, "max_metric_drop=nan"),
        ({"distill.time_power": 0.5}, "time_power=0.5: a number from 1 to 4"),
        ({"train.lr_schedule": "steps"}, "one of cosine, linear"),
        ({"data.batch_size": -1}, "batch_size=-1"),
    ],
)
def test_wrong_settings_are_refused_and_leave_nothing(
    teacher, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        distill(config(**changes), str(teacher), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_cannot_be_guided(teacher, tmp_path):
    own = teacher_config()
    own.conditioning.label_dropout = 0.0
    with pytest.raises(UserError, match="or was trained without dropping"):
        rounds.check(config().distill, own, build.build_model(own))
    own.conditioning.update(label_dropout=0.1, guidance_range=(1.0, 5.0))
    with pytest.raises(UserError, match="a student with guidance already"):
        rounds.check(config().distill, own, build.build_model(own))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.label_vocabulary": ()},
            "metric='shape_accuracy': this teacher has no labels",
        ),
        ({"diffusion.distilled_steps": 4}, "a student of 4 steps"),
        ({"diffusion.schedule": "karras", "diffusion.logsnr_shift": 0.0}, "unevenly"),
        (
            {"diffusion.schedule": "flow", "diffusion.logsnr_max": 1.0},
            "have no length",
        ),
    ],
)
def test_teachers_that_do_not_suit(changes, message):
    own = teacher_config()
    own.diffusion.train_logsnr_shifts = ()
    own.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        rounds.check(config().distill, own, build.build_model(own))


def test_a_discrete_teacher_gets_steps_that_halve():
    """Its timesteps are trailing ones; eps needs no clipping, as alpha is .07."""
    own = teacher_config()
    own.diffusion.update(
        schedule="discrete", prediction_type="eps", precondition=False,
        logsnr_shift=0.0, train_logsnr_shifts=(),
    )  # fmt: skip
    own.sample.clip_x = 0.0
    teacher = TrainedModel(build.build_model(own), {}, own, -1, "")
    distill_config = config(**{"distill.loss_weighting": "snr"}).distill
    with pytest.raises(UserError, match="unevenly in time"):
        rounds.check(distill_config, own, teacher.model)
    changed = rounds.with_halving_steps(teacher)
    rounds.check(distill_config, changed.config, changed.model)
    assert changed.model.schedule.timesteps(4).tolist() == [999, 749, 499, 249]
    assert changed.model.schedule.grid(4)[-1] == 0
    assert build.build_model(changed.config) == changed.model
    too_many = config(**{"distill.loss_weighting": "snr", "distill.start_steps": 512})
    with pytest.raises(UserError, match="start_steps=512: .* have no length"):
        rounds.check(too_many.distill, changed.config, changed.model)


def test_time_power_holds_for_the_rounds_above_two_steps():
    plan = rounds.plan_rounds(config(**{"distill.time_power": 3.0}).distill)
    powers = {each.steps: each.time_power for each in plan}
    assert powers == {8: 1.0, 4: 3.0, 2: 1.0, 1: 1.0}


def test_an_eps_teacher_needs_a_weighting_and_clip_x():
    own = teacher_config()
    own.diffusion.update(prediction_type="eps", precondition=False)
    distill_config = config().unlock().distill
    with pytest.raises(UserError, match="snr_plus_one': this teacher predicts eps"):
        rounds.check(distill_config, own, build.build_model(own))
    distill_config.loss_weighting = "snr"
    rounds.check(distill_config, own, build.build_model(own))
    own.sample.clip_x = 0.0
    with pytest.raises(UserError, match="sample.clip_x in the teacher's config.json"):
        rounds.check(distill_config, own, build.build_model(own))


def test_students_of_a_model_of_several_sizes_learn_from_clips_of_the_first():
    """Stored latents are those of that size; given frames are the teacher's."""
    own: Any = dit.get_config("packed").unlock()
    own.data.latents_dir = "/latents"
    given: Any = distill_dit.get_config()
    plan = rounds.plan_rounds(given.distill)
    configs = rounds.student_configs(given, own, plan, "teacher", Path("/students"))
    assert [c.sample.steps for c in configs] == [64, 32, 16, 8, 4]
    for each in configs:
        assert "mixed_sizes" not in each
        assert each.data.latents_dir == "/latents/8x64x64"
        assert each.data.batch_size == given.data.batch_size
        assert each.conditioning.clean_frames == own.conditioning.clean_frames
    own.data.latents_dir = ""
    (first, *_) = rounds.student_configs(given, own, plan, "teacher", Path("/students"))
    assert first.data.latents_dir == ""
