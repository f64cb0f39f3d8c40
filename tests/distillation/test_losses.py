"""The losses of distillation, and the first parameters of a student with guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.distillation.cases import config, equal, noisy, teacher_config
from vdm_jax import build, runs
from vdm_jax import model as models
from vdm_jax.conditions import clean_frames
from vdm_jax.diffusion import process, schedules
from vdm_jax.distillation import losses, rounds
from vdm_jax.distillation.students import GUIDANCE_PARAMS
from vdm_jax.training import checks
from vdm_jax.training.init import start_from


def start_student(student, teacher):
    """Return the first parameters of a student with guidance."""
    expected = jax.eval_shape(student.init_params, jax.random.key(0))
    new = [GUIDANCE_PARAMS]
    return start_from(
        teacher, expected, lambda: student.init(jax.random.key(0)), "it", new
    )


def test_a_student_with_guidance_starts_equal_to_its_teacher(teacher):
    """At every weight and to the last bit: the embedding adds zero."""
    loaded = runs.load(teacher)
    one = rounds.plan_rounds(config().distill)[0]
    own = rounds.student_config(config(), loaded.config, one, "")
    largest = rounds.student_config(config(seed=2**32 - 1), loaded.config, one, "")
    checks.check_config(largest)  # the seed of every round is in range
    assert largest.seed != own.seed
    student = build.build_model(own)
    params = start_student(student, loaded.params)
    z = jax.random.normal(jax.random.key(1), (5, *student.shape))
    labels = {"label": jnp.array([[0, 1, 2, 1], [2, -1, 3, 0]] * 2 + [[-1] * 4])}
    level = schedules.noise_level_from_angle(jnp.linspace(0.1, 1.5, 5))
    cond = loaded.model.raw_conditions(labels)

    @functools.partial(jax.jit, static_argnums=0)
    def predict(model, params, cond):
        return model.denoiser(params)(z, level, cond)

    expected = predict(loaded.model, loaded.params, cond)
    for weight in (0.0, 1.3, 4.0):
        weighted = student.with_guidance_weight(cond, jnp.full(5, weight))
        found = predict(student, params, weighted)
        assert equal(tuple(found), tuple(expected))
    assert jnp.abs(expected.x).max() > 0.1


def test_the_guidance_loss_compares_with_both_branches(teacher):
    """At the start its value is the mean square of w (cond - uncond)."""
    loaded = runs.load(teacher)
    value = config(**{"distill.guidance_range": (2.9999, 3.0)})
    one = rounds.plan_rounds(value.distill)[0]
    own = rounds.student_config(value, loaded.config, one, "")
    own.unlock().conditioning.update(label_dropout=0.0, attribute_dropout=0.0)
    student = build.build_model(own)
    params = start_student(student, loaded.params)
    batch = {
        "video": np.random.default_rng(0).integers(
            0, 256, (16, *student.shape), np.uint8
        ),
        "label": np.tile(np.array([[0, 1, 2, 1]], np.int32), (16, 1)),
    }
    loss_fn = losses.guidance_distillation_loss(student, loaded.model, "snr_plus_one")
    aux_params = {"teacher": loaded.params}
    loss, _ = jax.jit(loss_fn)(params, aux_params, batch, jax.random.key(3))

    time_key, noise_key, _ = jax.random.split(jax.random.key(3), 3)
    t = (jax.random.uniform(time_key, ()) + jnp.arange(16) / 16) % 1.0
    level = schedules.noise_level(student.schedule, t)
    x = jnp.asarray(batch["video"]) / 127.5 - 1
    z = process.diffuse(x, jax.random.normal(noise_key, x.shape), level)
    cond = loaded.model.raw_conditions({"label": jnp.asarray(batch["label"])})

    @jax.jit
    def v_of(cond):
        return process.velocity(
            loaded.model.denoiser(loaded.params)(z, level, cond), level
        )

    v = v_of(cond), v_of(loaded.model.unconditional(cond))
    np.testing.assert_allclose(loss, 4 * jnp.square(v[0] - v[1]).mean(), rtol=1e-3)


class KnownPoint:
    """A model of data that are a single point, given by its condition and the weight.

    x = params * label where the label is kept and params * 0.3 where it is dropped.
    With a guidance weight x is the guided combination. Two steps of DDIM end where one
    does.
    """

    schedule = schedules.Cosine()
    with_guidance_weight = models.DiffusionModel.with_guidance_weight

    def __init__(self, weight_range=()):
        self.guidance_range = tuple(weight + 1 for weight in weight_range)

    def unconditional(self, cond):
        return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}

    def prepare_batch(self, batch, key, codec_params):
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


@pytest.mark.parametrize("kind", ["guidance", "steps at a weight", "steps"])
def test_a_student_that_equals_its_teacher_has_no_loss(kind, x64):
    """At every weight, dropped or not: both get the same conditions and weight.

    A student whose x is too large by a fraction has that fraction of x, squared, as its
    loss. Its mean over the weights shows that they come from the whole range. The
    teacher's parameters have no gradient.
    """
    low, high = weights = (1.0, 4.0)
    batch = jax.tree.map(lambda a: a.astype(float), BATCH)
    if kind == "guidance":
        student = KnownPoint(weights)
        loss_fn = losses.guidance_distillation_loss(student, KnownPoint(), "constant")
    else:
        student = KnownPoint(weights if kind == "steps at a weight" else ())
        loss_fn = losses.progressive_distillation_loss(student, "constant", False)

    def total_loss(params, teacher, n):
        """Return the sum over twenty draws, and each of them."""
        aux_params = {"teacher": teacher, "steps": n, "time_power": 1.0}
        keys = jax.random.split(jax.random.key(0), 20)
        each = jax.vmap(lambda key: loss_fn(params, aux_params, batch, key)[0])(keys)
        return each.sum(), each

    both = jax.jit(jax.value_and_grad(total_loss, (0, 1), has_aux=True))
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


def test_an_eps_teacher_is_clipped_where_alpha_is_near_zero(monkeypatch):
    """At t = 1 alpha is 5e-5: an error of eps is 22,000 times as large in x."""
    value = teacher_config().unlock()
    value.diffusion.update(prediction_type="eps", precondition=False)
    model = build.build_model(value)
    params = noisy(model.init(jax.random.key(0)))
    aux_params = {"teacher": params, "steps": np.int32(1), "time_power": np.float32(1)}
    batch = {"video": jnp.zeros((4, *model.shape)), "label": jnp.zeros((4, 4), int)}
    furthest = []

    def progressive_target(teacher, schedule, z, at, cond):
        x = teacher(z, schedules.noise_level_from_angle(at.start), cond).x
        furthest.append(float(jnp.abs(x).max()))
        return z

    monkeypatch.setattr(losses.distillation, "progressive_target", progressive_target)
    for limit in (0.0, 1.0):
        loss_fn = losses.progressive_distillation_loss(model, "snr", False, limit)
        loss_fn(params, aux_params, batch, jax.random.key(1))
    assert furthest[0] > 1000 and furthest[1] == 1


@pytest.mark.parametrize("given", [True, False])
def test_given_frames_have_no_loss_of_distillation(monkeypatch, given):
    """Where all frames are given there is none, and no gradient."""
    mask = {"all": lambda key, frames, count: jnp.full(frames, given)}
    monkeypatch.setattr(clean_frames, "MASKS", mask)
    value = teacher_config()
    value.conditioning.clean_frames = (("all", 1.0),)
    model = build.build_model(value)
    params = noisy(model.init(jax.random.key(0)))
    loss_fn = losses.progressive_distillation_loss(model, "snr_plus_one", False)
    video = jax.random.randint(jax.random.key(0), (2, *model.video_shape), 0, 256)
    batch = {"video": video.astype(jnp.uint8), "label": jnp.zeros((2, 4), jnp.int32)}
    aux_params = {"teacher": noisy(params), "steps": jnp.int32(4), "time_power": 1.0}

    @jax.jit
    def gradient(params):
        loss = lambda p: loss_fn(p, aux_params, batch, jax.random.key(2))[0]  # noqa: E731
        return jax.value_and_grad(loss)(params)

    loss, grads = gradient(params)
    largest = max(float(abs(g).max()) for g in jax.tree.leaves(grads))
    assert (loss == largest == 0) if given else min(loss, largest) > 1e-5
