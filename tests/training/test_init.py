"""Starting from another model: what is absent starts new, wider kernels read zeros."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.training import trainer
from vdm_jax.training.init import start_from

LOADED = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"bias": jnp.full(3, 2.0)}}
NEW = {"a": {"kernel": jnp.full((4, 3), 7.0)}, "b": {"bias": jnp.zeros(3)}}
MORE = NEW | {"time_c": {"scale": jnp.full(5, 9.0)}}


def start(wanted, new=(), widen=()):
    expected = jax.eval_shape(lambda: wanted)
    return start_from(LOADED, expected, lambda: wanted, "other", new, widen)


def test_equal_trees_are_taken_as_they_are():
    made = start(LOADED)
    assert made["b"]["bias"] is LOADED["b"]["bias"]


def test_absent_leaves_keep_their_start_and_wider_kernels_read_zeros():
    made = start(MORE, new=("time.*",), widen=("a/kernel",))
    np.testing.assert_array_equal(made["time_c"]["scale"], np.full(5, 9.0))
    np.testing.assert_array_equal(made["a"]["kernel"], [[1] * 3] * 2 + [[0] * 3] * 2)
    np.testing.assert_array_equal(made["b"]["bias"], np.full(3, 2.0))
    x = jnp.array([1.0, 2.0, 5.0, -3.0])
    np.testing.assert_allclose(x @ made["a"]["kernel"], x[:2] @ LOADED["a"]["kernel"])


@pytest.mark.parametrize(
    "wanted, new, widen, message",
    [
        (MORE, (), ("a/kernel",), "time_c/scale: here float32.5., there absent"),
        (MORE, ("time",), ("a/kernel",), "time_c/scale"),  # a whole path, no part
        (NEW, (), (), "a/kernel: here float32.4, 3., there float32.2, 3."),
        ({"a": LOADED["a"]}, (), (), "b/bias: here absent"),
        ({"a": {"kernel": jnp.ones((1, 3))}, "b": NEW["b"]}, (), ("a.*",), "a/kernel"),
        ({"a": {"kernel": jnp.ones((4, 4))}, "b": NEW["b"]}, (), ("a.*",), "a/kernel"),
    ],
)
def test_what_no_pattern_allows_is_named(wanted, new, widen, message):
    with pytest.raises(UserError, match=f"other holds another model .*{message}"):
        start(wanted, new, widen)


@pytest.mark.parametrize("on_device", [True, False])
def test_a_state_is_a_copy_of_its_parameters(on_device):
    """It is donated, and updated in place, while the parameters stay valid."""
    expected = np.arange(64.0 * 1024, dtype=np.float32)
    params: Any = jax.device_put(expected) if on_device else expected.copy()
    placement = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    state = add(trainer._copy_to(params, placement))
    np.testing.assert_array_equal(state, expected + 1)
    np.testing.assert_array_equal(params, expected)
