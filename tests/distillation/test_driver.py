"""Rounds around fit: what a student starts from, what a kill leaves behind."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import distill_shapes, shapes
from vdm_jax import build, data, runs, sampling
from vdm_jax import model as models
from vdm_jax.data import pipeline
from vdm_jax.diffusion import process, samplers, schedules
from vdm_jax.distillation import driver, rounds
from vdm_jax.distillation.driver import distill
from vdm_jax.errors import UserError
from vdm_jax.evaluators import distillations
from vdm_jax.pretrained import params as params_file
from vdm_jax.training import checks
from vdm_jax.training.train import train

UPDATES = 4
PROGRAM = driver.DistillationTrainer._program


def teacher_config():
    """The smallest network that is told everything: it compiles in seconds."""
    config = shapes.get_config("smoke").unlock()
    config.network.update(
        levels=(dict(channels=8, blocks=1, layers=("temporal_conv",)),),
        mid_layers=(),
        patch_size=4,
    )
    config.conditioning.update(cond_dim=8, cond_mlp_layers=1)
    attributes = (("a", "b", "c"), ("x", "y", "z"), ("l", "r", "u", "d"), ("s", "f"))
    config.data.update(label_vocabulary=attributes, mean=-0.9, variance=0.2)
    return config


def noisy(params, scale=0.05):
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return jax.tree.map(
        lambda p: p + scale * jax.random.normal(next(keys), p.shape, p.dtype), params
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A shipped model whose output is not zero."""
    folder = tmp_path_factory.mktemp("teacher")
    config = teacher_config()
    model = build.build_model(config)
    params_file.write(
        folder / "params.safetensors", noisy(model.init(jax.random.key(0)))
    )
    (folder / "config.json").write_text(config.to_json_best_effort())
    return folder


def config(**changes):
    value = distill_shapes.get_config("smoke").unlock()
    value.distill.update(
        start_steps=8,
        guidance_range=(1.0, 5.0),
        guidance_updates=UPDATES,
        updates_per_round=UPDATES,
        updates_last_rounds=UPDATES,
        num=4,
    )
    value.train.ema_decay = 0.9  # so that what is handed on is not what trains
    value.update_from_flattened_dict(changes)
    return value.lock()


def last(workdir):
    return runs.load(workdir).params


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Of each kind of round one, for all distillations of this file."""
    kept = {}

    def once(self, run, told, *args):
        kind = (
            told,
            self.config.distill.sampler,
            bool(self.config.distill.guidance_range),
        )
        if kind not in kept:
            kept[kind] = PROGRAM(self, run, told, *args)
        return kept[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.DistillationTrainer, "_program", once)
        yield kept


@pytest.fixture(scope="module")
def done(teacher, tmp_path_factory):
    """A finished guided distillation: 8 steps, told, then 4, 2, 1."""
    workdir = tmp_path_factory.mktemp("done")
    distill(config(), str(teacher), workdir)
    return workdir


def test_one_program_for_the_told_round_and_one_for_all_others(
    teacher, tmp_path, monkeypatch
):
    """Neither the teacher nor the numbers of steps and updates compile anew."""
    compiled, during = [], []
    run, name = (
        driver.DistillationTrainer.train,
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

    monkeypatch.setattr(driver.DistillationTrainer, "_program", PROGRAM)
    monkeypatch.setattr(driver.DistillationTrainer, "train", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        value = config(**{"distill.updates_last_rounds": UPDATES + 1})
        distill(value, str(teacher), tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert during == [1, 1, 0, 0]


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
        assert own.conditioning.guidance_range == [0.0, 4.0]
        assert (workdir / row["path"] / "samples" / "step-0000004.gif").is_file()
    rates = [runs.read_config(workdir / r["path"]).train.learning_rate for r in found]
    assert rates == [2e-3, *[config().train.learning_rate] * 3]
    assert runs.read_config(workdir).sample.steps == 1
    assert equal(last(workdir), last(workdir / "rounds/0001"))
    assert not equal(last(workdir), last(workdir / "rounds/0002"))


def test_a_second_call_finds_nothing_to_do(done, teacher):
    workdir = done
    before = last(workdir)
    distill(config(), str(teacher), workdir)
    assert equal(before, last(workdir))


def test_killed_anywhere_it_ends_the_same(done, teacher, tmp_path, monkeypatch):
    """In a round, after its last checkpoint, after its row; in the first and later."""
    put, accept, count = driver.sharding.put_batch, driver.commit_round, [0]

    class Killed(Exception):
        pass

    def killed(*args, **how):
        raise Killed

    def put_until(mesh, batch):
        count[0] -= 1
        return put(mesh, batch) if count[0] else killed()

    def accept_and_die(*args):
        accept(*args)
        killed()

    def dies(room, name, how):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(room, name, how)
            distill(config(), str(teacher), tmp_path)

    for updates in (1, 3):  # before the checkpoint of the second update, and after
        count[0] = updates
        dies(driver.sharding, "put_batch", put_until)
    dies(driver, "_accept", killed)
    dies(driver, "_accept", accept_and_die)
    dies(driver, "_accept", killed)
    count[0] = 7  # in the last round
    dies(driver.sharding, "put_batch", put_until)
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == 3
    distill(config(), str(teacher), tmp_path)
    assert equal(last(tmp_path), last(done))


def test_a_time_limit_saves_and_leaves(done, teacher, tmp_path):
    """However short it is, something is done each time."""
    calls = 0
    while True:
        calls += 1
        try:
            distill(config(), str(teacher), tmp_path, time_limit=0.001)
            break
        except SystemExit as left:
            assert left.code == 42
    assert calls > 4
    assert equal(last(tmp_path), last(done))


def test_a_told_student_begins_as_its_teacher(teacher):
    """At every weight: the branch adds zero, to the last bit."""
    loaded = runs.load(teacher)
    one = rounds.plan_rounds(config().distill)[0]
    own = rounds.student_config(config(), loaded.config, one, "")
    largest = rounds.student_config(config(seed=2**32 - 1), loaded.config, one, "")
    checks.check_config(largest)  # of all rounds the seeds are seeds
    assert largest.seed != own.seed
    student = build.build_model(own)
    params = driver.init_student(student, loaded.params, jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (5, *student.shape))
    labels = {"label": jnp.array([[0, 1, 2, 1], [2, -1, 3, 0]] * 2 + [[-1] * 4])}
    level = schedules.noise_level_from_angle(jnp.linspace(0.1, 1.5, 5))
    cond = loaded.model.raw_conditions(labels)

    @functools.partial(jax.jit, static_argnums=0)
    def predict(model, params, cond):
        return model.denoiser(params)(z, level, cond)

    expected = predict(loaded.model, loaded.params, cond)
    for weight in (0.0, 1.3, 4.0):
        told = student.with_guidance_weight(cond, jnp.full(5, weight))
        found = predict(student, params, told)
        assert equal(tuple(found), tuple(expected))
    assert jnp.abs(expected.x).max() > 0.1


def test_the_told_loss_is_that_of_both_branches(teacher):
    """Its value is the mean square of w (conditional - unconditional) at the start."""
    loaded = runs.load(teacher)
    value = config(**{"distill.guidance_range": (2.9999, 3.0)})
    one = rounds.plan_rounds(value.distill)[0]
    own = rounds.student_config(value, loaded.config, one, "")
    own.unlock().conditioning.update(label_dropout=0.0, attribute_dropout=0.0)
    student = build.build_model(own)
    params = driver.init_student(student, loaded.params, jax.random.key(0))
    batch = {
        "video": np.random.default_rng(0).integers(
            0, 256, (16, *student.shape), np.uint8
        ),
        "label": np.tile(np.array([[0, 1, 2, 1]], np.int32), (16, 1)),
    }
    loss_fn = driver.guidance_distillation_loss(student, loaded.model, "snr_plus_one")
    frozen = {"teacher": loaded.params}
    loss, _ = jax.jit(loss_fn)(params, frozen, batch, jax.random.key(3))

    time_key, noise_key, _ = jax.random.split(jax.random.key(3), 3)
    t = (jax.random.uniform(time_key, ()) + jnp.arange(16) / 16) % 1.0
    level = schedules.noise_level(student.schedule, t)
    x = jnp.asarray(batch["video"]) / 127.5 - 1
    z = process.diffuse(x, jax.random.normal(noise_key, x.shape), level)
    given = loaded.model.raw_conditions({"label": jnp.asarray(batch["label"])})

    @jax.jit
    def v_of(cond):
        return process.velocity(
            loaded.model.denoiser(loaded.params)(z, level, cond), level
        )

    v = v_of(given), v_of(loaded.model.unconditional(given))
    np.testing.assert_allclose(loss, 4 * jnp.square(v[0] - v[1]).mean(), rtol=1e-3)


class Known:
    """A model of data that are one point, which its condition and the weight decide.

    x = params * point where the condition is kept and params * other where it is
    dropped; told a weight, what guidance makes of the two. Two steps of DDIM land where
    one does.
    """

    schedule = schedules.Cosine()
    null = models.DiffusionModel.unconditional
    tell = models.DiffusionModel.with_guidance_weight

    def __init__(self, weight_range=()):
        self.guidance_range = tuple(weight + 1 for weight in weight_range)
        self.guidance_weight_range = weight_range

    def example(self, batch, key):
        keep = jax.random.bernoulli(key, 0.5, batch["label"].shape)
        return batch["video"], {"label": batch["label"], "keep": {"label": keep}}

    def denoiser(self, params):
        def denoise(z, level, cond):
            given = jnp.where(cond["keep"]["label"], cond["label"], 0.3)
            x = given + cond.get("guidance", 0.0) * (given - 0.3)
            x = params * jnp.broadcast_to(process.append_dims(x, z), z.shape)
            return process.from_x(x, z, level)

        return denoise


BATCH = {
    "video": jnp.zeros((64, 1, 1, 1, 1)),
    "label": jnp.linspace(-1.0, 1.0, 64),
}


@pytest.mark.parametrize("kind", ["told", "told steps", "untold steps"])
def test_who_knows_all_that_the_teacher_does_has_nothing_to_learn(kind, x64):
    """At every weight, dropped or not: both are asked the same, the student told it.

    A student that is off by a share has that share of the point, squared, as its loss:
    of the weights' own x, so they come from the whole range; and the teacher, whose
    parameters they are not, has no gradient.
    """
    low, high = told = (1.0, 4.0)
    batch = jax.tree.map(lambda a: a.astype(float), BATCH)
    if kind == "told":
        student = Known(told)
        loss_fn = driver.guidance_distillation_loss(student, Known(), "constant")
    else:
        student = Known(told if kind == "told steps" else ())
        loss_fn = driver.progressive_distillation_loss(student, "constant", False)

    def losses(params, teacher, n):
        """Of twenty draws: their sum, and each."""
        frozen = {"teacher": teacher, "steps": n, "late": 1.0}
        keys = jax.random.split(jax.random.key(0), 20)
        each = jax.vmap(lambda key: loss_fn(params, frozen, batch, key)[0])(keys)
        return each.sum(), each

    both = jax.jit(jax.value_and_grad(losses, (0, 1), has_aux=True))
    off = (batch["label"] - 0.3) ** 2
    given = batch["label"] - 0.3
    w, w2 = ((high**k - low**k) / (k * (high - low)) for k in (2, 3))
    w, w2 = (w, w2) if student.guidance_range else (0.0, 0.0)
    kept = 0.3**2 + 0.6 * (1 + w) * given + (1 + 2 * w + w2) * off
    expected = float((kept + 0.3**2).mean()) / 2  # half are dropped
    for n in (1, 8):
        (none, _), _ = both(1.0, 1.0, jnp.int32(n))
        (_, found), slopes = both(1.1, 1.0, jnp.int32(n))
        found = np.asarray(found) / 0.1**2
        assert none < 1e-20
        assert found.mean() == pytest.approx(expected, rel=0.1)
        assert found.std() < 0.3 * expected  # each video has a weight of its own
        assert slopes[0] > 0 and slopes[1] == 0


def test_a_told_student_is_sampled_with_one_branch_at_its_weight(done):
    """The same as its denoiser, told the weight by hand."""
    loaded = runs.load(done / "rounds/0008")
    params = noisy(loaded.params)  # so that the weight matters
    labels = np.array([[0, 1, 2, 1], [1, 2, 0, 0]], np.int32)
    made = {
        scale: sampling.sample(
            loaded.model,
            params,
            2,
            sampling.Settings(steps=1, guidance_scale=scale, clip_x=0.0),
            cond={"label": labels},
        )
        for scale in (1.0, 4.0)
    }
    assert abs(made[1.0] - made[4.0]).max() > 1e-3
    keys = samplers.video_keys(0, 0, 0, jnp.arange(2))
    z = samplers.normal(keys, 0, 0, loaded.model.shape)
    cond = loaded.model.raw_conditions({"label": jnp.asarray(labels)})
    level = schedules.noise_level_from_angle(loaded.model.schedule.angle(jnp.ones(2)))
    told = loaded.model.with_guidance_weight(cond, jnp.full(2, 3.0))
    x = jax.jit(lambda z: loaded.model.denoiser(params)(z, level, told).x)(z)
    np.testing.assert_allclose(made[4.0], jnp.clip(x, -1, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(guidance_scale=6.0), "trained with scales from 1 to 5"),
        (dict(guidance_scale=5.0, guidance_schedule="oscillating:10"), "scale 10"),
        (dict(guidance_scale=5.0, guidance_schedule="frames:2"), "one scale for all"),
        (dict(guidance_scale=5.0, cfg_mode="rescaled"), "combines linearly"),
    ],
)
def test_a_told_student_is_not_asked_what_it_was_not_told(done, settings, message):
    student = runs.load(done).model
    with pytest.raises(UserError, match=message):
        sampling.check_settings(student, 2, 0, sampling.Settings(**settings))


def test_oscillating_guidance_reaches_a_told_student(done):
    """Both weights, from row to row."""
    loaded = runs.load(done / "rounds/0008")
    params, labels = noisy(loaded.params), np.zeros((1, 4), np.int32)

    def made(**how):
        settings = sampling.Settings(steps=4, guidance_scale=5.0, clip_x=0.0, **how)
        return sampling.sample(
            loaded.model, params, 1, settings, cond={"label": labels}
        )

    turns = made(guidance_schedule="oscillating:1:0.5")
    assert abs(turns - made()).max() > 1e-3


def test_unguided_and_stochastic_by_agreement(teacher, tmp_path):
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
        driver.DistillationTrainer, "measure", lambda *args: next(metrics)
    )
    value = config(**{"distill.max_metric_drop": 0.1})
    with pytest.raises(UserError, match="joint fell from 0.850 to 0.600") as caught:
        distill(value, str(teacher), tmp_path)
    assert caught.value.status == 5
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == 2
    with pytest.raises(UserError, match="fell"):  # it is not passed by asking again
        distill(value, str(teacher), tmp_path)
    more = config(
        **{"distill.max_metric_drop": 0.5, "distill.updates_last_rounds": UPDATES + 2}
    )
    found = distill(more, str(teacher), tmp_path)
    assert [row["updates"] for row in found] == [4, 4, 6, 6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.start_steps": 48}, "a power of two"),
        ({"distill.start_steps": 2048}, "a power of two up to 1024"),
        ({"distill.end_steps": 8}, "end=8: from 1 to below distill.start_steps=8"),
        ({"distill.sampler": "stochastic", "distill.end_steps": 1}, "from 2 to below"),
        ({"distill.updates_per_round": 0}, "updates=0: at least 1"),
        ({"distill.guidance_range": (3.0, 2.0)}, "the lowest and the highest"),
        ({"distill.guidance_range": (2.0,)}, "the lowest and the highest"),
        ({"distill.guidance_range": ("a", "b")}, "the lowest and the highest"),
        ({"distill.sampler": "heun"}, "one of ddim, stochastic"),
        ({"distill.loss_weighting": "sum"}, "one of constant"),
        ({"distill.metric": "fid"}, "one of agreement, joint"),
        ({"distill.max_metric_drop": float("nan")}, "max_metric_drop=nan"),
        ({"distill.time_power": 0.5}, "time_power=0.5: from 1 to 4"),
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


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_every_round_is_taught_by_the_one_before_and_starts_from_it(
    teacher, tmp_path, monkeypatch, ema
):
    """By its average where there is one, on noise and batches of its own.

    The first teacher is sampled with the weight that all students are.
    """
    taught, started, keys, scales = [], [], [], []

    def fit(step, state, frozen, batches, *, run, key, **how):
        def moved(by):
            return jax.tree.map(lambda leaf: leaf + by, state.params)

        taught.append(frozen["teacher"])
        started.append(state.params)
        keys.append((run.config.seed, tuple(jax.random.key_data(key).tolist())))
        average = None if state.ema is None else moved(2.0)
        return state.replace(params=moved(1.0), ema=average)

    def sample(self, model, params, settings, progress=None):
        scales.append(settings.guidance_scale)
        return np.zeros((4, *model.shape), np.uint8)

    monkeypatch.setattr(driver, "fit", fit)
    monkeypatch.setattr(driver.DistillationTrainer, "_sample", sample)
    monkeypatch.setattr(
        driver.DistillationTrainer, "_program", lambda *args: (None, None)
    )
    monkeypatch.setattr(driver, "write_preview", lambda *args: None)
    monkeypatch.setattr(driver, "_accept", lambda *args: None)
    own = runs.load(teacher)
    own.config.sample.guidance_scale = 2.5
    monkeypatch.setattr(models, "load", lambda *args: own)
    distill(config(**{"train.ema_decay": ema}), str(teacher), tmp_path)
    assert equal(taught[0], own.params) and len(taught) == 4
    for before, now, first in zip(started, taught[1:], started[1:], strict=False):
        assert equal(now, jax.tree.map(lambda a: a + (2.0 if ema else 1.0), before))
        assert equal(now, first)
    assert [len(set(each)) for each in zip(*keys, strict=True)] == [4, 4]
    assert scales == [2.5] * 5


def test_what_may_not_change_when_it_goes_on(done, teacher):
    workdir = done
    for changes in (
        {"seed": 1},
        {"distill.start_steps": 16},
        {"distill.guidance_range": (1.0, 3.0)},
        {"distill.metric": "r2_to_teacher"},
    ):
        with pytest.raises(UserError, match=list(changes)[0]):
            distill(config(**changes), str(teacher), workdir)


def test_a_teacher_that_cannot_be_guided(teacher, tmp_path):
    own = teacher_config()
    own.conditioning.label_dropout = 0.0
    with pytest.raises(UserError, match="sometimes dropped"):
        rounds.check(config().distill, own, build.build_model(own))
    own.conditioning.update(label_dropout=0.1, guidance_range=(1.0, 5.0))
    with pytest.raises(UserError, match="a guided student already"):
        rounds.check(config().distill, own, build.build_model(own))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.label_vocabulary": ()},
            "metric='shape_accuracy': one of r2_to_teacher",
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


def test_late_is_of_the_rounds_above_two_steps():
    plan = rounds.plan_rounds(config(**{"distill.time_power": 3.0}).distill)
    assert {each.steps: each.time_power for each in plan if not each.distills_guidance} == {
        4: 3.0, 2: 1.0, 1: 1.0
    }  # fmt: skip


def test_an_eps_teacher_needs_a_weight_and_a_limit():
    own = teacher_config()
    own.diffusion.update(prediction_type="eps", precondition=False)
    asked = config().unlock().distill
    with pytest.raises(UserError, match="snr_plus_one' of a teacher with an eps"):
        rounds.check(asked, own, build.build_model(own))
    asked.loss_weighting = "snr"
    rounds.check(asked, own, build.build_model(own))
    own.sample.clip_x = 0.0
    with pytest.raises(UserError, match="eps output and sample.clip_x=0"):
        rounds.check(asked, own, build.build_model(own))


def test_an_eps_teacher_is_taught_with_its_threshold(teacher, tmp_path, monkeypatch):
    limits = []

    def loss(*args):
        limits.append(args[3])
        raise KeyboardInterrupt

    value = json.loads((teacher / "config.json").read_text())
    value["diffusion"] |= {"prediction_type": "eps", "precondition": False}
    value["sample"]["clip_x"] = 1.25
    eps = tmp_path / "eps"
    shutil.copytree(teacher, eps)
    (eps / "config.json").write_text(json.dumps(value))
    monkeypatch.setattr(driver, "halving_loss", loss)
    monkeypatch.setattr(driver.DistillationTrainer, "_program", PROGRAM)
    asked = config(**{"distill.guidance_range": (), "distill.loss_weighting": "snr"})
    with pytest.raises(KeyboardInterrupt):
        distill(asked, str(eps), tmp_path / "run")
    assert limits == [1.25]


def test_a_damaged_last_checkpoint_takes_its_round_up_again(done, teacher, tmp_path):
    """And never teaches the next one with what stood before."""
    workdir = tmp_path / "copy"
    shutil.copytree(done, workdir)
    kept = json.loads((workdir / "rounds.json").read_text())[:3]  # 8, 4 and 2 steps
    (workdir / "rounds.json").write_text(json.dumps(kept))
    shutil.rmtree(workdir / "rounds/0001")
    victim = next((workdir / f"rounds/0002/checkpoints/{UPDATES}").rglob("d/*"))
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
    assert "rounds are looked at again" in capsys.readouterr().err
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
    with pytest.raises(UserError, match="is a distillation's"):
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
        patch.setattr(driver, "_accept", lambda *args: 1 / 0)
        distill(config(), str(teacher), workdir)
    with pytest.raises(UserError, match="not any more, the teacher"):
        distill(config(), str(other), workdir)
    shutil.copytree(done, tmp_path / "later")
    assert len(distill(config(), str(other), tmp_path / "later")) == 4
    begun = json.loads((tmp_path / "later" / "distill.json").read_text())
    assert begun["teacher"] == str(teacher)


def test_rows_of_the_teacher_are_plain_and_it_is_the_same_teacher(
    done, tmp_path, monkeypatch
):
    """Whatever its own config asks for; more videos beside than in deciding rows."""
    monkeypatch.setattr(distillations, "SAMPLERS", ("ddim",))
    workdir, own = tmp_path / "copy", tmp_path / "teacher"
    shutil.copytree(done, workdir)
    begun = json.loads((workdir / "distill.json").read_text())
    shutil.copytree(begun["teacher"], own)
    own_config = runs.read_config(own)
    own_config.sample.update(
        langevin_delta=0.1, sampling_schedule="flow", guidance_schedule="oscillating:1"
    )
    (own / "config.json").write_text(own_config.to_json_best_effort())
    (workdir / "distill.json").write_text(json.dumps(begun | {"teacher": str(own)}))
    ask = dict(asked={"batch_size": 3}, guidance_scale=1.0, seed=0, commands=[])
    rows = distillations.evaluate(
        workdir, tmp_path / "out", num=4, num_key_rows=3, **ask
    )
    by_name = {row["row"]: row for row in rows}
    assert by_name["teacher, ddim, 8 steps"]["videos"] == 4
    # Without guidance the told student of as many steps is the teacher, nearly.
    assert by_name["student, 8 steps"]["rmse_to_teacher"] < 0.05
    changed = json.dumps(begun | {"teacher": str(own), "checksum": "0"})
    (workdir / "distill.json").write_text(changed)
    with pytest.raises(UserError, match="not any more, the teacher"):
        distillations.evaluate(workdir, tmp_path / "out", num=4, num_key_rows=3, **ask)


def test_evaluation_is_kept_row_by_row(done, tmp_path, monkeypatch, capsys):
    """And says of every row how many calls it takes."""
    monkeypatch.setattr(distillations, "SAMPLERS", ("ddim", "dpm"))
    workdir = done
    ask = dict(
        num=4,
        deciding=5,
        asked={"batch_size": 4},
        guidance_scale=None,
        seed=0,
        commands=["evaluate"],
    )
    asked, made = [], sampling.sample

    def sample(*args, labels, seed):
        asked.append((seed, labels))
        return made(*args, cond={"label": labels}, seed=seed)

    monkeypatch.setattr(distillations.sampling, "sample", sample)
    rows = distillations.evaluate(workdir, tmp_path, **ask)
    own = runs.read_config(workdir)
    real = pipeline.held_out_batch(own, data.open_source(own), ask["deciding"])
    for seed, labels in asked:  # of every row the same noise, what real clips show
        assert seed == 0
        np.testing.assert_array_equal(labels, real["label"][: len(labels)])
    by_name = {row["row"]: row for row in rows}
    assert by_name["student, 4 steps"]["nfe"] == 4
    assert by_name["teacher, dpm, 4 steps"]["nfe"] == 8
    assert by_name["student, 4 steps"]["videos"] == 5
    assert by_name["teacher, ddim, 2 steps"]["videos"] == 4
    assert by_name["teacher, ddim, 8 steps"]["rmse_to_teacher"] == 0
    kept = {}
    for path in (tmp_path / "rows").glob("*.json"):
        figures, origin = map(json.loads(path.read_text()).get, ("figures", "origin"))
        if origin["arm"]["sampler"] == "dpm":  # on the students' levels
            assert origin["settings"]["sampling_schedule"] == "cosine"
        if place := origin["arm"]["path"]:
            assert origin["parameters"] == runs.load(workdir / place).checksum
        with np.load(path.with_suffix(".npz")) as found:
            kept[figures["row"]] = figures, found["videos"] / 127.5
    first = kept["teacher, ddim, 8 steps"][1]  # every row is held against it
    for figures, videos in kept.values():
        off = np.sqrt(np.square(videos - first[: len(videos)]).mean())
        assert figures["rmse_to_teacher"] == pytest.approx(off)
    assert (tmp_path / "index.html").stat().st_size > 10_000
    monkeypatch.setattr(distillations.sampling, "sample", lambda *args, **how: 1 / 0)
    assert distillations.evaluate(workdir, tmp_path, **ask) == rows
    with pytest.raises(ZeroDivisionError):
        distillations.evaluate(workdir, tmp_path, **ask | {"seed": 1})


def test_an_eps_teacher_is_clipped_where_it_says_nothing_of_x(monkeypatch):
    """At t = 1 alpha is 5e-5: what it errs in eps it errs 22,000 times in x."""
    value = teacher_config().unlock()
    value.diffusion.update(prediction_type="eps", precondition=False)
    model = build.build_model(value)
    params = noisy(model.init(jax.random.key(0)))
    frozen = {"teacher": params, "steps": np.int32(1), "late": np.float32(1)}
    batch = {"video": jnp.zeros((4, *model.shape)), "label": jnp.zeros((4, 4), int)}
    furthest = []

    def progressive_target(teacher, schedule, z, at, cond):
        x = teacher(z, schedules.noise_level_from_angle(at.start), cond).x
        furthest.append(float(jnp.abs(x).max()))
        return z

    monkeypatch.setattr(driver.distillation, "progressive_target", progressive_target)
    for limit in (0.0, 1.0):
        loss_fn = driver.progressive_distillation_loss(model, "snr", False, limit)
        loss_fn(params, frozen, batch, jax.random.key(1))
    assert furthest[0] > 1000 and furthest[1] == 1


def test_the_guidance_features_are_a_fourier_series():
    """Orthogonal over two ranges' length, and of the range's own scale."""
    from vdm_jax.conditions.encoder import guidance_embedding

    w = jnp.linspace(2.0, 10.0, 400, endpoint=False)  # a turn of the slowest
    found = np.asarray(guidance_embedding(w, 2.0, 4.0))
    np.testing.assert_allclose(found.T @ found / 200, np.eye(16), atol=1e-3)
    np.testing.assert_allclose(found, guidance_embedding(w / 2, 1.0, 2.0), atol=1e-5)


def test_train_makes_no_told_students(tmp_path):
    config = teacher_config()
    config.conditioning.guidance_range = (1.0, 2.0)
    with pytest.raises(UserError, match=r"only distill\.py"):
        train(config, tmp_path / "run")
