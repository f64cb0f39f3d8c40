"""Adam or Muon with warm-up and clipping, as optax parts; what trains is a table."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vdm_jax import sharding

LR_SCHEDULES = {
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def learning_rate(config) -> Callable[..., jax.Array]:
    """(step, steps) -> rate: linear warm-up, then a decay to `final` times the peak.

    steps: of the run, config.steps unless told; may be traced. final = 1 keeps the rate
    constant, as the VDM configurations do.
    """

    def rate(step: jax.Array, steps: int | jax.Array = config.steps) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
        decay = jnp.maximum(steps - config.warmup, 1)
        progress = jnp.clip((step - config.warmup) / decay, 0.0, 1.0)
        left = LR_SCHEDULES[config.decay](progress)
        share = config.final + (1 - config.final) * left
        return config.learning_rate * warm * share

    return rate


def make_optimizer(config) -> optax.GradientTransformation:
    """Clip, Adam or Muon, decoupled weight decay; without the rate (the step's).

    `config.trainable` is a table of (path pattern, bool): the first match decides.
    """

    def labels(params):
        table = sharding.match_rules(params, config.trainable, "train.trainable")
        return jax.tree.map(lambda trains: "train" if trains else "freeze", table)

    train = optax.chain(
        optax.clip_by_global_norm(config.clip),
        OPTIMIZERS[config.optimizer](config),
        optax.add_decayed_weights(config.weight_decay),
    )
    return optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)


def adam(config) -> optax.GradientTransformation:
    """Kingma & Ba 2015."""
    return optax.scale_by_adam(b1=config.b1, b2=config.b2)


def muon(config) -> optax.GradientTransformation:
    """Muon for the kernels of linear maps and convolutions, Adam for all else.

    The momentum of a kernel, as a matrix of inputs by outputs, is replaced by the
    nearest orthogonal one (Jordan et al. 2024, kellerjordan.github.io/posts/muon), at
    the size that Adam's updates have (Liu et al. 2025, arXiv:2502.16982, section 2.2):
    one learning rate serves both.
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
