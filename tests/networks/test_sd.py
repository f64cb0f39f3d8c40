"""Stable Diffusion's U-Net: parity with diffusers, frames, precision, wrong fields."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_sd
from tests.parity import sd_cases
from vdm_jax.errors import UserError
from vdm_jax.networks import sd
from vdm_jax.networks.inputs import Inputs
from vdm_jax.trees import named_leaves

RECORDED = np.load(sd_cases.FOLDER / "sd_unet.npz")
each_unet = pytest.mark.parametrize("name", sd_cases.UNETS)


def error(name, output):
    return np.abs(np.asarray(output)[:, 0] - np.moveaxis(RECORDED[name], 1, -1)).max()


@each_unet
def test_output_equals_diffusers(name):
    z, logsnr, text = small_sd.recorded_inputs(name, jnp.float32)
    model, params = small_sd.build(sd_cases.UNETS[name]), small_sd.drawn_params(name)
    output = small_sd.run(model, params, z, logsnr, tokens=text)
    print(name, error(name, output))
    assert error(name, output) < 1e-5
    assert RECORDED[name].std() > 0.4
    other = small_sd.run(model, params, z, logsnr, tokens=-text)
    assert np.std(other - output) > 0.1
    other = small_sd.run(model, params, z, logsnr[::-1], tokens=text)
    assert np.std(other - output) > 0.02


@each_unet
def test_output_equals_diffusers_in_float64(name, x64):
    z, logsnr, text = small_sd.recorded_inputs(name, jnp.float64)
    model = small_sd.build(sd_cases.UNETS[name])
    params = jax.tree.map(jnp.float64, small_sd.drawn_params(name))
    output = small_sd.run(model, params, z, logsnr, tokens=text)
    print(name, error(name, output))
    assert output.dtype == jnp.float64 and error(name, output) < 1e-12


def tiny(*layers):
    """Return a network of one level of 16 channels; layers: behind the transformer."""
    level = {"channels": 16, "blocks": 1, "layers": ("spatial_transformer", *layers)}
    section = {
        "kind": "sd", "levels": (level,), "mid_layers": (), "num_heads": (2,),
        "norm_groups": 4, "head_dim": 8,
    }  # fmt: skip
    return sd.from_config(section, 4, [(4, 4)])


def test_a_video_is_its_frames_and_an_image_reads_its_own_text(draw, random_params):
    """A video of two frames and one image, with a level of noise for each frame."""
    network, z, vector = tiny(), draw(2, 3, 4, 4, 4), draw(2, 3, 8, seed=1)
    tokens = draw(2, 2, 5, 6, seed=2)
    params = random_params(network, z, Inputs(vector=vector, tokens=tokens))
    apply = jax.jit(network.apply)
    output = apply(params, z, Inputs(vector=vector, tokens=tokens))
    for i in range(3):
        inputs = Inputs(vector=vector[:, i], tokens=tokens[:, max(i - 1, 0)])
        frame = apply(params, z[:, i : i + 1], inputs)
        np.testing.assert_allclose(frame[:, 0], output[:, i], atol=1e-5)
    one_text = apply(params, z, Inputs(vector=vector, tokens=tokens[:, 0]))
    np.testing.assert_allclose(one_text[:, :2], output[:, :2], atol=1e-5)
    assert np.std(one_text[:, 2] - output[:, 2]) > 0.1


def test_masked_tokens_are_not_read(draw, random_params):
    """Nor is any token of a text that is masked as a whole."""
    layer = sd.SpatialTransformer(tiny().spec)
    x, tokens = draw(2, 1, 4, 4, 16), draw(2, 5, 6, seed=1)
    other = tokens.at[0, 3:].set(draw(2, 6)).at[1].set(draw(5, 6))
    mask = jnp.asarray([[1, 1, 1, 0, 0], [0] * 5], bool)
    params = random_params(layer, x, Inputs(tokens=tokens))
    masked, changed = (
        layer.apply(params, x, Inputs(tokens=each, token_mask=mask))
        for each in (tokens, other)
    )
    np.testing.assert_array_equal(masked, changed)
    short = layer.apply(params, x, Inputs(tokens=tokens[:, :3]))
    np.testing.assert_allclose(masked[0], short[0], atol=1e-5)
    assert np.std(masked[1] - short[1]) > 0.05


@pytest.mark.parametrize("num_heads", [2, 4])
def test_heads_are_contiguous_parts_of_the_width(num_heads, draw, random_params):
    """Against NumPy; widths of heads differ, shapes of parameters do not."""
    x, tokens = draw(1, 1, 6, 8), draw(1, 1, 3, 5, seed=1)
    layer = sd.Attention(num_heads)
    params = random_params(layer, x, tokens)
    kernels = jax.tree.map(np.float64, params["params"])
    q = np.float64(x[0, 0]) @ kernels["q"]["kernel"]
    k, v = (np.float64(tokens[0, 0]) @ kernels[name]["kernel"] for name in "kv")
    d, heads = 8 // num_heads, []
    for i in range(num_heads):
        part = slice(i * d, (i + 1) * d)
        scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(d))
        heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
    expected = np.concatenate(heads, -1) @ kernels["out"]["kernel"]
    expected = expected + kernels["out"]["bias"]
    output = layer.apply(params, x, tokens)
    np.testing.assert_allclose(output[0, 0], expected, atol=1e-5)


def test_large_attention_scores_are_finite_in_bfloat16(draw, random_params):
    """Scores of 3e5, as version 2.1 has them, overflow in float16."""
    x = draw(1, 1, 6, 8)
    layer = sd.Attention(2)
    params = random_params(layer, x, x)
    params["params"]["q"]["kernel"] *= 3e5
    scores = (x[0, 0] @ params["params"]["q"]["kernel"]) @ x[0, 0].T
    assert np.abs(scores).max() > 3e5
    output = layer.apply(params, x.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
    assert output.dtype == jnp.bfloat16 and np.isfinite(np.float32(output)).all()


def test_bfloat16_is_close(draw, random_params):
    network, z = tiny(), draw(1, 1, 4, 4, 4)
    inputs = Inputs(vector=draw(1, 8), tokens=draw(1, 2, 6))
    params = random_params(network, z, inputs)
    half = network.clone(spec=dataclasses.replace(network.spec, dtype="bfloat16"))
    output, expected = (
        np.asarray(jax.jit(each.apply)(params, z, inputs)) for each in (half, network)
    )
    assert output.dtype == np.float32
    assert 0 < np.std(output - expected) < 0.03 * expected.std()


def test_a_new_network_returns_0_and_its_blocks_their_input(draw, quick_jit):
    """The last kernels of residuals and of the network are 0, and so is every bias."""
    network, z = tiny(), draw(1, 1, 4, 4, 4)
    inputs = Inputs(vector=draw(1, 8), tokens=draw(1, 2, 6))
    key = jax.random.key(0, impl="rbg")  # it compiles fast
    params = named_leaves(quick_jit(network.init)(key, z, inputs)["params"])
    last = ("conv_1/kernel", "proj_out/kernel", "conv_out/kernel")
    for path, leaf in params.items():
        is_zero = path.endswith((*last, "bias"))
        assert np.any(leaf) != is_zero, path
    assert sum(path.endswith(last) for path in params) == 5 + 3 + 1


def test_a_layer_that_mixes_frames_follows_the_transformer(draw, random_params):
    """Temporal layers of the library are named in a level like any other."""
    network, z = tiny("temporal_conv"), draw(1, 3, 4, 4, 4)
    inputs = Inputs(vector=draw(1, 8), tokens=draw(1, 2, 6))
    params = random_params(network, z, inputs)
    apply = jax.jit(network.apply)
    output, changed = (apply(params, x, inputs) for x in (z, z.at[:, 2].set(0)))
    assert np.abs(changed - output)[:, 1].max() > 1e-3


WRONG = {
    "num_heads=(2,): one number for each of the 2 levels": {"num_heads": (2,)},
    "levels[1].channels=64 must be a multiple of 3 (num_heads[1])": {
        "num_heads": (2, 3)
    },
    "levels[0].channels=32 must be a multiple of 5 (norm_groups)": {"norm_groups": 5},
    "config.network.levels[0].layers=('spatial',): (one of spatial_attention": {
        "levels": ({"channels": 32, "blocks": 1, "layers": ("spatial",)},)
    },
    "config.network.width: kind 'sd' has no such setting": {"width": 3},
    "config.network.norm_groups='8': an integer from 1": {"norm_groups": "8"},
    "levels of 32 channels need the same number of heads": {
        "levels": ({"channels": 32, "blocks": 1},) * 2
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_fields_that_do_not_fit_are_refused(message):
    with pytest.raises(UserError, match=re.escape(message)):
        changes = {"num_heads": (2, 4), **WRONG[message]}
        small_sd.build(sd_cases.UNETS["sd1"], **changes)


def test_a_size_that_the_levels_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"video.height=9 must be a multiple of 2"):
        small_sd.build({**sd_cases.UNETS["sd1"], "sample_size": (9, 8)})
