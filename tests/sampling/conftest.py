"""The smallest model, with parameters that do something."""

import jax
import pytest

from configs import shapes
from vdm_jax import build

ATTRIBUTES = (("a", "b", "c"), ("x", "y"))


@pytest.fixture(scope="session")
def trained():
    """A model whose output is not zero: noise on its fresh parameters."""
    config = shapes.get_config("smoke").unlock()
    config.data.update(label_vocabulary=ATTRIBUTES, mean=-0.3, variance=0.2)
    model = build.build_model(config)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape, p.dtype),
        model.init(jax.random.key(0)),
    )
    return model, params
