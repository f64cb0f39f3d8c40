"""Condition dropout, unknown attributes and text pooling of the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.conditions.base import condition_key
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.frame_index import FrameIndex
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.text import Text


@pytest.fixture(scope="module")
def inputs():
    rows = ("label", Label((("a", "b"), ("x", "y", "z")))), ("text", Text(dim=5))
    encoder = ConditioningEncoder(dim=8, mlp_layers=1, conditions=rows)
    cond = {
        "label": jnp.array([[0, 2], [1, 0]]),
        "text": jax.random.normal(jax.random.key(1), (2, 4, 5)),
        "text_mask": jnp.array([[True, True, False, False], [False] * 4]),
        "keep": {"label": jnp.ones(2, bool), "text": jnp.ones(2, bool)},
    }
    logsnr = jnp.array([-3.0, 2.0])
    params = encoder.init(jax.random.key(0), logsnr, 3, cond)

    def encode(**changes):
        keep = {**cond["keep"], **changes.pop("keep", {})}
        return encoder.apply(params, logsnr, 3, {**cond, **changes, "keep": keep})

    return encode


@pytest.fixture(scope="module")
def vector(inputs):
    return lambda **changes: np.asarray(inputs(**changes).vector)


def test_a_dropped_label_has_no_effect(vector):
    dropped = {"label": jnp.array([False, True])}
    other = vector(keep=dropped, label=jnp.array([[1, 1], [1, 0]]))
    np.testing.assert_array_equal(vector(keep=dropped), other)
    assert abs(vector(keep=dropped)[0] - vector()[0]).max() > 1e-3
    np.testing.assert_array_equal(vector(keep=dropped)[1], vector()[1])


def test_an_unknown_label_equals_a_dropped_one(vector):
    unknown = vector(label=jnp.full((2, 2), -1))
    np.testing.assert_array_equal(unknown, vector(keep={"label": jnp.zeros(2, bool)}))


def test_an_unknown_attribute_leaves_the_other(vector):
    red = vector(label=jnp.array([[0, -1], [0, -1]]))
    blue = vector(label=jnp.array([[1, -1], [1, -1]]))
    assert abs(red - blue).max() > 1e-3


def test_padding_of_a_text_has_no_effect(vector):
    text = jax.random.normal(jax.random.key(1), (2, 4, 5))
    changed = vector(text=text.at[0, 2:].set(100.0))
    np.testing.assert_allclose(changed, vector(), atol=1e-6)
    assert abs(vector(text=text.at[0, 0].set(-text[0, 0])) - vector()).max() > 1e-3


def test_an_empty_text_is_finite_and_equals_a_dropped_one(vector):
    assert np.isfinite(vector()).all()
    dropped = vector(keep={"text": jnp.zeros(2, bool)})
    np.testing.assert_array_equal(vector()[1], dropped[1])  # its mask is all False


def test_a_dropped_text_has_no_effect(inputs):
    """Neither in the vector nor in cross-attention."""
    text = jax.random.normal(jax.random.key(2), (2, 4, 5))
    kept = {"text": jnp.array([False, True])}
    one, other = inputs(keep=kept), inputs(keep=kept, text=text)
    np.testing.assert_array_equal(one.vector[0], other.vector[0])
    assert not one.token_mask.any()  # the first is dropped, the second is empty
    assert inputs().token_mask.tolist() == [[True, True, False, False], [False] * 4]


def test_an_independent_image_has_no_frame_index():
    encoder = ConditioningEncoder(
        dim=8, mlp_layers=0, conditions=(("frame_index", FrameIndex()),)
    )
    mask = jnp.array([[True, True, True, False, False]])
    cond = {"frame_mask": mask, "keep": {}}
    params = encoder.init(jax.random.key(0), jnp.zeros(1), 5, cond)
    vector = np.asarray(encoder.apply(params, jnp.zeros(1), 5, cond).vector)[0]
    np.testing.assert_array_equal(vector[3], vector[4])
    assert abs(vector[0] - vector[1]).max() > 1e-3


def test_the_key_of_a_condition_is_its_own_and_that_of_version_0_1():
    """A run of that version, which numbered them, resumes bit for bit."""
    key = jax.random.key(3)
    data = {
        name: jax.random.key_data(condition_key(key, name)).tolist()
        for name in ("label", "text", "low_resolution", "fps", "first_frame")
    }
    for number, name in enumerate(("label", "text", "low_resolution")):
        former = jax.random.fold_in(key, number)
        assert data[name] == jax.random.key_data(former).tolist()
    assert len(set(map(tuple, data.values()))) == len(data)


def test_a_null_embedding_is_the_last_of_its_table():
    """As of DiT: the sum of the MLP of the noise level and of the labels' rows."""
    label = Label((("a", "b"), ("x", "y", "z")), null_embedding=True)
    encoder = ConditioningEncoder(8, 1, (("label", label),), mlp_of_noise_alone=True)
    logsnr = jnp.array([-3.0, 2.0])
    cond = {
        "label": jnp.array([[0, -1], [1, 2]]),
        "keep": {"label": jnp.array([True, False])},
    }
    params = encoder.init(jax.random.key(0), logsnr, 3, cond)
    tables = params["params"]["label"]
    rows = [tables[f"attribute_{i}"]["embedding"] for i in range(2)]
    assert [len(row) for row in rows] == [3, 4]
    alone = {k: v for k, v in params["params"].items() if k != "label"}
    noise = encoder.clone(conditions=()).apply({"params": alone}, logsnr, 3, {})
    added = [rows[0][0] + rows[1][3], rows[0][2] + rows[1][3]]
    vector = encoder.apply(params, logsnr, 3, cond).vector
    np.testing.assert_allclose(vector, noise.vector + np.stack(added), atol=1e-6)
