"""A small teacher and configs of its distillation."""

import jax

from configs import distill_shapes, shapes
from vdm_jax import runs

UPDATES = 4


def teacher_config():
    """Return the smallest network with every condition; it compiles in seconds."""
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
    value.train.ema_decay = 0.9  # so that the average differs from the parameters
    value.update_from_flattened_dict(changes)
    return value.lock()


def last(workdir):
    return runs.load(workdir).params


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))
