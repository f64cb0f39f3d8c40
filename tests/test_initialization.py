"""New parameters: those of Flax by distribution, evaluated without a compiler."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import shapes
from vdm_jax import build
from vdm_jax.initialization import Initializer, evaluate
from vdm_jax.trees import named_leaves


def model_of(remat="none", width=32):
    config: Any = shapes.get_config("smoke").unlock()
    layers = ("spatial_attention", "temporal_attention", "temporal_conv")
    level = dict(channels=width, blocks=1, layers=layers)
    config.network.update(levels=(level, level), mid_layers=layers[:2], remat=remat)
    return build.build_model(config)


def compiled(function):
    """Return the result of a function and the programs compiled by it."""
    programs = []

    def listen(event: str, duration_secs: float, **_: Any):
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        return function(), programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_parameters_have_the_distributions_of_flax():
    model, key = model_of(), jax.random.key(3)
    ours = named_leaves(Initializer(model.init_params).draw(key))
    theirs = named_leaves(jax.jit(model.init_params)(key))
    assert list(ours) == list(theirs)
    large = 0
    for name, expected in theirs.items():
        drawn, expected = ours[name], np.asarray(expected)
        assert (drawn.shape, drawn.dtype) == (expected.shape, expected.dtype), name
        if expected.min() == expected.max():  # zeros and ones
            np.testing.assert_array_equal(drawn, expected, err_msg=name)
        elif drawn.size >= 1000:
            large += 1
            result: Any = stats.ks_2samp(drawn.ravel(), expected.ravel())
            assert result.pvalue > 1e-4, name
            np.testing.assert_allclose(drawn.std(), expected.std(), rtol=0.1)
    assert large > 10


@pytest.mark.parametrize(
    ("initializer", "law"),
    [
        (
            nn.initializers.lecun_normal(),
            # Of a variance of 1 / fan_in after the truncation.
            stats.truncnorm(-2, 2, scale=100**-0.5 / stats.truncnorm(-2, 2).std()),
        ),
        (nn.initializers.normal(0.02), stats.norm(scale=0.02)),
    ],
)
def test_draws_follow_their_law(initializer, law):
    init = Initializer(lambda key: initializer(key, (100, 400)))
    draws = [init.draw(jax.random.key(seed)).ravel() for seed in range(2)]
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.02
    for each in draws:
        assert stats.kstest(each, law.cdf).pvalue > 1e-4


def test_no_program_is_compiled_for_a_parameter():
    model, key = model_of(width=24), jax.random.key(0)
    _, programs = compiled(lambda: Initializer(model.init_params).draw(key))
    assert len(programs) <= 2, "a draw or an operation is not evaluated by NumPy"


def test_rematerialisation_keeps_the_parameters():
    key = jax.random.key(1)
    plain, remat = (
        named_leaves(Initializer(model_of(remat).init_params).draw(key))
        for remat in ("none", "full")
    )
    assert list(plain) == list(remat)
    for name, value in plain.items():
        np.testing.assert_array_equal(value, remat[name], err_msg=name)


def test_what_numpy_does_not_draw_has_the_numbers_of_jax():
    uniform = nn.initializers.glorot_uniform()

    def init(key):
        return {"w": jnp.linspace(0, 1, 8)[None] * uniform(key, (16, 8))}

    drawn = Initializer(init).draw(jax.random.key(2))
    np.testing.assert_allclose(drawn["w"], init(jax.random.key(2))["w"], rtol=1e-6)


def test_an_initializer_may_compute_with_its_draws():
    orthogonal = nn.initializers.orthogonal()
    w = Initializer(lambda key: orthogonal(key, (16, 16))).draw(jax.random.key(2))
    np.testing.assert_allclose(w @ w.T, np.eye(16), atol=1e-5)


def test_a_parameter_depends_on_key_and_path_alone():
    normal = nn.initializers.normal()

    def init(key, names):
        return {n: normal(jax.random.fold_in(key, i), (9,)) for i, n in names}

    def draw(seed, *names):
        return Initializer(lambda key: init(key, names)).draw(jax.random.key(seed))

    both, one = draw(0, (0, "a"), (1, "b")), draw(0, (5, "b"))
    np.testing.assert_array_equal(both["b"], one["b"])
    assert not np.array_equal(both["a"], both["b"])
    assert not np.array_equal(one["b"], draw(1, (5, "b"))["b"])


def test_a_draw_that_two_parameters_share_is_made_once():
    @jax.jit
    def init(key):
        value = jax.random.normal(key, (5,))
        return {"a": value, "b": 2 * value}

    params = Initializer(init).draw(jax.random.key(0))
    np.testing.assert_array_equal(2 * params["a"], params["b"])


def test_evaluate_equals_the_compiled_function():
    def function(x, y):
        return {"x": x, "zeros": jnp.zeros_like(y), "both": jnp.tanh(x) @ y}

    x, y = np.ones((2, 3), np.float32), np.full((3, 4), 0.5, np.float32)
    out, expected = evaluate(function, x, y), jax.jit(function)(x, y)
    assert out["x"] is x
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-6)
