"""Random parameters for tiny networks, so that zero initialisations hide no error."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def random_params():
    """fn(module, *args, seed=0) -> variables of `module` without zeros.

    The tree comes from eval_shape, so nothing is compiled. Kernels are scaled to keep
    the variance; scales, biases and tables are drawn around their initial values. Each
    array depends on its own path and the seed alone.
    """

    def make(module, *args, seed=0):
        abstract = jax.eval_shape(module.init, jax.random.key(0), *args)

        def fill(path, leaf):
            name = path[-1].key
            text = jax.tree_util.keystr(path, simple=True, separator="/")
            rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
            draw = rng.standard_normal(leaf.shape)
            if name == "kernel":
                draw = draw / math.sqrt(math.prod(leaf.shape[:-1]))
            elif name in ("keys", "values"):
                draw = draw / math.sqrt(leaf.shape[-1])
            elif name == "scale":
                draw = 1 + 0.2 * draw
            elif name == "bias":
                draw = 0.2 * draw
            return jnp.asarray(draw, leaf.dtype)

        return jax.tree_util.tree_map_with_path(fill, abstract)

    return make


@pytest.fixture
def quick_jit():
    """jax.jit without XLA's optimisation passes: compiling takes most of a test."""
    options = {"xla_backend_optimization_level": "0"}
    return functools.partial(jax.jit, compiler_options=options)


@pytest.fixture
def draw():
    """fn(*shape, seed=0) -> normal numbers in the default float type."""

    def make(*shape, seed=0):
        numbers = np.random.default_rng(seed).standard_normal(shape)
        return jnp.asarray(numbers, jnp.result_type(float))

    return make
