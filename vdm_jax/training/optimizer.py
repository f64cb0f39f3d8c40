"""Adam with warm-up and clipping, as optax parts; which parameters train is a table."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vdm_jax import sharding


def learning_rate(config) -> Callable[[jax.Array], jax.Array]:
    """Step -> rate: linear warm-up, then cosine to `final` times the peak.

    final = 1 keeps it constant, as the VDM configurations do.
    """
    decay = max(config.steps - config.warmup, 1)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.result_type(float))
        warm = jnp.minimum((step + 1) / max(config.warmup, 1), 1.0)
        progress = jnp.clip((step - config.warmup) / decay, 0.0, 1.0)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        share = config.final + (1 - config.final) * cosine
        return config.learning_rate * warm * share

    return rate


def optimizer(config) -> optax.GradientTransformation:
    """Clip, Adam, decoupled weight decay; without the rate, which the step applies.

    `config.trainable` is a table of (path pattern, bool): the first match decides.
    """
    adam = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay),
    )

    def labels(params):
        table = sharding.match(params, config.trainable, "train.trainable")
        return jax.tree.map(lambda trains: "train" if trains else "freeze", table)

    return optax.partition({"train": adam, "freeze": optax.set_to_zero()}, labels)
