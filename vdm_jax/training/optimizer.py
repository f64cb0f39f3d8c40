"""Adam or Muon with warm-up and clipping; a table says which parameters train."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vdm_jax import migration, sharding
from vdm_jax.trees import named_leaves

LR_SCHEDULES = {
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def learning_rate(config) -> Callable[..., jax.Array]:
    """Return (step, steps) -> learning rate: linear warm-up, then a decay.

    The decay ends at `end_lr_fraction` times the peak; 1 keeps the rate constant, as
    the configurations of VDM do.

    config: the train section. steps: length of the run, config.steps by default; it may
    be traced.
    """

    def rate(step: jax.Array, steps: int | jax.Array = config.steps) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
        decay_steps = jnp.maximum(steps - config.warmup, 1)
        progress = jnp.clip((step - config.warmup) / decay_steps, 0.0, 1.0)
        decay = LR_SCHEDULES[config.lr_schedule](progress)
        end = config.end_lr_fraction
        return config.learning_rate * warm * (end + (1 - end) * decay)

    return rate


def make_optimizer(config) -> optax.GradientTransformationExtraArgs:
    """Return clipping, Adam or Muon, and decoupled weight decay, without learning rate.

    `make_step` applies the learning rate. config: the train section. Its `trainable` is
    a table of (path pattern, bool), of which the first match decides.
    """

    def labels(params):
        table = sharding.match_rules(params, config.trainable, "train.trainable")
        return jax.tree.map(lambda trains: "train" if trains else "freeze", table)

    train = optax.chain(
        clip_by_global_norm(config.grad_clip_norm),
        OPTIMIZERS[config.optimizer](config),
        optax.add_decayed_weights(config.weight_decay),
    )
    return optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Return optax.clip_by_global_norm with the order of sums of `global_norm`.

    Its update takes `norm`, that of the updates, where the caller knows it.
    """

    def update(updates, state, params=None, *, norm=None, **_):
        norm = global_norm(updates) if norm is None else norm
        below = jnp.squeeze(norm < max_norm)
        clipped = jax.tree.map(
            lambda u: jax.lax.select(below, u, (u / norm.astype(u.dtype)) * max_norm),
            updates,
        )
        return clipped, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def global_norm(tree) -> jax.Array:
    """Return the L2 norm over all leaves of a tree.

    Leaves are added in the order of their paths in version 0.1. A sum of floats depends
    on the order, and a run of that version must resume bit for bit.
    """

    named = named_leaves(tree)
    order = sorted(named, key=lambda name: migration.former_path(name).split("/"))
    return optax.tree.norm([named[name] for name in order])


def adam(config) -> optax.GradientTransformation:
    """Return Adam (Kingma & Ba 2015)."""
    return optax.scale_by_adam(b1=config.b1, b2=config.b2)


def muon(config) -> optax.GradientTransformation:
    """Return Muon for the kernels of linear maps and convolutions, Adam for the rest.

    The momentum of a kernel, as a matrix of inputs by outputs, is replaced by the
    nearest orthogonal matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
    It is scaled to the size of Adam's updates (Liu et al. 2025, arXiv:2502.16982,
    section 2.2), so that both use one learning rate.
    """

    def labels(params):
        return sharding.match_rules(params, KERNELS, "muon")

    def axes(kernels):
        def one(a):
            return contrib.MuonDimensionNumbers(tuple(range(a.ndim - 1)), a.ndim - 1)

        return jax.tree.map(one, kernels)

    def as_adam(update, _):
        fan_in, fan_out = update.size / update.shape[-1], update.shape[-1]
        return 0.2 * max(fan_in, fan_out) ** 0.5 * update

    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=MUON_BETA, weight_dimension_numbers=axes),
        optax.stateless_with_tree_map(as_adam),
    )
    return optax.partition({"matrix": orthogonal, "rest": adam(config)}, labels)


KERNELS = ((".*/kernel", "matrix"), (".*", "rest"))
MUON_BETA = 0.95
OPTIMIZERS = {"adam": adam, "muon": muon}
