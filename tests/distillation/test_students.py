"""Training of students: programs, teachers, and sampling with a guidance weight."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.distillation.cases import UPDATES, config, equal, noisy, teacher_config
from tests.distillation.conftest import compile_update
from vdm_jax import runs, sampling
from vdm_jax.data import shapes
from vdm_jax.diffusion import samplers, schedules
from vdm_jax.distillation import driver, students
from vdm_jax.distillation.driver import distill
from vdm_jax.errors import UserError
from vdm_jax.training import trainer as trainers
from vdm_jax.training.train import train


@pytest.mark.slow
def test_one_program_for_guidance_and_one_for_all_other_rounds(
    teacher, tmp_path, monkeypatch
):
    """Neither the teacher nor the numbers of steps and updates need another program."""
    compiled, during = [], []
    run, name = (
        students.Distiller.train,
        "/jax/core/compile/backend_compile_duration",
    )

    def listen(event, seconds, **about):
        if event == name:
            compiled.append(about.get("fun_name"))

    def counted(self, *args):
        before = len(compiled)
        params = run(self, *args)
        during.append(compiled[before:].count("jit(step)"))
        return params

    monkeypatch.setattr(students.Distiller, "_update", compile_update)
    monkeypatch.setattr(students.Distiller, "train", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        value = config(**{"distill.updates_last_rounds": UPDATES + 1})
        distill(value, str(teacher), tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert during == [1, 1, 0, 0]


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_every_round_starts_from_the_student_before_which_is_its_teacher(
    teacher, tmp_path, monkeypatch, ema
):
    """That is its average where there is one; noise and batches are the round's own.

    The first teacher is sampled with the guidance scale of all students.
    """
    teachers, started, keys, scales = [], [], [], []

    def train_loop(update, state, aux_params, batches, *, run, key, **kwargs):
        def moved(by):
            return jax.tree.map(lambda leaf: leaf + by, state.params)

        teachers.append(aux_params["teacher"])
        started.append(state.params)
        keys.append((run.config.seed, tuple(jax.random.key_data(key).tolist())))
        average = None if state.ema is None else moved(2.0)
        return state.replace(params=moved(1.0), ema=average)

    def sample(self, model, params, settings, progress=None):
        scales.append(settings.guidance_scale)
        return np.zeros((4, *model.shape), np.uint8)

    monkeypatch.setattr(trainers, "train_loop", train_loop)
    monkeypatch.setattr(students.FixedSamples, "__call__", sample)
    monkeypatch.setattr(students.Distiller, "_update", lambda *args: None)
    monkeypatch.setattr(students, "write_preview", lambda *args: None)
    monkeypatch.setattr(driver, "commit_round", lambda *args: None)
    own = runs.load(teacher)
    own.config.sample.guidance_scale = 2.5
    monkeypatch.setattr(runs, "load", lambda *args: own)
    distill(config(**{"train.ema_decay": ema}), str(teacher), tmp_path)
    assert equal(teachers[0], own.params) and len(teachers) == 4
    for before, now, first in zip(started, teachers[1:], started[1:], strict=False):
        assert equal(now, jax.tree.map(lambda a: a + (2.0 if ema else 1.0), before))
        assert equal(now, first)
    assert [len(set(each)) for each in zip(*keys, strict=True)] == [4, 4]
    assert scales == [2.5] * 5


def test_an_eps_teacher_is_clipped_to_its_clip_x(teacher, tmp_path, monkeypatch):
    limits = []

    def loss(*args):
        limits.append(args[3])
        raise KeyboardInterrupt

    fields = json.loads((teacher / "config.json").read_text())
    fields["diffusion"] |= {"prediction_type": "eps", "precondition": False}
    fields["sample"]["clip_x"] = 1.25
    eps = tmp_path / "eps"
    shutil.copytree(teacher, eps)
    (eps / "config.json").write_text(json.dumps(fields))
    monkeypatch.setattr(students.losses, "progressive_distillation_loss", loss)
    monkeypatch.setattr(students.Distiller, "_update", compile_update)
    value = config(**{"distill.guidance_range": (), "distill.loss_weighting": "snr"})
    with pytest.raises(KeyboardInterrupt):
        distill(value, str(eps), tmp_path / "run")
    assert limits == [1.25]


def test_a_student_with_guidance_is_sampled_by_one_branch_at_its_weight(done):
    """The result equals that of its denoiser with the weight as a condition."""
    loaded = runs.load(done / "rounds/0008")
    params = noisy(loaded.params)  # so that the weight matters
    labels = np.array([[0, 1, 2, 1], [1, 2, 0, 0]], np.int32)
    inputs = sampling.SamplingInputs({"label": labels})
    videos = {
        scale: sampling.sample(
            loaded.model,
            params,
            2,
            sampling.Settings(
                sampler="ddim", steps=1, guidance_scale=scale, clip_x=0.0
            ),
            inputs,
        )
        for scale in (1.0, 4.0)
    }
    assert abs(videos[1.0] - videos[4.0]).max() > 1e-3
    keys = samplers.video_keys(0, 0, 0, jnp.arange(2))
    z = samplers.normal(keys, 0, 0, loaded.model.shape)
    cond = loaded.model.raw_conditions({"label": jnp.asarray(labels)})
    level = schedules.noise_level_from_angle(loaded.model.schedule.angle(jnp.ones(2)))
    cond = loaded.model.with_guidance_weight(cond, jnp.full(2, 3.0))
    x = jax.jit(lambda z: loaded.model.denoiser(params)(z, level, cond).x)(z)
    np.testing.assert_allclose(videos[4.0], jnp.clip(x, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(guidance_scale=6.0), "trained with scales from 1 to 5"),
        (dict(guidance_scale=5.0, guidance_schedule="oscillating:10"), "from 5 to 10"),
        (dict(guidance_scale=5.0, guidance_schedule="frames:2"), "one scale for all"),
        (dict(guidance_scale=5.0, cfg_mode="rescaled"), "combines linearly"),
    ],
)
def test_guidance_outside_of_a_student_s_training_is_refused(done, settings, message):
    student = runs.load(done).model
    with pytest.raises(UserError, match=message):
        sampling.check_settings(student, 2, 0, sampling.Settings(**settings))


def test_oscillating_guidance_reaches_a_student_with_guidance(done):
    """Its steps alternate between both weights."""
    loaded = runs.load(done / "rounds/0008")
    params, labels = noisy(loaded.params), np.zeros((1, 4), np.int32)

    def sample(**kwargs):
        settings = sampling.Settings(
            sampler="ddim", steps=4, guidance_scale=5.0, clip_x=0.0, **kwargs
        )
        inputs = sampling.SamplingInputs({"label": labels})
        return sampling.sample(loaded.model, params, 1, settings, inputs)

    alternating = sample(guidance_schedule="oscillating:1:0.5")
    assert abs(alternating - sample()).max() > 1e-3


def test_train_py_makes_no_students_with_guidance(tmp_path):
    config = teacher_config()
    config.conditioning.guidance_range = (1.0, 2.0)
    with pytest.raises(UserError, match=r"only distill\.py"):
        train(config, tmp_path / "run")


def test_real_clips_of_a_strided_teacher_are_accurate(monkeypatch):
    """A shape moves four times as far from one frame to the next."""
    source = shapes.Shapes(shapes.Geometry(4, 12, 16, stride=4))
    clips = [source.load(i, np.random.default_rng(0), 4) for i in range(72)]
    labels = np.stack([clip["label"] for clip in clips])
    samples = SimpleNamespace(cond={"label": labels})
    monkeypatch.setattr(students, "FixedSamples", lambda *args: samples)
    value = teacher_config()
    value.data.stride = 4
    teacher = SimpleNamespace(config=value, model=None)
    trainer = SimpleNamespace(model=SimpleNamespace(prediction_type="v"))
    distiller = students.Distiller(
        config(**{"distill.metric": "shape_accuracy"}), teacher, trainer
    )
    assert distiller._metric(np.stack([clip["video"] for clip in clips])) > 0.97
