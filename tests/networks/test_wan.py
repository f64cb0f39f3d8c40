"""Wan's transformer: parity with diffusers, levels by frame, text, positions."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_wan
from tests.networks.small_wan import RECORDED, to_ours
from tests.parity import wan_cases
from tests.parity.drawn import normal
from tests.parity.recorded import real_network
from vdm_jax.errors import UserError
from vdm_jax.networks import wan
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.positions import apply_rope, rope_angles, rope_splits
from vdm_jax.pretrained import wan_transformer
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

CONFIG, _ = small_wan.described("transformer")
VIDEO, TEXT = jnp.asarray(to_ours(wan_cases.video())), jnp.asarray(wan_cases.text())


@pytest.fixture(scope="module")
def model():
    return small_wan.model(CONFIG, text_length=7)


def output(model, times=wan_cases.TIMESTEPS, z=VIDEO, text=TEXT, **inputs):
    params = small_wan.drawn_params()
    times = jnp.asarray(times)
    return np.asarray(small_wan.run(model, params, z, times, tokens=text, **inputs))


@pytest.mark.parametrize(
    "name, times",
    [
        ("output", wan_cases.TIMESTEPS),
        ("output_with_frame_levels", wan_cases.FRAME_TIMESTEPS),
    ],
)
def test_output_equals_diffusers(model, name, times):
    """Also with a level for each frame, which theirs has for each token."""
    expected = to_ours(RECORDED[f"transformer/{name}"])
    error = np.abs(output(model, times) - expected).max()
    print(name, error)
    assert error < 1e-5 and expected.std() > 1


def test_a_block_equals_diffusers(model):
    network, _ = model
    f, h, w = wan_cases.GRID
    angles = rope_angles((f, h, w), rope_splits(18)).reshape(f, h * w, 9)
    params = small_wan.drawn_params()["network"]["block_0"]
    x = wan_cases.tokens().reshape(2, f, h * w, 36)
    text = normal("wan/input/context", (2, 7, 36))[:, None]
    levels = normal("wan/input/vector", (2, 6, 36))[:, None]
    block = wan.Block(network.spec)
    arrays = map(jnp.asarray, (x, text, levels))
    y = np.asarray(block.apply({"params": params}, *arrays, angles))
    expected = RECORDED["transformer/block"]
    np.testing.assert_allclose(y.reshape(2, -1, 36), expected, atol=1e-5)


def test_positions_equal_diffusers():
    f, h, w = wan_cases.GRID
    angles = rope_angles((f, h, w), rope_splits(18)).reshape(f * h * w, 9)
    x = jnp.asarray(wan_cases.tokens().reshape(2, -1, 2, 18))
    turned = apply_rope(x, angles)
    np.testing.assert_allclose(turned, RECORDED["transformer/rope"], atol=1e-5)


def test_padding_of_the_text_is_zeros_and_other_texts_are_not_read(model):
    network, encoder = model
    longer = dataclasses.replace(network.spec, text_length=16)
    model = network.clone(spec=longer), encoder
    mask = jnp.asarray([[1] * 7, [1] * 3 + [0] * 4], bool)
    text = jnp.where(mask[..., None], TEXT, 0)
    expected = output(model, text=text)
    other = jnp.where(mask[..., None], TEXT, 5.0)
    np.testing.assert_array_equal(output(model, text=other, token_mask=mask), expected)
    padded = jnp.pad(other, ((0, 0), (0, 9), (0, 0))), jnp.pad(mask, ((0, 0), (0, 9)))
    padded = output(model, text=padded[0], token_mask=padded[1])
    np.testing.assert_array_equal(padded, expected)
    neighbour = output(model, text=text.at[0].set(TEXT[1]))
    np.testing.assert_array_equal(neighbour[1], expected[1])
    assert np.abs(output(model, text=TEXT)[1] - expected[1]).max() > 1e-3
    with pytest.raises(UserError, match="17 tokens: network.text_length=16 at most"):
        output(model, text=jnp.zeros((2, 17, 20)))


def test_bfloat16_is_close(model):
    network, encoder = model
    spec = dataclasses.replace(network.spec, dtype="bfloat16")
    half = output((network.clone(spec=spec), encoder))
    expected = output(model)
    assert half.dtype == np.float32
    assert 0 < np.std(half - expected) < 0.03 * expected.std()


def one_block(**changes):
    return small_wan.model(CONFIG, text_length=2, num_layers=1, **changes)[0]


def test_gradients_are_the_same_where_activations_are_computed_again():
    z, vector, text = VIDEO[:1, :1, :2, :2], jnp.ones((1, 36)), TEXT[:1, :2]
    inputs = Inputs(vector=vector, tokens=text)
    params = {"params": small_wan.drawn_params()["network"]}
    plain, other = (
        jax.jit(jax.grad(lambda p, n=n: jnp.square(n.apply(p, z, inputs)).mean()))
        for n in (one_block(), one_block(remat="full"))
    )
    for a, b in zip(*map(jax.tree.leaves, (plain(params), other(params))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_new_network_returns_0():
    z = VIDEO[:1, :1, :2, :2]
    inputs = Inputs(vector=jnp.ones((1, 36)), tokens=TEXT[:1, :2])
    init = jax.jit(one_block().init_with_output)
    assert not init(jax.random.key(0), z, inputs)[0].any()


def test_names_and_shapes_of_the_published_network():
    """Both ways without rest: no name of theirs and no path of ours is left."""
    listed = real_network("wan21_t2v_1_3b_transformer")
    fields = wan_transformer.fields(listed["config"])
    ours = named_leaves(small_wan.abstract_params(listed["config"]))
    names = wan_transformer.names(fields["network"])
    assert names.keys() == listed["shapes"].keys()
    paths = [target.removeprefix(KERNEL) for target in names.values()]
    assert sorted(paths) == sorted(ours)
    for theirs, target in names.items():
        shape = ours[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):  # [*window, in, out] -> [out, in, *window]
            shape = (shape[-1], shape[-2], *shape[:-2])
        assert list(shape) == listed["shapes"][theirs], theirs
    assert sum(math.prod(leaf.shape) for leaf in ours.values()) == listed["parameters"]
    assert wan.WanSpec(**fields["network"]) == wan.WanSpec()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_channels": 36}, "in_channels=36 and out_channels=4: .*image to video"),
        ({"added_kv_proj_dim": 5120}, "added_kv_proj_dim=5120: only None"),
        ({"patch_size": [2, 2, 2]}, r"patch_size=\(2, 2, 2\): one frame of a square"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm': only 'rms_norm_across"),
        ({"num_layers": "2"}, "num_layers='2': give a whole number, as 40"),
        ({"window_size": 3}, "window_size=3: not a known option"),
    ],
)
def test_a_config_of_another_network_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        wan_transformer.fields(CONFIG | changes)


def test_wrong_fields_are_named():
    section = wan_transformer.fields(CONFIG)["network"]
    for changes, message in (
        ({"head_dim": 7}, "config.network.head_dim=7: an even number"),
        ({"num_layers": 0}, "config.network.num_layers=0: an integer from 1"),
        ({"depth": 2}, "config.network.depth: kind 'wan' has no such setting"),
    ):
        with pytest.raises(UserError, match=message):
            wan.from_config(section | changes, 4, [])
    with pytest.raises(UserError, match="video.width=5 must be a multiple of 2"):
        wan.from_config(section, 4, [(4, 5)])
    assert json.dumps(section)  # plain fields
