"""What the network is told: dropping, open attributes, text pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.conditions.encoder import ConditioningEncoder


@pytest.fixture(scope="module")
def inputs():
    conditioner = ConditioningEncoder(
        dim=8, mlp_layers=1, cardinalities=(2, 3), text=True
    )
    cond = {
        "label": jnp.array([[0, 2], [1, 0]]),
        "text": jax.random.normal(jax.random.key(1), (2, 4, 5)),
        "text_mask": jnp.array([[True, True, False, False], [False] * 4]),
        "keep": {"label": jnp.ones(2, bool), "text": jnp.ones(2, bool)},
    }
    logsnr = jnp.array([-3.0, 2.0])
    params = conditioner.init(jax.random.key(0), logsnr, 3, cond)

    def of(**changes):
        keep = {**cond["keep"], **changes.pop("keep", {})}
        return conditioner.apply(params, logsnr, 3, {**cond, **changes, "keep": keep})

    return of


@pytest.fixture(scope="module")
def told(inputs):
    return lambda **changes: np.asarray(inputs(**changes).vector)


def test_a_dropped_label_is_not_seen(told):
    dropped = {"label": jnp.array([False, True])}
    other = told(keep=dropped, label=jnp.array([[1, 1], [1, 0]]))
    np.testing.assert_array_equal(told(keep=dropped), other)
    assert abs(told(keep=dropped)[0] - told()[0]).max() > 1e-3
    np.testing.assert_array_equal(told(keep=dropped)[1], told()[1])


def test_an_open_label_is_a_dropped_one(told):
    open_label = told(label=jnp.full((2, 2), -1))
    np.testing.assert_array_equal(open_label, told(keep={"label": jnp.zeros(2, bool)}))


def test_one_open_attribute_leaves_the_other(told):
    red = told(label=jnp.array([[0, -1], [0, -1]]))
    blue = told(label=jnp.array([[1, -1], [1, -1]]))
    assert abs(red - blue).max() > 1e-3


def test_padding_of_a_text_is_not_seen(told):
    text = jax.random.normal(jax.random.key(1), (2, 4, 5))
    changed = told(text=text.at[0, 2:].set(100.0))
    np.testing.assert_allclose(changed, told(), atol=1e-6)
    assert abs(told(text=text.at[0, 0].set(-text[0, 0])) - told()).max() > 1e-3


def test_an_empty_text_is_finite_and_null(told):
    assert np.isfinite(told()).all()
    dropped = told(keep={"text": jnp.zeros(2, bool)})
    np.testing.assert_array_equal(told()[1], dropped[1])  # its mask is all False


def test_a_dropped_text_is_not_seen(inputs):
    """Neither in the vector nor by who reads its tokens."""
    text = jax.random.normal(jax.random.key(2), (2, 4, 5))
    kept = {"text": jnp.array([False, True])}
    one, other = inputs(keep=kept), inputs(keep=kept, text=text)
    np.testing.assert_array_equal(one.vector[0], other.vector[0])
    assert not one.token_mask.any()  # of the first dropped, of the second empty
    assert inputs().token_mask.tolist() == [[True, True, False, False], [False] * 4]


def test_an_image_has_no_place_in_time():
    conditioner = ConditioningEncoder(dim=8, mlp_layers=0, frame_index=True)
    mask = jnp.array([[True, True, True, False, False]])
    cond = {"frame_mask": mask, "keep": {}}
    params = conditioner.init(jax.random.key(0), jnp.zeros(1), 5, cond)
    vector = np.asarray(conditioner.apply(params, jnp.zeros(1), 5, cond).vector)[0]
    np.testing.assert_array_equal(vector[3], vector[4])
    assert abs(vector[0] - vector[1]).max() > 1e-3
