"""Tune-A-Video's network, against the authors' program."""

import gzip
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tune_a_video
from tests.networks import small_sd
from tests.parity import recorded
from tests.parity.drawn import normal, weight
from vdm_jax.diffusion import process, samplers
from vdm_jax.networks.inputs import Inputs
from vdm_jax.networks.sd import SDLevel, SDResBlock, SDSpec
from vdm_jax.networks.temporal.tune import TRANSFORMER, TimedTransformerBlock
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

# Module of diffusers -> ours, within a transformer block.
NAMES = {
    "norm1": "self_norm", "norm2": "cross_norm", "norm3": "mlp_norm",
    "norm_temp": "time_norm", "ff.net.0.proj": "mlp_in", "ff.net.2": "mlp_out",
    **{
        f"{theirs}.{part}": f"{ours}/{own}"
        for theirs, ours in (
            ("attn1", "self_attention"), ("attn2", "cross_attention"),
            ("attn_temp", "time_attention"),
        )
        for part, own in (
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out"),
        )
    },
}  # fmt: skip
RECORDED = json.loads((recorded.FOLDER / "tune_a_video_unet.json").read_text())
NETWORK = "tav/unet"
SECTION = dict(frame_reads="previous", joint_norms=True, temporal="tune")


def leaf(network, name, shape):
    """Return a drawn weight of torch in our layout, and the name of its leaf."""
    array = weight(network, name, tuple(shape))
    if name.endswith("bias"):
        return "bias", array
    if array.ndim == 1:
        return "scale", array
    return "kernel", np.moveaxis(array, (0, 1), (-1, -2))


def nested(leaves):
    """Return arrays by path as nested dicts."""
    tree: dict = {}
    for path, array in leaves.items():
        *modules, name = path.split("/")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = array
    return tree


def part_params(network, prefix=""):
    """Return the drawn parameters of a recorded part. prefix: of the block's names."""
    file = json.loads((recorded.FOLDER / "tune_a_video_parts.json").read_text())
    leaves = {}
    for theirs, shape in file["networks"][network].items():
        module = theirs.rpartition(".")[0]
        inside = module.removeprefix(prefix)
        ours = f"block/{NAMES[inside]}" if module != inside or not prefix else module
        name, array = leaf(network, theirs, shape)
        leaves[f"{ours}/{name}"] = array
    return nested(leaves)


def spec(**changes):
    fields = {"levels": (SDLevel(16, 1),), "num_heads": (2,), "norm_groups": 4}
    return SDSpec(**{**fields, "frame_reads": "previous", **changes})


def text(rows=5):
    return Inputs(tokens=jnp.asarray(normal("tav/input/text", (2, rows, 24))))


def test_the_block_equals_the_published_one():
    expected = recorded.load("tune_a_video_parts")["block"]
    x = jnp.asarray(normal("tav/input/block", (6, 9, 16)).reshape(2, 3, 9, 16))
    params = part_params("tav/block")["block"]
    module = TimedTransformerBlock(spec())
    found = jax.jit(module.apply)({"params": params}, x, text())
    np.testing.assert_allclose(found.reshape(6, 9, 16), expected, atol=1e-5)


def test_the_residual_block_equals_the_published_one():
    """Its norms are joint over the frames of a clip."""
    names = {
        "norm1": "norm_0", "conv1": "conv_0", "time_emb_proj": "vector",
        "norm2": "norm_1", "conv2": "conv_1", "conv_shortcut": "skip",
    }  # fmt: skip
    file = json.loads((recorded.FOLDER / "tune_a_video_parts.json").read_text())
    leaves = {}
    for theirs, shape in file["networks"]["tav/resnet"].items():
        name, array = leaf("tav/resnet", theirs, shape)
        leaves[f"{names[theirs.rpartition('.')[0]]}/{name}"] = array
    x = np.moveaxis(normal("tav/input/resnet", (2, 16, 3, 4, 4)), 1, -1)
    inputs = Inputs(vector=jnp.asarray(normal("tav/input/temb", (2, 20))))
    expected = recorded.load("tune_a_video_parts")["resnet"]
    for joint in (True, False):
        block = SDResBlock(spec(joint_norms=joint), 24)
        found = jax.jit(block.apply)({"params": nested(leaves)}, x, inputs)
        error = np.abs(np.moveaxis(found, -1, 1) - expected).max()
        assert error < 1e-5 if joint else error > 0.1


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_transformer_equals_the_published_one(kind):
    name = f"transformer_{kind}"
    expected = recorded.load("tune_a_video_parts")[name]
    x = np.moveaxis(normal("tav/input/transformer", (2, 16, 3, 3, 3)), 1, -1)
    params = part_params(f"tav/{name}", "transformer_blocks.0.")
    module = TRANSFORMER(spec(linear_projection=kind == "linear"))
    found = jax.jit(module.apply)({"params": params}, jnp.asarray(x), text())
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, atol=1e-5)


def path_of(theirs):
    """Return the path of our leaf for a name of the authors' U-Net."""
    known = theirs.replace("attn_temp", "attn1").replace("norm_temp", "norm1")
    path = small_sd.names(unet_config())[known].removeprefix(KERNEL)
    if known != theirs:
        path = path.replace("self_attention", "time_attention")
        path = path.replace("self_norm", "time_norm")
    return path


def unet_params(params, **zero):
    """Return the U-Net's drawn parameters; zero: of the outputs over frames."""
    table = {}
    for theirs, shape in RECORDED["networks"][NETWORK].items():
        _, table[path_of(theirs)] = leaf(NETWORK, theirs, shape)
    for part, is_zero in zero.items():
        for path in table:
            if is_zero and path.endswith(f"time_attention/out/{part}"):
                table[path] = np.zeros_like(table[path])
    assert table.keys() == named_leaves(params).keys()
    return nested(table)


def unet_config():
    config = RECORDED["config"]
    kinds = {
        name: [kind.replace("3D", "2D") for kind in config[name]]
        for name in ("down_block_types", "up_block_types")
    }
    own = {k: v for k, v in config.items() if k not in ("trained", "sd1_size")}
    return own | kinds


@pytest.mark.parametrize(
    ("array", "zero"),
    [
        ("all_drawn", {}),
        ("temporal_weight_zero", {"kernel": True}),
        ("temporal_weight_and_bias_zero", {"kernel": True, "bias": True}),
        ("static_clip_temporal_weight_zero", {"kernel": True}),
        ("static_clip_temporal_weight_and_bias_zero", {"kernel": True, "bias": True}),
    ],
)
def test_the_unet_equals_the_published_one(array, zero):
    expected = recorded.load("tune_a_video_unet")[array]
    config = unet_config()
    params = unet_params(small_sd.abstract_params(config, **SECTION), **zero)
    if array.startswith("static"):
        still = normal("tav/input/static", (2, 4, 1, 8, 8))
        sample = still.repeat(3, axis=2)
    else:
        sample = normal("tav/input/sample", (2, 4, 3, 8, 8))
    z = np.moveaxis(sample, 1, -1)
    logsnr = small_sd.logsnr_of((501, 21)).astype(np.float32)
    model = small_sd.build(config, **SECTION)
    tokens = normal("tav/input/text", (2, 5, 24))
    found = np.moveaxis(small_sd.run(model, params, z, logsnr, tokens=tokens), -1, 1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if array == "static_clip_temporal_weight_and_bias_zero":  # the image network's
        image = small_sd.build(config)
        paths = {k: v for k, v in named_leaves(params).items() if "/time_" not in k}
        one = small_sd.run(image, nested(paths), z[:, :1], logsnr, tokens=tokens)
        np.testing.assert_allclose(
            found, np.moveaxis(one, -1, 1).repeat(3, 2), atol=2e-5
        )


def trained(params):
    """Return the parameters that configs/tune_a_video.py trains, by path."""
    config: Any = tune_a_video.get_config()
    patterns = config.train.trainable
    return {
        path: leaf
        for path, leaf in named_leaves(params).items()
        if next(trains for pattern, trains in patterns if re.fullmatch(pattern, path))
    }


def test_the_published_program_trains_the_same_parameters():
    params = small_sd.abstract_params(unet_config(), **SECTION)
    assert trained(params).keys() == {*map(path_of, RECORDED["config"]["trained"])}


def test_as_many_train_and_are_new_at_stable_diffusion_s_size():
    shapes = gzip.decompress((recorded.FOLDER / "sd_unet_shapes.json.gz").read_bytes())
    params = small_sd.abstract_params(
        json.loads(shapes)["sd15_unet"]["config"], **SECTION
    )
    leaves, expected = named_leaves(params), RECORDED["config"]["sd1_size"]
    new = {path: leaf for path, leaf in leaves.items() if "/time_" in path}
    assert expected == {
        name: sum(leaf.size for leaf in part.values())
        for name, part in (
            ("parameters", leaves), ("trained", trained(params)), ("new_temporal", new),
        )
    }  # fmt: skip


def test_bfloat16_is_close_to_float32_and_videos_are_apart():
    params = unet_params(small_sd.abstract_params(unet_config(), **SECTION))
    z = np.moveaxis(normal("tav/input/sample", (2, 4, 3, 8, 8)), 1, -1)
    logsnr = small_sd.logsnr_of((501, 21)).astype(np.float32)
    tokens = normal("tav/input/text", (2, 5, 24))

    def output(z, dtype):
        model = small_sd.build(unet_config(), **SECTION, dtype=dtype)
        return np.asarray(small_sd.run(model, params, z, logsnr, tokens=tokens))

    exact, rounded = output(z, "float32"), output(z, "bfloat16")
    assert rounded.dtype == np.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 3e-2
    other = z.copy()
    other[1, 0] += 1
    other = output(other, "float32")
    np.testing.assert_array_equal(other[0], exact[0])
    assert (np.abs(other[1] - exact[1]).max((1, 2, 3)) > 0.01).all()


def test_inversion_with_the_unet_equals_the_published_program():
    """Three steps up; the network is conditioned on the level where a step ends."""
    expected = recorded.load("tune_a_video_inversion")["net_inversion"]
    params = unet_params(
        small_sd.abstract_params(unet_config(), **SECTION), kernel=True, bias=True
    )
    network, encoder = small_sd.build(unet_config(), **SECTION)
    tokens = jnp.asarray(normal("tav/input/text_null", (1, 5, 24)))
    sampler = samplers.ddim_inversion(at_end=True)
    z = jnp.moveaxis(jnp.asarray(normal("tav/input/latent", (1, 4, 3, 8, 8))), 1, -1)
    table = samplers.pad_table(sampler.table(small_sd.SCHEDULE, 3), z.dtype)

    def denoise(z, level, cond):
        logsnr = jnp.broadcast_to(level.logsnr, (1,))
        own = {"params": params["conditioning_encoder"]}
        vector = encoder.apply(own, logsnr, z.shape[1], {}).vector
        inputs = Inputs(vector=vector, tokens=tokens)
        eps = network.apply({"params": params["network"]}, z, inputs)
        return process.PREDICTION_TYPES["eps"](eps, z, level)

    @jax.jit
    def step(z, i):
        carry = sampler.init(z)
        return samplers.sample_loop(
            sampler, denoise, carry, table, i, i + 1, lambda i, draw: None, None
        )[0]

    for i in range(3):
        z = step(z, i)
        found = np.moveaxis(z, -1, 1)
        np.testing.assert_allclose(found, expected[i + 1], atol=1e-4)
