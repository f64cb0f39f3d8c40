"""Laws of the diffusion transformer; test_dit_parity.py has recorded arrays."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.networks import NETWORKS
from vdm_jax.networks.dit import DiT
from vdm_jax.networks.dit_blocks import ATTEND, DiTSpec, SelfAttention
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.positions import rope_angles, rope_splits
from vdm_jax.trees import named_leaves

SPEC = DiTSpec(
    width=16, depth=1, num_heads=2, positions="rope", cross_attention=True,
    out_channels=4,
)  # fmt: skip
each_attend = pytest.mark.parametrize("attend", ATTEND)
# What changes nothing at initialisation, by the paths of its modulation.
TIME = "time_"


def network(attend="full", **changes) -> DiT:
    return DiT(dataclasses.replace(SPEC, attend=attend, **changes))


def apply(net: DiT, params, z, inputs: Inputs) -> np.ndarray:
    return np.asarray(jax.jit(net.apply)(params, z, inputs))


@pytest.fixture
def example(draw):
    """fn(f, h, w) -> z and inputs of two videos, with a vector for each frame."""

    def make(f=3, h=4, w=6, **changes):
        inputs = Inputs(
            vector=draw(2, f, 8, seed=1),
            tokens=draw(2, 5, 6, seed=2),
            token_mask=jnp.arange(5)[None] < jnp.array([5, 3])[:, None],
        )
        return draw(2, f, h, w, 4), dataclasses.replace(inputs, **changes)

    return make


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


@pytest.mark.parametrize(
    ("attend", "adaln_single"),
    [("full", False), ("v1", True), ("v3", False), ("v3", True)],
)
def test_output_is_zero_at_initialisation(example, attend, adaln_single):
    z, inputs = example()
    net = network(attend, adaln_single=adaln_single, learn_sigma=True)
    inputs = dataclasses.replace(inputs, vector=jnp.tile(inputs.vector, 2))
    variables = jax.jit(net.init)(jax.random.key(0), z, inputs)
    output = apply(net, variables, z, inputs)
    assert output.shape == z.shape and not np.asarray(output).any()


def without_time(params: dict) -> dict:
    """Return parameters whose modulation of what mixes frames is 0, as at the start."""
    leaves = named_leaves(params)
    new = [
        jnp.zeros_like(leaf) if TIME in path and "modulation" in path else leaf
        for path, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), new)


@pytest.mark.parametrize("attend", ["v1", "v3"])
def test_a_start_from_an_image_network_is_that_network(example, random_params, attend):
    """Where the modulation of time is 0, each frame is an image of a DiT."""
    z, inputs = example()
    video, image = network(attend), network("full")
    params = random_params(video, z, inputs)
    extended = without_time(params)
    own = random_params(image, z[:, :1], inputs)
    same = {path for path in named_leaves(own) if TIME not in path}
    assert same == {path for path in named_leaves(params) if TIME not in path}
    output = apply(video, extended, z, inputs)
    for i in range(z.shape[1]):
        one = dataclasses.replace(inputs, vector=inputs.vector[:, i])
        close(apply(image, own, z[:, i : i + 1], one)[:, 0], output[:, i])
    assert np.std(apply(video, params, z, inputs) - output) > 0.1


@each_attend
@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_independent_images(example, draw, random_params, attend, positions):
    """Two frames and two images: each image is a video of one frame of its own."""
    net = network(attend, positions=positions)
    is_video = jnp.tile(jnp.array([True, True, False, False]), (2, 1))
    z, inputs = example(4, tokens=draw(2, 3, 5, 6, seed=2), token_mask=None)
    inputs = dataclasses.replace(inputs, frame_mask=is_video)
    params = random_params(net, z, inputs)
    output = apply(net, params, z, inputs)
    for i in (2, 3):
        alone = Inputs(vector=inputs.vector[:, i], tokens=inputs.tokens[:, i - 1])
        if attend == "full":
            close(apply(net, params, z[:, i : i + 1], alone)[:, 0], output[:, i])
        other = apply(net, params, z.at[:, i].set(0), inputs)
        changed = np.abs(other - output).max(axis=(0, 2, 3, 4)) > 1e-4
        assert changed.tolist() == [j == i for j in range(4)]
    video = Inputs(vector=inputs.vector[:, :2], tokens=inputs.tokens[:, 0])
    close(apply(net, params, z[:, :2], video), output[:, :2])
    other = apply(net, params, z.at[:, 1].set(0), inputs)
    changed = np.abs(other - output).max(axis=(0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("attend", ["v1", "v3"])
def test_images_pass_what_mixes_frames_unchanged(example, random_params, attend):
    """Frames that are all images are those of a DiT of images, bit for bit."""
    z, inputs = example()
    images = dataclasses.replace(inputs, frame_mask=jnp.zeros((2, 3), bool))
    net = network(attend, positions="sincos")
    params = random_params(net, z, inputs)
    output = apply(net, params, z, images)
    other = apply(net, without_time(params), z, images)
    np.testing.assert_array_equal(other, output)


def test_full_attention_equals_a_sum_over_all_tokens(draw, random_params):
    """In numpy, with complex numbers for the rotations, frame mask included."""
    f, h, w, c, heads = 3, 2, 4, 16, 2
    x = draw(2, f, h, w, c)
    layer = SelfAttention(SPEC, "video")
    splits = rope_splits(c // heads)
    angles = rope_angles((f, h, w), splits).reshape(f, h * w, -1)
    mask = np.array([[True, True, False], [True, True, True]])
    inputs = Inputs(frame_mask=jnp.asarray(mask))
    params = random_params(layer, x, inputs, angles)
    ours = layer.apply(params, x, inputs, angles)
    own = jax.tree.map(np.float64, params["params"])
    tokens = np.float64(x).reshape(2, f * h * w, c)
    project = lambda name: (  # noqa: E731
        tokens @ own[name]["kernel"] + own[name]["bias"]
    ).reshape(2, f * h * w, heads, c // heads)
    q, k, v = map(project, "qkv")
    turn = np.exp(1j * np.float64(angles).reshape(1, f * h * w, 1, -1))
    q, k = ((y[..., ::2] + 1j * y[..., 1::2]) * turn for y in (q, k))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k.conj()).real / np.sqrt(c // heads)
    frame = np.repeat(np.arange(f), h * w)
    both = mask[:, frame][:, :, None] & mask[:, frame][:, None]
    reads = both | (frame[:, None] == frame[None])[None]
    p = np.exp(scores) * reads[:, None]
    y = np.einsum("bhnm,bmhd->bnhd", p / p.sum(-1, keepdims=True), v)
    y = y.reshape(2, -1, c) @ own["out"]["kernel"] + own["out"]["bias"]
    close(ours, y.reshape(x.shape))


@each_attend
@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_one_network_for_all_sizes(example, random_params, attend, positions):
    net = network(attend, positions=positions)
    z, inputs = example()
    params = random_params(net, z, inputs)
    for f, h, w in ((1, 4, 6), (5, 6, 4), (2, 2, 2)):
        z, inputs = example(f, h, w)
        output = apply(net, params, z, inputs)
        assert output.shape == z.shape and np.isfinite(output).all()


@each_attend
def test_rows_are_not_columns(example, random_params, attend):
    """A video and its transpose have different outputs."""
    z, inputs = example(2, 4, 4)
    net = network(attend)
    params = random_params(net, z, inputs)
    patch = params["params"]["patch_in"]["kernel"]
    params["params"]["patch_in"]["kernel"] = patch.at[:].set(patch[:1, :1])
    transposed = apply(net, params, z.swapaxes(2, 3), inputs).swapaxes(2, 3)
    assert np.std(transposed - apply(net, params, z, inputs)) > 0.1


@each_attend
def test_levels_of_frames(example, random_params, attend):
    """A vector for each frame is one for all where they are equal."""
    z, inputs = example()
    net = network(attend)
    params = random_params(net, z, inputs)
    vector = inputs.vector[:, 0]
    each = jnp.repeat(vector[:, None], 3, axis=1)
    one, equal = (
        apply(net, params, z, dataclasses.replace(inputs, vector=v))
        for v in (vector, each)
    )
    close(one, equal, 1e-6)
    other = each.at[:, 0].set(inputs.vector[:, 1])
    changed = apply(net, params, z, dataclasses.replace(inputs, vector=other))
    assert np.abs(changed - one).max(axis=(0, 2, 3, 4)).min() > 1e-3


def test_masked_tokens_are_not_read(example, draw, random_params):
    """Nor is the other video of the batch, or any of a text that is dropped."""
    z, inputs = example()
    net = network()
    params = random_params(net, z, inputs)
    other = inputs.tokens.at[1, 3:].set(7.0)
    output = apply(net, params, z, inputs)
    other = apply(net, params, z, dataclasses.replace(inputs, tokens=other))
    np.testing.assert_array_equal(other, output)
    first = dataclasses.replace(inputs, tokens=inputs.tokens.at[0].set(7.0))
    neighbour = apply(net, params, z.at[0].set(0), first)
    np.testing.assert_array_equal(neighbour[1], output[1])
    empty, short = (
        dataclasses.replace(
            inputs, tokens=draw(2, n, 6, seed=n), token_mask=jnp.zeros((2, n), bool)
        )
        for n in (5, 1)
    )
    dropped = apply(net, params, z, empty)
    close(apply(net, params, z, short), dropped, 1e-6)
    assert np.std(dropped - output) > 0.1


def test_further_outputs_are_not_read(example, random_params):
    z, inputs = example()
    wide, own = network(out_channels=8), network(learn_sigma=True)
    params = random_params(wide, z, inputs)
    output = apply(wide, params, z, inputs)
    np.testing.assert_array_equal(apply(own, params, z, inputs), output[..., :4])


def test_channels_are_concatenated(example, draw, random_params):
    z, inputs = example()
    inputs = dataclasses.replace(inputs, concat=draw(2, 3, 4, 6, 5))
    params = random_params(network(), z, inputs)
    assert params["params"]["patch_in"]["kernel"].shape == (2, 2, 9, 16)


@each_attend
def test_bfloat16(example, random_params, attend):
    z, inputs = example()
    params = random_params(network(attend), z, inputs)
    output = apply(network(attend), params, z, inputs)
    half = apply(network(attend, dtype="bfloat16"), params, z, inputs)
    assert half.dtype == jnp.float32
    assert 0 < np.std(half - output) < 0.03 * np.std(output)


def test_recomputation_has_the_same_gradient(example, random_params):
    z, inputs = example(2, 2, 4)
    params = random_params(network("v3"), z, inputs)

    def loss(params, remat):
        output: Any = network("v3", remat=remat).apply(params, z, inputs)
        return jnp.square(output).sum()

    own, again = (
        jax.tree.leaves(jax.jit(jax.grad(loss), static_argnums=1)(params, remat))
        for remat in ("none", "full")
    )
    for a, b in zip(own, again, strict=True):
        close(a, b, 1e-4 * max(1.0, float(jnp.abs(a).max())))


EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from vdm_jax import sharding
from vdm_jax.networks import packing
from vdm_jax.networks.dit import DiT
from vdm_jax.networks.dit_blocks import DiTSpec
from vdm_jax.networks.inputs import Inputs
jax.config.update("jax_enable_x64", True)
attend, axes = sys.argv[1], eval(sys.argv[2])
net = DiT(DiTSpec(width=16, depth=1, num_heads=2, positions="rope", out_channels=4,
                  attend=attend.removeprefix("packed "), cross_attention=True))
rng = np.random.default_rng(0)
z, vector, tokens = map(rng.standard_normal, ((2, 4, 4, 8, 4), (2, 2, 8), (2, 2, 3, 6)))
if attend.startswith("packed"):
    buffers = [packing.pack([video, video[:2, :, :4]], 2, 40) for video in z]
    z, where = jax.tree.map(lambda *a: np.stack(a), *buffers)
    inputs = Inputs(jnp.asarray(vector), tokens=jnp.asarray(tokens), packing=where)
else:
    is_video = np.array([[True, True, True, False]] * 2)
    inputs = Inputs(jnp.asarray(vector[:, 0]), tokens=jnp.asarray(tokens),
                    frame_mask=jnp.asarray(is_video))
abstract = jax.eval_shape(net.init, jax.random.key(0), z, inputs)
params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape), abstract)

def loss(params, z):
    return jnp.square(net.apply(params, z, inputs)).sum()

one = jax.jit(jax.value_and_grad(loss))(params, z)
mesh = sharding.make_mesh(**axes)
with jax.set_mesh(mesh), sharding.activation_rules(mesh):
    own = jax.device_put(params, sharding.state_shardings(mesh, abstract))
    split = jax.device_put(z, sharding.batch_sharding(mesh, z.shape))
    assert len(split.sharding.device_set) == 8
    many = jax.jit(jax.value_and_grad(loss))(own, split)
for a, b in zip(*map(jax.tree.leaves, (one, many)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("attend", [*ATTEND, "packed full"])
@pytest.mark.parametrize(
    "axes", [{"fsdp": 8}, {"context": 4, "fsdp": 2}, {"tensor": 2, "fsdp": 4}], ids=str
)
def test_eight_devices_equal_one(attend, axes):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, attend, repr(axes)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        ({"width": 10, "num_heads": 4}, [], "network.width=10 must be a multiple of 4"),
        ({"width": 18, "num_heads": 2}, [], r"multiple of 4 \(4 with positions=sincos"),
        (
            {"width": 12, "num_heads": 4, "positions": "rope"},
            [],
            r"multiple of 8 \(2 \* num_heads with rope",
        ),
        ({"patch_size": 4}, [(8, 6)], "video.width=6 must be a multiple of 4"),
        ({"attend": "v2"}, [], "config.network.attend='v2': one of full, v1, v3"),
        ({"levels": ()}, [], "config.network.levels: kind 'dit' has no such setting"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(fields, sizes, message):
    with pytest.raises(UserError, match=message):
        NETWORKS["dit"]({"kind": "dit"} | fields, 4, sizes)
