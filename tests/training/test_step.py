"""One update: accumulation, skipping, averaging, freezing, the rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.base import base
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.conditions.text import Text
from vdm_jax.diffusion import schedules
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel
from vdm_jax.training import optimizer, step


def loss_fn(params, aux_params, batch, key):
    """Least squares: its gradient is known."""
    error = batch["x"] @ params["w"] - batch["y"] * params["scale"]
    return (error**2).mean(), {"error": abs(error).mean()}


def problem(n=8):
    x = jax.random.normal(jax.random.key(1), (n, 3))
    return {"x": x, "y": jnp.ones(n)}


def params():
    return {"w": jnp.array([1.0, 2.0, 3.0]), "scale": jnp.ones(())}


def train_config(**changes) -> ConfigDict:
    config = base().train
    config.update(grad_clip_norm=1e9, weight_decay=0.0, **changes)
    return config


def updated(batch, *, ema=0.9, accumulate=1, steps=1, tx=None):
    tx = tx or optimizer.make_optimizer(train_config())
    state = step.init_state(params(), tx, ema > 0)
    update = jax.jit(
        step.make_step(loss_fn, tx, lambda *_: jnp.asarray(0.1), ema, accumulate)
    )
    for _ in range(steps):
        state, metrics = update(state, {}, batch, jax.random.key(0))
    return state, metrics


def test_the_first_adam_step_is_the_sign_of_the_gradient():
    state, metrics = updated(problem())
    grads = jax.grad(lambda p: loss_fn(p, {}, problem(), None)[0])(params())
    for name, grad in grads.items():
        expected = params()[name] - 0.1 * jnp.sign(grad)
        np.testing.assert_allclose(state.params[name], expected, atol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads))


def test_adam_is_that_of_kingma_and_ba():
    """Algorithm 1 in NumPy, of gradients that turn and grow."""
    config = train_config(b1=0.8, b2=0.9)
    grads = np.array([[1.0, -2.0], [-3.0, 0.5], [4.0, 7.0]])
    tx = optimizer.adam(config)
    state = tx.init(jnp.zeros(2))
    m, v = np.zeros(2), np.zeros(2)
    for n, g in enumerate(grads, 1):
        update, state = tx.update(jnp.asarray(g), state)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        expected = m / (1 - 0.8**n) / np.sqrt(v / (1 - 0.9**n))
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_accumulation_is_the_whole_batch():
    whole, parts = (
        updated(problem(), steps=3),
        updated(problem(), accumulate=4, steps=3),
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def noisy_loss(params, aux_params, batch, key):
    """Return the noise as metrics: mean and mean square over the parts of a batch."""
    noise = jax.random.uniform(key)
    return noise * params["w"].sum(), {"noise": noise, "square": noise**2}


def noises(key, accumulate=1, steps=3):
    """Return (mean, mean square) of the noise of each step of a run."""
    tx = optimizer.make_optimizer(train_config())
    state = step.init_state(params(), tx, False)
    update = jax.jit(
        step.make_step(noisy_loss, tx, lambda *_: jnp.asarray(0.1), 0, accumulate)
    )
    found = []
    for _ in range(steps):
        state, metrics = update(state, {}, problem(), key)
        found.append((metrics["noise"], metrics["square"]))
    return np.array(found)


def test_every_step_of_every_seed_has_noise_of_its_own():
    """Its key is the key of the run folded with the step, as `diagnose` expects."""
    runs = [noises(key)[:, 0] for key in jax.random.split(jax.random.key(7))]
    assert len(np.unique(runs)) == 6
    folded = [
        jax.random.fold_in(jax.random.split(jax.random.key(7))[0], i) for i in range(3)
    ]
    np.testing.assert_array_equal(runs[0], [jax.random.uniform(key) for key in folded])


def test_every_part_of_an_accumulated_batch_has_noise_of_its_own():
    """So the noises of the parts vary like those of independent batches."""
    mean, square = noises(jax.random.key(0), accumulate=8).T
    assert (square - mean**2 > 0.01).all()  # a uniform has 1/12; equal ones have 0
    assert len(np.unique(mean)) == 3


class Silent:
    """A network or conditioning encoder that returns 0; a network draws dropout."""

    def apply(self, variables, first, *more, rngs=None):
        dropped = 0 if rngs is None else jax.random.normal(rngs["dropout"], first.shape)
        return 0 * (first + dropped)


class Noise(schedules.Cosine):
    """A schedule where all is noise: there v = -x."""

    def angle(self, t):
        return jnp.full(t.shape, jnp.pi / 2)


def test_the_loss_draws_each_noise_with_a_key_of_its_own_on_training_s_schedule():
    """By JAX's check of key reuse, for a model that draws all kinds of noise."""
    model = DiffusionModel(
        Silent(),  # type: ignore[arg-type]
        Silent(),  # type: ignore[arg-type]
        schedules.Cosine(),
        Noise(),
        (4, 4, 4, 3),
        conditions=(
            ("label", Label((("a", "b"),), dropout=0.5, attribute_dropout=0.5)),
            ("text", Text(dim=2, dropout=0.5)),
            (
                "low_resolution",
                LowResolution("ssr", 2, shape=(4, 8, 8, 3), train_crop=(4, 4)),
            ),
        ),
    )
    batch = {
        "video": jnp.full((2, 4, 8, 8, 3), 51, jnp.uint8),  # -.6
        "label": jnp.zeros((2, 1), jnp.int32),
        "text": jnp.zeros((2, 1, 2)),
        "text_mask": jnp.ones((2, 1), bool),
    }
    loss_fn = jax.jit(step.make_loss(model, "snr_plus_one"))
    with jax.debug_key_reuse(True):
        loss, _ = loss_fn(
            {"network": {}, "conditioning_encoder": {}}, {}, batch, jax.random.key(0)
        )
    np.testing.assert_allclose(loss, 0.36, rtol=1e-5)


def test_a_non_finite_update_changes_nothing_and_is_counted():
    bad = problem() | {"y": jnp.full(8, jnp.nan)}
    state, metrics = updated(bad)
    assert not metrics["finite"]
    assert (state.step, state.skipped) == (1, 1)
    for a, b in zip(
        jax.tree.leaves(params()), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))
    good, _ = updated(problem())
    assert good.skipped == 0


def test_a_gradient_that_is_not_finite_is_enough():
    """As for sqrt at 0, whose value is finite."""

    def loss_fn(params, aux_params, batch, key):
        return jnp.sqrt(params["w"]).sum(), {}

    tx = optimizer.make_optimizer(train_config())
    state = step.init_state({"w": jnp.zeros(2)}, tx, True)
    update = jax.jit(step.make_step(loss_fn, tx, lambda *_: jnp.asarray(0.1), 0.9))
    state, metrics = update(state, {}, problem(), jax.random.key(0))
    assert metrics["loss"] == 0 and not metrics["finite"]
    assert state.skipped == 1 and (state.params["w"] == 0).all()


def test_the_first_non_finite_tensor_is_named():
    key = jax.random.key(0)
    bad = problem() | {"y": jnp.full(8, jnp.nan)}
    assert step.diagnose(loss_fn, params(), {}, bad, key) == "batch y"
    broken = params() | {"w": jnp.array([jnp.inf, 0, 0])}
    named = step.diagnose(loss_fn, broken, {}, problem(), key)
    assert named == "parameter w"
    large = params() | {"w": jnp.full(3, 1e30)}
    assert step.diagnose(loss_fn, large, {}, problem(), key) == "the loss"
    assert step.diagnose(loss_fn, params(), {}, problem(), key) is None


def test_the_average_is_a_moving_one():
    """The decay grows as (1 + n) / (10 + n): checked by the same recursion in NumPy."""
    tx = optimizer.make_optimizer(train_config())
    state = step.init_state(params(), tx, True)
    update = jax.jit(step.make_step(loss_fn, tx, lambda *_: jnp.asarray(0.1), 0.15))
    average = np.asarray(params()["w"])
    for n in range(4):
        state, _ = update(state, {}, problem(), jax.random.key(0))
        decay = min(0.15, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)
    assert updated(problem(), ema=0)[0].ema is None


def test_frozen_parameters_stay_and_unmatched_ones_are_named():
    table = (("w", False), (".*", True))
    tx = optimizer.make_optimizer(train_config(trainable=table))
    state, _ = updated(problem(), tx=tx, steps=2)
    np.testing.assert_array_equal(state.params["w"], params()["w"])
    assert state.params["scale"] != params()["scale"]
    with pytest.raises(UserError, match="scale"):
        optimizer.make_optimizer(train_config(trainable=(("w", True),))).init(params())


def test_the_rate_warms_up_and_decays():
    rate = optimizer.learning_rate(
        train_config(steps=110, warmup=10, learning_rate=2.0, end_lr_fraction=0.1)
    )
    np.testing.assert_allclose(rate(0), 0.2, rtol=1e-6)
    np.testing.assert_allclose(rate(9), 2.0, rtol=1e-6)
    np.testing.assert_allclose(rate(60), 1.1, rtol=1e-6)
    np.testing.assert_allclose(rate(110), 0.2, rtol=1e-6)
    constant = optimizer.learning_rate(train_config(steps=110, warmup=10))
    np.testing.assert_allclose(constant(100), constant(50))


def test_every_update_has_the_rate_of_its_own_step():
    """Tested by a loss with gradient 1 and an optimiser that changes nothing."""

    def loss_fn(params, aux_params, batch, key):
        return params, {}

    tx = optax.identity()
    state = step.init_state(jnp.zeros(()), tx, False)
    rate = lambda step, aux_params: aux_params["first"] + step  # noqa: E731
    update = jax.jit(step.make_step(loss_fn, tx, rate, 0))
    for moved, own in zip((2, 5, 9), (2, 3, 4), strict=True):
        state, metrics = update(state, {"first": 2.0}, {}, jax.random.key(0))
        assert (state.params, metrics["learning_rate"]) == (-moved, own)


def test_weight_decay_is_decoupled():
    """Without a gradient, Adam changes nothing and only the decay shrinks w."""
    config = train_config()
    config.weight_decay = 0.5
    tx = optimizer.make_optimizer(config)
    still = {"x": jnp.zeros((8, 3)), "y": jnp.zeros(8)}
    state, _ = updated(still, tx=tx)
    np.testing.assert_allclose(state.params["w"], params()["w"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_what_the_optimiser_sees_is_clipped(name):
    """It is clipped before normalisation, by the norm over all that trains.

    Compared with the optimiser alone on gradients that are clipped by hand. The size of
    the update does not change, but a spike counts no more than `grad_clip_norm`.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    tree = {"a/kernel": jnp.ones((4, 3)), "b": jnp.ones(3), "frozen": jnp.ones(2)}
    table = (("frozen", False), (".*", True))
    config = train_config(optimizer=name, trainable=table)
    config.grad_clip_norm = 0.02
    tx, plain = optimizer.make_optimizer(config), optimizer.OPTIMIZERS[name](config)
    state = tx.init(tree)
    trained = {k: v for k, v in tree.items() if k != "frozen"}
    plain_state = plain.init(trained)
    for key, size in zip(keys, (1e3, 1e-4, 1.0), strict=True):
        parts = dict(zip(tree, jax.random.split(key, 3), strict=True))
        grads = {
            k: size * jax.random.normal(parts[k], v.shape) for k, v in tree.items()
        }
        grads["frozen"] *= 1e3
        updates, state = tx.update(grads, state, tree)
        norm = np.sqrt(sum((grads[k] ** 2).sum() for k in trained))
        clipped = {k: grads[k] * min(1, 0.02 / norm) for k in trained}
        expected, plain_state = plain.update(clipped, plain_state, trained)
        for k in trained:
            np.testing.assert_allclose(updates[k], expected[k], rtol=1e-4, atol=1e-6)
        assert not updates["frozen"].any()


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_the_first_muon_step_is_the_polar_factor_of_a_kernel_and_adam_s_of_the_rest(
    shape,
):
    """Compared by singular vectors; the singular values are only near 1."""
    tree = {"out": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(4)}}
    grads = {
        "out": {
            "kernel": jax.random.normal(jax.random.key(0), shape),
            "bias": jnp.array([3.0, -2.0, 1.0, -0.1]),
        }
    }
    tx = optimizer.make_optimizer(train_config(optimizer="muon"))
    updates, _ = tx.update(grads, tx.init(tree), tree)
    np.testing.assert_allclose(
        updates["out"]["bias"], jnp.sign(grads["out"]["bias"]), atol=1e-4
    )
    gradient, update = (
        np.asarray(t["out"]["kernel"]).reshape(-1, shape[-1]) for t in (grads, updates)
    )
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    turned = u.T @ update @ vt.T / (0.2 * max(gradient.shape) ** 0.5)
    diagonal = np.diagonal(turned)
    np.testing.assert_allclose(turned, np.diag(diagonal), atol=1e-3)
    assert (abs(diagonal - 1) < 0.4).all(), diagonal


def test_frozen_parameters_have_no_gradient_and_cost_none():
    """The others' gradients are as they are without freezing."""

    def two_layers(params, aux_params, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["first"]["w"])
        return (jnp.tanh(hidden @ params["last"]["w"]) ** 2).mean(), {}

    tree = {
        name: {"w": jax.random.normal(jax.random.key(i), (64, 64))}
        for i, name in enumerate(("first", "last"))
    }
    batch, flops, grads = {"x": jnp.ones((32, 64))}, [], []
    for trainable in ([(".*", True)], [("last/.*", True), (".*", False)]):
        loss = step.stop_frozen_gradients(two_layers, trainable)
        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(tree, {}, batch, None)
        compiled = compiled.compile()
        flops.append(compiled.cost_analysis()["flops"])
        grads.append(compiled(tree, {}, batch, None)[0])
    assert not grads[1]["first"]["w"].any() and grads[0]["first"]["w"].any()
    np.testing.assert_allclose(grads[1]["last"]["w"], grads[0]["last"]["w"], rtol=1e-5)
    assert flops[1] < 0.7 * flops[0]  # 3 products of 5
