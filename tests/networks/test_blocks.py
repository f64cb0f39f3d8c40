"""Laws of the residual block and of each layer type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks import blocks, layers
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.parts import VDM_PARTS, Block
from vdm_jax.networks.spec import LevelSpec, UNetSpec

B, F, HW, C = 2, 5, 2, 8
SPEC = UNetSpec(levels=(LevelSpec(C, 1),), head_dim=4, dropout=0.5)
VIDEO = np.array([[True, True, True, False, False], [False, True, True, True, True]])
LAYER_NAMES = sorted(blocks.LAYERS)


@pytest.fixture
def build(quick_jit, random_params):
    """fn(module, x, inputs) -> (jitted fn(x, inputs), its random parameters)."""

    def make(module, x, inputs):
        variables = random_params(module, x, inputs)
        apply = quick_jit(module.apply)
        return lambda x, inputs: apply(variables, x, inputs), variables["params"]

    return make


@pytest.fixture
def example(draw):
    """fn(**changes) -> x and Inputs with no field None, in the default float type."""

    def make(**changes):
        full = {
            "vector": draw(B, F, 6, seed=1),
            "tokens": draw(B, 3, 7, seed=2),
            "token_mask": jnp.asarray([[True, True, False], [True, False, False]]),
            "frame_mask": jnp.asarray(VIDEO),
        }
        return draw(B, F, HW, HW, C), Inputs(**{**full, **changes})

    return make


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_a_new_layer_is_the_identity(example, quick_jit, random_params, name):
    x, inputs = example()
    layer = blocks.LAYERS[name](SPEC)

    def run(key, params):
        initial = layer.init(key, x, inputs)
        return layer.apply(initial, x, inputs), layer.apply(params, x, inputs)

    params = random_params(layer, x, inputs)
    out, moved = quick_jit(run)(jax.random.key(0), params)
    np.testing.assert_array_equal(out, x)
    assert np.abs(moved - x).max() > 0.1


def test_a_new_residual_block_is_its_skip(example, quick_jit):
    x, inputs = example()
    for channels in (C, 12):
        block = blocks.ResBlock(SPEC, channels)
        init = quick_jit(
            lambda key, block=block: block.init_with_output(key, x, inputs)
        )
        out, params = init(jax.random.key(0))
        skip = params["params"].get("skip", {"kernel": jnp.eye(C)})
        np.testing.assert_allclose(out, x @ skip["kernel"], rtol=1e-5, atol=1e-5)


def test_temporal_convolution_is_a_convolution(x64, example, build):
    """A product with shifted copies equals lax's convolution over three frames."""
    x, _ = example()
    layer = blocks.TemporalConv(SPEC)
    apply, own = build(layer, x, Inputs())
    norm = blocks.GroupNorm().apply({"params": own["norm"]}, x)
    own = own["conv"]
    kernel = own["kernel"].reshape(3, 1, C, C)
    y = jax.nn.swish(norm).reshape(B, F, -1, C)
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=dims)
    expected = x + (y + own["bias"].reshape(1, 1, 1, -1)).reshape(x.shape)
    np.testing.assert_allclose(apply(x, Inputs()), expected, rtol=1e-12)


def test_temporal_convolution_bypasses_images_exactly(example, build, draw):
    """Images are returned bit for bit, and have no effect on videos."""
    x, inputs = example()
    layer = blocks.TemporalConv(SPEC)
    apply, _ = build(layer, x, inputs)
    before, out = np.asarray(x), np.asarray(apply(x, inputs))
    np.testing.assert_array_equal(out[~VIDEO], before[~VIDEO])
    assert np.abs(out[VIDEO] - before[VIDEO]).max(axis=(1, 2, 3)).min() > 1e-3
    other = np.where(VIDEO[:, :, None, None, None], before, 10 * draw(*x.shape, seed=9))
    other = np.asarray(apply(jnp.asarray(other), inputs))
    np.testing.assert_array_equal(other[VIDEO], out[VIDEO])


def test_temporal_convolution_of_a_clip_ignores_images_behind_it(example, build):
    x, inputs = example(vector=None)
    layer = blocks.TemporalConv(SPEC)
    apply, _ = build(layer, x, inputs)
    out = apply(x, inputs)
    alone = apply(x[:1, :3], Inputs())
    np.testing.assert_allclose(out[:1, :3], alone, rtol=1e-5, atol=1e-6)


def test_linear_attention_is_a_matrix_of_two_softmaxes(x64, example, build):
    """rho(q) rho(k)' v, written out per head; frames do not mix."""
    x, inputs = example()
    x = x.astype(jnp.float64)
    apply, params = build(blocks.LinearAttention(SPEC), x, inputs)
    output = np.asarray(apply(x, inputs) - x)
    norm = layers.GroupNorm().apply({"params": params["norm"]}, x)
    qkv = np.asarray(norm.reshape(B, F, HW * HW, C) @ params["qkv"]["kernel"])
    heads = C // SPEC.head_dim
    expected = np.zeros((B, F, HW * HW, C))
    for b, f, head in np.ndindex(B, F, heads):
        q, k, v = (
            part[:, head * SPEC.head_dim :][:, : SPEC.head_dim]
            for part in np.split(qkv[b, f], 3, axis=-1)
        )
        q = np.exp(q) / np.exp(q).sum(1, keepdims=True)
        k = np.exp(k) / np.exp(k).sum(0, keepdims=True)
        here = slice(head * SPEC.head_dim, (head + 1) * SPEC.head_dim)
        expected[b, f, :, here] = (q @ k.T) @ v / np.sqrt(SPEC.head_dim)
    kernel, bias = (np.asarray(params["out"][name]) for name in ("kernel", "bias"))
    out = expected @ kernel + bias
    np.testing.assert_allclose(output, out.reshape(x.shape), atol=1e-10)


def test_masked_tokens_are_not_read(example, build, draw):
    x, inputs = example()
    layer = blocks.CrossAttention(SPEC)
    apply, _ = build(layer, x, inputs)
    out = apply(x, inputs)
    readable = inputs.token_mask[:, :, None]
    other = jnp.where(readable, inputs.tokens, 10 * draw(B, 3, 7, seed=9))
    hidden = apply(x, inputs.replace(tokens=other))
    np.testing.assert_array_equal(hidden, out)
    other = jnp.where(readable, 10 * draw(B, 3, 7, seed=9), inputs.tokens)
    assert not np.allclose(apply(x, inputs.replace(tokens=other)), out)


def test_the_null_token_is_never_masked(example, build):
    """With all tokens masked, every pixel reads the value of the null token only."""
    x, inputs = example(token_mask=jnp.zeros((B, 3), bool))
    layer = blocks.CrossAttention(UNetSpec(SPEC.levels, head_dim=4))
    apply, own = build(layer, x, inputs)
    value = (own["null"].reshape(1, -1) @ own["kv"]["kernel"])[:, C:]
    added = value @ own["out"]["kernel"] + own["out"]["bias"].reshape(1, -1)
    expected = x + added.reshape(1, 1, 1, 1, C)
    np.testing.assert_allclose(apply(x, inputs), expected, rtol=1e-5, atol=1e-5)


def test_without_a_mask_all_tokens_are_read(example, build):
    x, inputs = example(token_mask=jnp.ones((B, 3), bool))
    layer = blocks.CrossAttention(SPEC)
    apply, _ = build(layer, x, inputs)
    np.testing.assert_allclose(
        apply(x, inputs.replace(token_mask=None)),
        apply(x, inputs),
        rtol=1e-6,
    )


def test_cross_attention_without_tokens_raises(example):
    x, inputs = example(tokens=None)
    with pytest.raises(ValueError, match=r"inputs\.tokens"):
        jax.eval_shape(blocks.CrossAttention(SPEC).init, jax.random.key(0), x, inputs)


@pytest.mark.parametrize("name", ["resnet", "temporal_conv", "temporal_attention"])
def test_one_vector_per_clip_equals_the_same_for_each_frame(example, build, name):
    x, inputs = example()
    layer = blocks.ResBlock(SPEC, C) if name == "resnet" else blocks.LAYERS[name](SPEC)
    apply, _ = build(layer, x, inputs)
    one = inputs.vector[:, 0]
    per_frame = jnp.broadcast_to(one[:, None], inputs.vector.shape)
    np.testing.assert_allclose(
        apply(x, inputs.replace(vector=one)),
        apply(x, inputs.replace(vector=per_frame)),
        rtol=1e-5,
        atol=1e-6,
    )
    out = apply(x, inputs)
    assert not np.allclose(out, apply(x, inputs.replace(vector=-one)))


def test_the_vector_of_a_frame_affects_that_frame_only(
    example, random_params, quick_jit
):
    """d out[frame i] / d vector[frame j] of a residual block, by forward mode."""
    x, inputs = example()
    block = blocks.ResBlock(SPEC, C)
    params = random_params(block, x, inputs)

    def f(vector):
        return block.apply(params, x, inputs.replace(vector=vector))

    def column(frame):
        one = jax.nn.one_hot(frame, F).reshape(1, F, 1)
        tangent = jnp.broadcast_to(one, inputs.vector.shape)
        return jnp.abs(jax.jvp(f, (inputs.vector,), (tangent,))[1]).max((0, 2, 3, 4))

    jacobian = quick_jit(jax.vmap(column))(jnp.arange(F))
    np.testing.assert_array_equal(jacobian > 0, np.eye(F, dtype=bool))


def test_dropout_only_in_training(example, random_params, quick_jit):
    x, inputs = example()
    block = blocks.ResBlock(SPEC, C)
    params = random_params(block, x, inputs)

    @quick_jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return block.apply(params, x, inputs, True, rngs=rngs)

    evaluated = quick_jit(block.apply)(params, x, inputs)
    np.testing.assert_array_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1))
    assert not np.allclose(train(0), evaluated)


def test_a_block_names_its_layers(example):
    x, inputs = example()
    block = Block(SPEC, VDM_PARTS, 12, tuple(LAYER_NAMES))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, inputs)["params"]
    assert set(shapes) == {"resnet", *LAYER_NAMES}
    assert shapes["resnet"]["skip"]["kernel"].shape == (C, 12)
    assert "position" in shapes["temporal_attention"]
