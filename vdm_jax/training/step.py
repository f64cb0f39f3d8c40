"""The training loss and one update: what runs on the devices, once per batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vdm_jax.diffusion import losses, schedules
from vdm_jax.model import DiffusionModel
from vdm_jax.sharding import path_name
from vdm_jax.training.state import TrainState

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict]]


def make_loss(model: DiffusionModel, weighting: str) -> LossFn:
    """The diffusion loss of a batch: one noise level a video (VDM, section 2)."""

    def loss_fn(params, frozen, batch, key):
        del frozen
        time_key, noise_key, drop_key, dropout_key = jax.random.split(key, 4)
        x, cond = model.prepare_batch(batch, drop_key)
        t = losses.stratified_times(time_key, x.shape[0], x.dtype)
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        step = schedules.noise_level(model.training_schedule, t)
        denoise = model.denoiser(params, dropout_key)
        loss, _ = losses.diffusion_loss(denoise, x, eps, step, cond, weighting)
        return loss.mean(), {}

    return loss_fn


def init_state(params, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    """Step 0. The EMA starts as a real copy: a donated buffer may appear only once."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def gradients(loss_fn: LossFn, params, aux_params, batch, key, grad_accum_steps: int):
    """Loss, metrics and gradients, averaged over `accumulate` parts of the batch."""
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if grad_accum_steps == 1:
        (loss, metrics), grads = grad_fn(params, aux_params, batch, key)
        return loss, metrics, grads

    def part(a):
        # Every k-th example, so that each device's share of the batch stays on it.
        return jnp.swapaxes(a.reshape(-1, grad_accum_steps, *a.shape[1:]), 0, 1)

    def add(total, xs):
        one_batch, one_key = xs
        out = grad_fn(params, aux_params, one_batch, one_key)
        return jax.tree.map(lambda a, b: a + b / grad_accum_steps, total, out), None

    keys = jax.random.split(key, grad_accum_steps)
    batches = jax.tree.map(part, batch)
    first = jax.tree.map(lambda a: a[0], (batches, keys))
    shapes = jax.eval_shape(grad_fn, params, aux_params, *first)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # XLA's CPU compiler has no fast form of a kernel's gradient inside of a loop: 16
    # times the time of a step.
    unroll = grad_accum_steps if jax.default_backend() == "cpu" else 1
    parts = (batches, keys)
    ((loss, metrics), grads), _ = jax.lax.scan(add, zero, parts, unroll=unroll)
    return loss, metrics, grads


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    lr_fn: Callable[..., jax.Array],
    ema_decay: float,
    grad_accum_steps: int = 1,
):
    """One update: (state, frozen, batch, key) -> (state, metrics).

    `rate(step, frozen)` gives the learning rate. A non-finite loss or gradient leaves
    everything but the two counters as it was. The EMA's decay grows to `ema` as
    (1 + step) / (10 + step), so that a short run is not averaged with its start.
    """

    def step(state: TrainState, frozen, batch, key):
        key = jax.random.fold_in(key, state.step)
        loss, metrics, grads = gradients(
            loss_fn, state.params, frozen, batch, key, grad_accum_steps
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        lr = lr_fn(state.step, frozen)

        def updated(state):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
            averaged = state.ema
            if state.ema is not None:
                decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
                averaged = jax.tree.map(
                    lambda e, p: p + decay.astype(p.dtype) * (e - p), state.ema, params
                )
            return params, averaged, opt_state

        # A branch: choosing leaf by leaf makes XLA copy every donated buffer first.
        def kept(state):
            return state.params, state.ema, state.opt_state

        new = jax.lax.cond(finite, updated, kept, state)
        state = TrainState(state.step + 1, *new, skipped=state.skipped + ~finite)
        scalars = {"loss": loss, "grad_norm": norm, "learning_rate": lr}
        return state, {**scalars, **metrics, "finite": finite}

    return step


def first_non_finite(loss_fn: LossFn, params, aux_params, batch, key) -> str | None:
    """The first tensor of a step that is not finite: batch, parameters, loss, gradient.

    `key` is the run's key folded with the step that failed. Run only after one did.
    """

    def check(tree, what: str) -> str | None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
                return f"{what} {path_name(path)}".strip()
        return None

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, _), grads = grad_fn(params, aux_params, batch, key)
    return (
        check(batch, "batch")
        or check(params, "parameter")
        or check(loss, "the loss")
        or check(grads, "gradient of")
    )
