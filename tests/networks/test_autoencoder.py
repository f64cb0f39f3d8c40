"""The autoencoder: parity with diffusers, padding, posterior, precision."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.drawn import normal
from tests.parity.recorded import drawn_weights, load, write_weights
from vdm_jax.errors import UserError
from vdm_jax.networks import autoencoder
from vdm_jax.networks.autoencoder import AutoencoderKL, AutoencoderSpec, Posterior
from vdm_jax.pretrained import name_maps, safetensors_io

SPEC = AutoencoderSpec(channels=(8, 16, 24), blocks=1, num_groups=4)


def inputs(name, *shape):
    """Return frames in our order, as one video each: [n, 1, h, w, c]."""
    return np.moveaxis(normal(f"autoencoder/input/{name}", shape), 1, -1)[:, None]


def frames(recorded):
    return np.moveaxis(recorded, 1, -1)


def shapes(network):
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), video)["params"]


@pytest.fixture(scope="module")
def recorded():
    return load("autoencoder")


@pytest.fixture(scope="module")
def params(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tensors = drawn_weights("autoencoder", json.loads(str(recorded["shapes"])))
    write_weights(folder, tensors, "diffusion_pytorch_model")
    paths = safetensors_io.tensor_files(folder, safetensors_io.DIFFUSERS)
    like = shapes(AutoencoderKL(SPEC))
    return safetensors_io.read(paths, like, name_maps.AUTOENCODER_KL, jnp.float32)


@pytest.fixture(scope="module")
def run(params):
    """fn(method, x): x and parameters of one dtype."""

    def apply(method, x):
        variables = {"params": jax.tree.map(lambda p: p.astype(x.dtype), params)}
        return jax.jit(
            lambda v, x: AutoencoderKL(SPEC).apply(v, x, method=method)
        )(variables, x)  # fmt: skip

    return apply


def test_blocks_equal_diffusers(recorded, params):
    block = autoencoder.ResBlock(SPEC, 16)
    x = inputs("block", 2, 8, 6, 5)
    found = block.apply({"params": params["encoder"]["level_1_block_0"]}, x)
    np.testing.assert_allclose(found[:, 0], frames(recorded["block"]), atol=1e-5)
    attention = autoencoder.Attention(SPEC)
    x = inputs("attention", 2, 24, 4, 5)
    variables = {"params": params["decoder"]["middle"]["attention"]}
    found = attention.apply(variables, x)
    expected = frames(recorded["attention"])
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
def test_outputs_equal_diffusers(recorded, run, x64, dtype, tolerance):
    x = jnp.asarray(inputs("frames", 2, 3, 24, 16), dtype)
    noise = jnp.asarray(inputs("noise", 2, 4, 6, 4), dtype)
    posterior = run("encode", x)
    sample = posterior.mean + jnp.exp(posterior.log_variance / 2) * noise
    for name, found in (
        ("mean", posterior.mean),
        ("log_variance", posterior.log_variance),
        ("sample", sample),
        ("decoded", run("decode", noise)),
    ):
        error = np.abs(found[:, 0] - frames(recorded[name])).max()
        print(dtype, name, error)
        assert found.dtype == dtype and error < tolerance
    kl = posterior.kl()[:, 0]
    np.testing.assert_allclose(kl, recorded["kl"], rtol=10 * tolerance)


def test_frames_are_independent(run):
    x = jnp.asarray(inputs("frames", 2, 3, 24, 16))
    video = jnp.swapaxes(x, 0, 1)  # two frames of one video
    alone, together = run("encode", x).mean, run("encode", video).mean
    np.testing.assert_allclose(together[0], alone[:, 0], atol=1e-5)


def test_downsampling_pads_at_the_bottom_and_right_only():
    """A kernel of its upper left tap reads pixels 0, 2, 4, 6, and of them 0, 4."""
    spec = AutoencoderSpec(
        1, 1, 1, (1, 1, 1), 1, 1, mid_attention=False, quant_conv=False
    )
    like = shapes_of_one_channel(spec)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), like)
    encoder = zeros["encoder"]
    encoder["conv_in"]["kernel"] = encoder["conv_in"]["kernel"].at[1, 1].set(1.0)
    for i in range(2):
        name = f"downsample_{i}"
        encoder[name]["kernel"] = encoder[name]["kernel"].at[0, 0].set(1.0)

    @jax.jit
    def downsampled(pixels):
        seen = {}

        def remember(next_fn, args, kwargs, context):
            seen["/".join(context.module.path)] = next_fn(*args, **kwargs)
            return seen["/".join(context.module.path)]

        with nn.intercept_methods(remember):
            AutoencoderKL(spec).apply({"params": zeros}, pixels, method="encode")
        return [seen[f"encoder/downsample_{i}"][0, :, :, 0] for i in range(2)]

    pixels = jnp.broadcast_to(jnp.arange(8.0).reshape(1, 1, 1, 8, 1), (1, 1, 8, 8, 1))
    first, second = downsampled(pixels)
    np.testing.assert_array_equal(first[0], [0, 2, 4, 6])
    np.testing.assert_array_equal(second[0], [0, 4])
    first, second = downsampled(jnp.swapaxes(pixels, 2, 3))
    np.testing.assert_array_equal(first[:, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(second[:, 0], [0, 4])


def shapes_of_one_channel(spec):
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 1), jnp.float32)
    return jax.eval_shape(AutoencoderKL(spec).init, jax.random.key(0), video)["params"]


def test_samples_have_the_moments_of_the_posterior():
    mean = jnp.full((1, 1, 100, 100, 1), 3.0)
    posterior = Posterior(mean, jnp.full_like(mean, 2 * np.log(0.5)))
    sample = posterior.sample(jax.random.key(0))
    assert abs(sample.mean() - 3) < 0.02 and abs(sample.std() - 0.5) < 0.02
    # KL(N(3, .25) | N(0, 1)) of each of 10,000 values.
    expected = 0.5 * (9 + 0.25 - 1 - np.log(0.25)) * 1e4
    np.testing.assert_allclose(posterior.kl(), [[expected]], rtol=1e-5)


def test_log_variance_is_clipped(params):
    large = jax.tree.map(lambda leaf: leaf, params)
    bias = jnp.array([0.0] * 4 + [100.0, -100.0, 0.0, 0.0])
    large["encoder"]["quant_conv"] = {**large["encoder"]["quant_conv"], "bias": bias}
    x = jnp.asarray(inputs("frames", 2, 3, 24, 16))
    encode = functools.partial(AutoencoderKL(SPEC).apply, method="encode")
    found = jax.jit(encode)({"params": large}, x).log_variance
    assert (found[..., 0] == 20).all() and (found[..., 1] == -30).all()


def test_bfloat16_is_close_and_outputs_are_float32(recorded, params):
    z = jnp.asarray(inputs("noise", 2, 4, 6, 4), jnp.bfloat16)
    decode = functools.partial(AutoencoderKL(SPEC).apply, method="decode")
    found = jax.jit(decode)({"params": params}, z)
    assert found.dtype == jnp.float32
    expected = frames(recorded["decoded"])
    assert np.sqrt(np.mean((found[:, 0] - expected) ** 2)) < 0.05 * expected.std()


def test_a_size_that_is_no_multiple_is_answered_with_the_nearest():
    autoencoder.check(SPEC, 24, 16)
    with pytest.raises(UserError, match="multiples of 4 .* as 72x28$"):
        autoencoder.check(SPEC, 71, 28)


def test_the_default_spec_is_that_of_stable_diffusion():
    """Stable Diffusion's autoencoder has 83,653,863 parameters."""
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes(AutoencoderKL())))
    assert total == 83_653_863
