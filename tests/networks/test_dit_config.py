"""configs/dit.py: the size of its variants, and updates of the smallest."""

from typing import Any

import jax
import numpy as np
import pytest

from configs import dit as config_file
from vdm_jax import build


@pytest.mark.parametrize("variant", ["", "v1", "v3"])
def test_variants_have_as_many_parameters(variant):
    config: Any = config_file.get_config(variant).unlock()
    config.data.update(mean=0.0, variance=1.0)
    model = build.build_model(config)
    assert model.shape == (8, 16, 16, 4)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert 1.5e6 < count < 1.65e6, count
