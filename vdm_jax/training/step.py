"""The state of a run, the diffusion loss, and one update of the parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vdm_jax import sharding
from vdm_jax.conditions.base import Cond
from vdm_jax.conditions.clean_frames import frame_weight
from vdm_jax.diffusion import losses, schedules
from vdm_jax.model import DiffusionModel
from vdm_jax.training.optimizer import global_norm
from vdm_jax.trees import first_non_finite

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, dict]]


@flax.struct.dataclass
class TrainState:
    """What a run carries from step to step, and all that a checkpoint must hold.

    Parameters, their average, optimiser state and counters.

    step, skipped: int32 []. ema: like params, or None where no average is kept.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    skipped: jax.Array  # updates left out because loss or gradient was not finite

    @property
    def eval_params(self) -> Any:
        """Parameters to sample and evaluate with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def make_loss(model: DiffusionModel, weighting: str) -> LossFn:
    """Return the diffusion loss of a batch, with one noise level per video (VDM, 2).

    Of packed buffers it is the mean over the tokens of each. The loss reads
    aux_params["codec"] where the codec has parameters.
    """

    def loss_fn(params, aux_params, batch, key):
        time_key, noise_key, drop_key, dropout_key = jax.random.split(key, 4)
        codec_params = aux_params.get("codec")
        x, cond = model.prepare_batch(batch, drop_key, codec_params=codec_params)
        schedule = model.training_schedule
        t = draw_times(schedule, time_key, x, cond)
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        level = schedules.noise_level(schedule, t)
        denoise = model.denoiser(params, dropout_key)
        loss = losses.diffusion_loss(
            denoise, x, eps, level, cond, weighting, frame_weight(cond)
        )
        return loss.mean(), {}

    return loss_fn


def draw_times(
    schedule: schedules.Schedule, key: jax.Array, x: jax.Array, cond: Cond
) -> jax.Array:
    """Draw the time of each clip [b], or in packed buffers of each token [b, n]."""
    if (packing := cond.get("packing")) is None:
        return schedule.training_times(key, x.shape[0], x.dtype)
    t = schedule.training_times(key, packing.frames.size, x.dtype)
    return packing.to_tokens(t.reshape(packing.frames.shape))


def stop_frozen_gradients(
    loss_fn: LossFn, trainable: Sequence[tuple[str, bool]]
) -> LossFn:
    """Return the loss without gradients of frozen parameters, which are not computed.

    trainable: (path pattern, bool), of which the first match decides.
    """
    if all(trains for _, trains in trainable):
        return loss_fn

    def stopped(params, *others):
        table = sharding.match_rules(params, trainable, "train.trainable")
        params = jax.tree.map(
            lambda p, trains: p if trains else jax.lax.stop_gradient(p), params, table
        )
        return loss_fn(params, *others)

    return stopped


def init_state(params, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    """Return the state of step 0.

    The EMA starts as a copy: a buffer that is donated may appear only once.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def gradients(loss_fn: LossFn, params, aux_params, batch, key, grad_accum_steps: int):
    """Return loss, metrics and gradients, means over the parts of a batch.

    grad_accum_steps: number of parts, which are evaluated one after another.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if grad_accum_steps == 1:
        (loss, metrics), grads = grad_fn(params, aux_params, batch, key)
        return loss, metrics, grads

    def part(a):
        # Every k-th example: each device keeps its examples of the batch.
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
    # XLA's CPU compiler has no fast form of a kernel's gradient within a loop: a step
    # takes 16 times as long.
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
    """Return one update: (state, aux_params, batch, key) -> (state, metrics).

    The loss reads aux_params["step"], the number of finished updates. A loss or
    gradient that is not finite changes nothing but the two counters.

    Args:
      lr_fn: (step, aux_params) -> learning rate.
      ema_decay: the decay grows to it as (1 + step) / (10 + step), so that the average
        of a short run does not contain its start.
      grad_accum_steps: see `gradients`.
    """

    def step(state: TrainState, aux_params, batch, key):
        key = jax.random.fold_in(key, state.step)
        read = {**(aux_params or {}), "step": state.step}
        loss, metrics, grads = gradients(
            loss_fn, state.params, read, batch, key, grad_accum_steps
        )
        norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        lr = lr_fn(state.step, aux_params)

        def updated(state):
            # The norm of all gradients is that of the trained ones: others are zero.
            return apply_gradients(state, grads, tx, lr, ema_decay, norm)

        # With a select for each leaf, XLA would copy every donated buffer first.
        def unchanged(state):
            return state.params, state.ema, state.opt_state

        new = jax.lax.cond(finite, updated, unchanged, state)
        state = TrainState(state.step + 1, *new, skipped=state.skipped + ~finite)
        scalars = {"loss": loss, "grad_norm": norm, "learning_rate": lr}
        return state, {**scalars, **metrics, "finite": finite}

    return step


def apply_gradients(
    state: TrainState,
    grads,
    tx: optax.GradientTransformation,
    lr: float | jax.Array,
    ema_decay: float,
    norm: jax.Array | None = None,
):
    """Return parameters, average and optimiser state after an update by gradients.

    norm: of the gradients, where it is known.
    """
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, norm=norm)
    params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
    averaged = state.ema
    if state.ema is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        averaged = jax.tree.map(
            lambda e, p: p + decay.astype(p.dtype) * (e - p), state.ema, params
        )
    return params, averaged, opt_state


def diagnose(loss_fn: LossFn, params, aux_params, batch, key) -> str | None:
    """Return the name of the first tensor of a step that is not finite, or None.

    Batch, parameters, loss and gradients are checked in this order.

    key: the key of the run, folded with the step that failed.
    """

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, _), grads = grad_fn(params, aux_params, batch, key)
    trees = {"batch": batch, "parameter": params, "the loss": loss}
    for what, tree in (trees | {"gradient of": grads}).items():
        if (name := first_non_finite(tree)) is not None:
            return f"{what} {name}".strip()
    return None
