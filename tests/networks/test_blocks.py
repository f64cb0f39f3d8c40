"""Laws of the residual block and of each part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.networks import blocks, layers
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.unet3d import LevelSpec, UNetSpec

B, F, HW, C = 2, 5, 2, 8
SPEC = UNetSpec(levels=(LevelSpec(C, 1),), head_dim=4, dropout=0.5)
VIDEO = np.array([[True, True, True, False, False], [False, True, True, True, True]])
PARTS = sorted(blocks.LAYERS)


@pytest.fixture
def build(quick_jit, random_params):
    """fn(module, x, inputs) -> (jitted fn(x, inputs), its random parameters)."""

    def make(module, x, inputs):
        variables = random_params(module, x, inputs)
        apply = quick_jit(module.apply)
        return lambda x, inputs: apply(variables, x, inputs), variables["params"]

    return make


@pytest.fixture
def given(draw):
    """x and Inputs with every door open, in the default float type."""

    def make(**doors):
        full = {
            "vector": draw(B, F, 6, seed=1),
            "tokens": draw(B, 3, 7, seed=2),
            "token_mask": jnp.asarray([[True, True, False], [True, False, False]]),
            "frame_mask": jnp.asarray(VIDEO),
        }
        return draw(B, F, HW, HW, C), Inputs(**{**full, **doors})

    return make


@pytest.mark.parametrize("name", PARTS)
def test_a_fresh_part_is_the_identity(given, quick_jit, random_params, name):
    x, inputs = given()
    part = blocks.LAYERS[name](SPEC)

    def run(key, params):
        fresh = part.init(key, x, inputs)
        return part.apply(fresh, x, inputs), part.apply(params, x, inputs)

    params = random_params(part, x, inputs)
    out, moved = quick_jit(run)(jax.random.key(0), params)
    np.testing.assert_array_equal(out, x)
    assert np.abs(moved - x).max() > 0.1


def test_a_fresh_residual_block_is_its_skip(given, quick_jit):
    x, inputs = given()
    for channels in (C, 12):
        block = blocks.ResBlock(SPEC, channels)
        init = quick_jit(
            lambda key, block=block: block.init_with_output(key, x, inputs)
        )
        out, params = init(jax.random.key(0))
        skip = params["params"].get("skip", {"kernel": jnp.eye(C)})
        np.testing.assert_allclose(out, x @ skip["kernel"], rtol=1e-5, atol=1e-5)


def test_temporal_convolution_is_a_convolution(x64, given, build):
    """Its product of shifted copies against lax's own, kernel 3 over frames."""
    x, _ = given()
    part = blocks.TemporalConv(SPEC)
    apply, own = build(part, x, Inputs())
    norm = blocks.GroupNorm().apply({"params": own["norm"]}, x)
    own = own["conv"]
    kernel = own["kernel"].reshape(3, 1, C, C)
    y = jax.nn.swish(norm).reshape(B, F, -1, C)
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=dims)
    expected = x + (y + own["bias"].reshape(1, 1, 1, -1)).reshape(x.shape)
    np.testing.assert_allclose(apply(x, Inputs()), expected, rtol=1e-12)


def test_temporal_convolution_bypasses_images_exactly(given, build, draw):
    """T-ARCH 8: images pass bit for bit, and videos do not see them."""
    x, inputs = given()
    part = blocks.TemporalConv(SPEC)
    apply, _ = build(part, x, inputs)
    before, out = np.asarray(x), np.asarray(apply(x, inputs))
    np.testing.assert_array_equal(out[~VIDEO], before[~VIDEO])
    assert np.abs(out[VIDEO] - before[VIDEO]).max(axis=(1, 2, 3)).min() > 1e-3
    other = np.where(VIDEO[:, :, None, None, None], before, 10 * draw(*x.shape, seed=9))
    other = np.asarray(apply(jnp.asarray(other), inputs))
    np.testing.assert_array_equal(other[VIDEO], out[VIDEO])


def test_temporal_convolution_of_images_beside_a_clip_is_the_clip_alone(given, build):
    x, inputs = given(vector=None)
    part = blocks.TemporalConv(SPEC)
    apply, _ = build(part, x, inputs)
    out = apply(x, inputs)
    alone = apply(x[:1, :3], Inputs())
    np.testing.assert_allclose(out[:1, :3], alone, rtol=1e-5, atol=1e-6)


def test_linear_attention_is_a_matrix_of_two_softmaxes(x64, given, build):
    """rho(q) rho(k)' v, pixel by pixel, written out; frames do not meet."""
    x, inputs = given()
    x = x.astype(jnp.float64)
    apply, params = build(blocks.LinearAttention(SPEC), x, inputs)
    found = np.asarray(apply(x, inputs) - x)
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
    np.testing.assert_allclose(found, out.reshape(x.shape), atol=1e-10)


def test_masked_tokens_are_not_read(given, build, draw):
    x, inputs = given()
    part = blocks.CrossAttention(SPEC)
    apply, _ = build(part, x, inputs)
    out = apply(x, inputs)
    kept = inputs.token_mask[:, :, None]
    other = jnp.where(kept, inputs.tokens, 10 * draw(B, 3, 7, seed=9))
    hidden = apply(x, inputs.replace(tokens=other))
    np.testing.assert_array_equal(hidden, out)
    other = jnp.where(kept, 10 * draw(B, 3, 7, seed=9), inputs.tokens)
    assert not np.allclose(apply(x, inputs.replace(tokens=other)), out)


def test_the_null_token_is_never_masked(given, build):
    """With every token masked, all pixels read the null's value and nothing else."""
    x, inputs = given(token_mask=jnp.zeros((B, 3), bool))
    part = blocks.CrossAttention(UNetSpec(SPEC.levels, head_dim=4))
    apply, own = build(part, x, inputs)
    value = (own["null"].reshape(1, -1) @ own["kv"]["kernel"])[:, C:]
    added = value @ own["out"]["kernel"] + own["out"]["bias"].reshape(1, -1)
    expected = x + added.reshape(1, 1, 1, 1, C)
    np.testing.assert_allclose(apply(x, inputs), expected, rtol=1e-5, atol=1e-5)


def test_no_mask_reads_all_tokens(given, build):
    x, inputs = given(token_mask=jnp.ones((B, 3), bool))
    part = blocks.CrossAttention(SPEC)
    apply, _ = build(part, x, inputs)
    np.testing.assert_allclose(
        apply(x, inputs.replace(token_mask=None)),
        apply(x, inputs),
        rtol=1e-6,
    )


def test_cross_attention_without_tokens_says_so(given):
    x, inputs = given(tokens=None)
    with pytest.raises(ValueError, match=r"inputs\.tokens"):
        jax.eval_shape(blocks.CrossAttention(SPEC).init, jax.random.key(0), x, inputs)


@pytest.mark.parametrize("name", ["resnet", "temporal_conv", "temporal_attention"])
def test_one_vector_a_clip_is_the_same_for_each_frame(given, build, name):
    x, inputs = given()
    part = blocks.ResBlock(SPEC, C) if name == "resnet" else blocks.LAYERS[name](SPEC)
    apply, _ = build(part, x, inputs)
    one = inputs.vector[:, 0]
    for_each = jnp.broadcast_to(one[:, None], inputs.vector.shape)
    np.testing.assert_allclose(
        apply(x, inputs.replace(vector=one)),
        apply(x, inputs.replace(vector=for_each)),
        rtol=1e-5,
        atol=1e-6,
    )
    told = apply(x, inputs)
    assert not np.allclose(told, apply(x, inputs.replace(vector=-one)))


def test_the_vector_of_a_frame_stays_with_it(given, random_params, quick_jit):
    """In a residual block, forward mode: d out[frame i] / d vector[frame j]."""
    x, inputs = given()
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


def test_dropout_only_in_training(given, random_params, quick_jit):
    x, inputs = given()
    block = blocks.ResBlock(SPEC, C)
    params = random_params(block, x, inputs)

    @quick_jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return block.apply(params, x, inputs, True, rngs=rngs)

    still = quick_jit(block.apply)(params, x, inputs)
    np.testing.assert_array_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1)) and not np.allclose(train(0), still)


def test_a_block_names_its_parts(given):
    x, inputs = given()
    block = blocks.Block(SPEC, blocks.LAYERS, 12, tuple(PARTS))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, inputs)["params"]
    assert set(shapes) == {"resnet", *PARTS}
    assert shapes["resnet"]["skip"]["kernel"].shape == (C, 12)
    assert "position" in shapes["temporal_attention"]
