"""Who computes attention, and that each gives the same."""

import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.networks import attention, backends
from vdm_jax.networks.attention import FRAME_READS, frame_attention_mask

RNG = np.random.default_rng(0)
KERNELS = ("xla", "chunked", "pallas")


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("reads", [None, *FRAME_READS])
def test_pixels_read_the_frames_of_a_table(backend, reads):
    q, k, v = (normal(2, 3, 20, 2, 8) for _ in range(3))
    table = np.arange(3)[:, None] if reads is None else FRAME_READS[reads](3)
    expected = attention.attention(
        q, *(x[:, table].reshape(2, 3, -1, 2, 8) for x in (k, v))
    )
    out = backends.over_pixels(
        q, k, v, reads=None if reads is None else table, backend=backend
    )
    assert_close(out, expected)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("frames", [1, 3])
def test_pixels_read_tokens_of_the_video_or_of_their_frame(backend, frames):
    q, k, v = normal(2, 3, 20, 2, 8), *(normal(2, frames, 7, 2, 8) for _ in range(2))
    mask = jnp.asarray(RNG.random((2, frames, 1, 7)) < 0.5).at[..., 0].set(True)
    out = backends.over_pixels(q, k, v, mask=mask, backend=backend)
    assert_close(out, attention.attention(q, k, v, mask=mask))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("position", ["", "bias", "shaw"])
def test_frames_read_frames(backend, position):
    f, d = 5, 8
    q, k, v = (normal(2, f, 11, 2, d) for _ in range(3))
    mask = frame_attention_mask(jnp.arange(f)[None] < jnp.array([[3], [5]]))
    more: dict[str, Any] = {}
    if position == "bias":
        more = {"bias": normal(2, f, f)}
    if position == "shaw":
        index = attention.relative_offsets(f) + f - 1
        more = {"shaw": tuple(normal(2 * f - 1, d)[index] for _ in range(2))}
    out = backends.over_frames(q, k, v, mask=mask, backend=backend, **more)
    by_pixel = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    expected = attention.attention(*by_pixel, mask=mask[:, None], **more)
    assert_close(out, jnp.swapaxes(expected, 1, 2))


@pytest.mark.parametrize(
    ("backend", "shape", "dtype", "words"),
    [
        ("cudnn", (1, 1, 8, 1, 64), jnp.float32, "dtype=bfloat16"),
        ("cudnn", (1, 1, 8, 1, 160), jnp.bfloat16, "multiple of 8 up to 128"),
        ("cudnn", (1, 1, 7, 1, 64), jnp.bfloat16, "7 queries and 7 keys"),
        ("cudnn", (1, 1, 8, 1, 64), jnp.bfloat16, "for GPUs"),
        ("pallas", (1, 1, 8, 1, 12), jnp.float32, "multiple of 8"),
        ("pallas", (1, 1, 2**16, 8, 64), jnp.bfloat16, "vector memory"),
    ],
)
def test_a_backend_that_cannot_says_why(backend, shape, dtype, words):
    x = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(
            lambda q, k, v: backends.over_pixels(q, k, v, backend=backend), x, x, x
        )


def test_too_many_frames_and_vectors_are_refused():
    x = jax.ShapeDtypeStruct((1, 33, 8, 1, 64), jnp.bfloat16)
    for backend, words in (("pallas", "33 frames"), ("cudnn", "relative_position")):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(
                lambda q, backend=backend: backends.over_frames(
                    q, q, q, shaw=(q[0, :, :, 0],) * 2, backend=backend
                ),
                x,
            )


def test_the_choice_is_by_device_and_shape(monkeypatch):
    def chosen(device, **refusals):
        monkeypatch.setattr(backends, "platform", lambda: device)
        none = {"pallas": "", "cudnn": ""}
        return backends._choose("auto", none | refusals, worthwhile=True)

    assert [chosen(d) for d in ("cpu", "tpu", "gpu")] == ["chunked", "pallas", "cudnn"]
    assert chosen("tpu", pallas="too large") == "chunked"
    assert chosen("gpu", cudnn="float32") == "chunked"
    assert backends._choose("auto", {"cudnn": ""}, worthwhile=False) == "chunked"


MESH = """
    import jax, jax.numpy as jnp, numpy as np
    import flax.linen as nn
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from vdm_jax.networks import backends

    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 4, 16, 4, 8)), "f") for _ in range(3))
    tokens = jnp.asarray(rng.normal(size=(2, 1, 6, 4, 8)), "f")
    token_mask = jnp.asarray(rng.random((2, 1, 1, 6)) < .6)
    bias = jnp.asarray(rng.normal(size=(4, 4, 4)), "f")
    shaw = tuple(jnp.asarray(rng.normal(size=(7, 8)), "f") for _ in range(2))
    reads = np.array([[0, i] for i in range(4)])
    frame_mask = jnp.asarray(rng.random((2, 4, 4)) < .5) | jnp.eye(4, dtype=bool)

    def out(q, k, v, tokens, bias, shaw, backend):
        how = {"backend": backend}
        index = np.arange(4)[None] - np.arange(4)[:, None] + 3
        vectors = tuple(table[index] for table in shaw)
        x = backends.over_pixels(q, k, v, **how)
        x = x + backends.over_pixels(q, tokens, tokens, mask=token_mask, **how)
        x = x + backends.over_pixels(q, k, v, reads=reads, **how)
        x = x + backends.over_frames(q, k, v, mask=frame_mask, bias=bias, **how)
        mask = frame_mask[:1]
        return x + backends.over_frames(x, k, v, mask=mask, shaw=vectors, **how)

    args = q, k, v, tokens, bias, shaw

    def both(args, backend):
        value, vjp = jax.vjp(lambda *a: out(*a, backend), *args)
        return value, vjp(jnp.cos(jnp.arange(value.size).reshape(value.shape)))

    expected = both(args, "xla")
    mesh = jax.make_mesh((2, 2, 2), ("data", "context", "tensor"), (AxisType.Auto,) * 3)
    rules = [("batch", ("data",)), ("frames", ("context",)), ("height", ("context",)),
             ("width", None), ("channel", ("tensor",))]
    split = NamedSharding(mesh, P("data", "context", None, "tensor"))
    args = *(jax.device_put(x, split) for x in args[:3]), *args[3:]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        program = jax.jit(both, static_argnums=1).lower(args, "pallas").compile()
        ours = program(args)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        assert error < 3e-6, (a.shape, error)
    local = jax.jit(lambda q, k, v: backends.over_pixels(q, k, v, backend="pallas"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        text = local.lower(*args[:3]).compile().as_text()
    assert "all-" not in text and "collective" not in text, "frames are independent"
"""


def test_kernels_on_a_mesh_equal_one_device():
    """Batch, frames and heads split over eight devices, gradients too."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    program = textwrap.dedent(MESH)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
