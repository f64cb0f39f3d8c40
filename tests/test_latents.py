"""Videos to latents and back: vdm_jax/latents.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.drawn import normal
from tests.parity.pipeline_cases import former_name
from tests.parity.recorded import load, write_autoencoder
from vdm_jax import codec, latents, settings
from vdm_jax.errors import UserError
from vdm_jax.networks.autoencoder import AutoencoderKL, AutoencoderSpec
from vdm_jax.pretrained import safetensors_io
from vdm_jax.settings import sections
from vdm_jax.trees import named_leaves


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return latents.load(write_autoencoder(folder, force_upcast=False))


@pytest.fixture(scope="module")
def tiny():
    """Return an autoencoder of factor 2, and random parameters."""
    spec = AutoencoderSpec(channels=(4, 4), blocks=1, num_groups=2, mid_attention=False)
    network = AutoencoderKL(spec)
    frame = jax.ShapeDtypeStruct((1, 1, 4, 4, 3), jnp.float32)
    like = jax.eval_shape(network.init, jax.random.key(0), frame)["params"]
    named = named_leaves(like).items()
    drawn = [jnp.asarray(normal(f"tiny/{k}", leaf.shape)) / 3 for k, leaf in named]
    params = jax.tree.unflatten(jax.tree.structure(like), drawn)
    return latents.Autoencoder(network), params


def with_(loaded, **changes):
    autoencoder, params = loaded
    return dataclasses.replace(autoencoder, **changes), params


def video(*shape):
    return jnp.asarray(normal("latents/video", shape))


def test_latents_are_shifted_and_scaled(tiny):
    x = video(1, 2, 8, 8, 3)
    plain, params = with_(tiny, scale=1.0)
    other, _ = with_(tiny, scale=0.5, shift=0.1)
    mean = jax.jit(plain.encode)(params, x)
    z = jax.jit(other.encode)(params, x)
    np.testing.assert_allclose(z, (mean - 0.1) * 0.5, atol=1e-6)
    decoded = jax.jit(other.decode)(params, z)
    expected = jax.jit(plain.decode)(params, mean)
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_means_and_draws(tiny):
    autoencoder, params = with_(tiny, chunk=3)
    x = video(2, 7, 8, 8, 3)
    encode = jax.jit(autoencoder.encode)
    mean = encode(params, x)
    draws = encode(params, x, jax.random.key(0))
    assert mean.shape == draws.shape == (2, 7, 4, 4, 4)
    deviation = np.asarray(draws - mean)
    assert np.abs(deviation).min() > 0 and len(np.unique(deviation)) == deviation.size


@pytest.mark.parametrize("frames", [4, 7, 8])
def test_chunks_change_nothing(tiny, frames):
    whole, params = with_(tiny, chunk=8)
    chunked, _ = with_(tiny, chunk=4)
    x = video(2, frames, 8, 12, 3)
    z, z_chunked = (jax.jit(a.encode)(params, x) for a in (whole, chunked))
    np.testing.assert_allclose(z_chunked, z, atol=1e-5)
    decoded, again = (jax.jit(a.decode)(params, z) for a in (whole, chunked))
    assert decoded.shape == x.shape
    np.testing.assert_allclose(again, decoded, atol=1e-5)
    streamed = list(chunked.stream_encode(params, np.asarray(x[1])))
    np.testing.assert_allclose(np.concatenate(streamed), z[1], atol=1e-5)
    streamed = list(chunked.stream_decode(params, z[1]))
    assert [len(part) for part in streamed] == [4, frames - 4][: 1 + (frames > 4)]
    np.testing.assert_allclose(np.concatenate(streamed), decoded[1], atol=1e-5)


def test_a_stream_compiles_one_program(tiny):
    autoencoder, params = with_(tiny, chunk=2)
    z = np.zeros((7, 2, 2, 4), np.float32)
    list(autoencoder.stream_decode(params, z[:2]))
    before = latents._run._cache_size()
    for frames in (2, 3, 7):
        assert sum(map(len, autoencoder.stream_decode(params, z[:frames]))) == frames
    assert latents._run._cache_size() == before


def test_a_picture_is_not_filled_up_to_a_chunk(tiny):
    """Its program is that of one frame; large frames have fewer in a chunk."""
    autoencoder, _ = tiny
    assert not list(latents.stream(lambda frames: frames, np.zeros((0, 1)), 8, "x"))
    seen = []
    frames = np.zeros((1, 4, 4, 3))
    list(latents.stream(lambda f: seen.append(len(f)) or f, frames, 8, "encoder"))
    assert seen == [1]
    sizes = (64, 64), (256, 256), (512, 512), (1024, 768)
    assert [autoencoder._chunk(*size) for size in sizes] == [8, 4, 1, 1]


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_temporaries_do_not_grow_with_the_length(tiny, method):
    autoencoder, params = with_(tiny, chunk=4)
    channels, size = {"encode": (3, 32), "decode": (4, 16)}[method]

    def temporaries(frames):
        x = jax.ShapeDtypeStruct((2, frames, size, size, channels), jnp.float32)
        compiled = jax.jit(getattr(autoencoder, method)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(8), temporaries(64)
    print(method, few, many)
    assert many == few


def test_tiles_equal_diffusers(tmp_path):
    recorded = load("autoencoder")
    loaded = latents.load(write_autoencoder(tmp_path, part="tiles_"))
    autoencoder, params = with_(loaded, tile=16, scale=1.0)
    x = np.moveaxis(normal("autoencoder/input/large", (1, 3, 36, 28)), 1, -1)
    (mean,) = autoencoder.stream_encode(params, x)
    expected = np.moveaxis(recorded["tiled_mean"], 1, -1)
    print("tiles", np.abs(mean - expected).max())
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    z = np.moveaxis(normal("autoencoder/input/tiles", (1, 4, 18, 14)), 1, -1)
    (decoded,) = autoencoder.stream_decode(params, z)
    expected = np.moveaxis(recorded["tiled_decoded"], 1, -1)
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_a_config_sets_the_tile(tmp_path):
    config = settings.compose({"": sections.Seeded(), "codec": sections.Codec()})
    path = str(write_autoencoder(tmp_path))
    config.codec.update(kind="autoencoder", path=path, tile=16)
    assert codec.from_config(config).autoencoder.tile == 16
    config.codec.tile = 20
    with pytest.raises(UserError, match="codec.tile=20 must be a multiple of 16"):
        codec.from_config(config)
    config.codec.kind = "patch"
    with pytest.raises(UserError, match="tile=20: kind='patch' has no tiles; set it"):
        codec.from_config(config)


def test_small_frames_are_not_tiled(tiny):
    tiled, params = with_(tiny, tile=16)
    z = normal("latents/z", (2, 8, 8, 4))
    whole = list(with_(tiny)[0].stream_decode(params, z))
    np.testing.assert_array_equal(list(tiled.stream_decode(params, z)), whole)
    with pytest.raises(ValueError, match="tile=20 is no multiple of 8"):
        with_(tiny, tile=20)


def test_frames_that_are_not_finite_are_named(tiny):
    autoencoder, params = with_(tiny, chunk=2)
    z = normal("latents/z", (5, 2, 2, 4)).copy()
    z[3] = np.nan
    chunks = autoencoder.stream_decode(params, z)
    assert np.isfinite(next(chunks)).all()
    with pytest.raises(UserError, match="decoder gives .* not finite in frames 3 of 5"):
        next(chunks)


@pytest.mark.parametrize("upcast", [True, False])
def test_half_precision_that_overflows_is_named(tmp_path, upcast):
    """The middle of SDXL's decoder does in float16, which force_upcast is for."""
    folder = write_autoencoder(tmp_path, force_upcast=upcast)
    autoencoder, params = latents.load(folder, dtype="float16")
    conv = params["decoder"]["middle"]["block_0"]["conv_1"]
    conv["kernel"] *= 1e5
    chunks = autoencoder.stream_decode(params, normal("latents/z", (2, 4, 4, 4)))
    if upcast:
        assert np.isfinite(next(chunks)).all()
        return
    with pytest.raises(UserError, match="decoder gives .* frames 0, 1 of 2: compute"):
        next(chunks)


def test_a_wrong_size_is_answered_with_the_nearest(tiny):
    autoencoder, params = tiny
    with pytest.raises(UserError, match="9x8: .* multiples of 2"):
        autoencoder.encode(params, video(1, 1, 9, 8, 3))
    with pytest.raises(UserError, match="9x8: .* multiples of 2"):
        autoencoder.stream_encode(params, np.zeros((1, 9, 8, 3), np.float32))


def test_the_config_decides_scale_and_shift(tmp_path, capsys):
    write_autoencoder(tmp_path, scaling_factor=0.13025, shift_factor=0.1)
    autoencoder, _ = latents.load(tmp_path)
    assert (autoencoder.scale, autoencoder.shift) == (0.13025, 0.1)
    assert not capsys.readouterr().err
    write_autoencoder(tmp_path, scaling_factor=None)
    autoencoder, _ = latents.load(tmp_path)
    assert (autoencoder.scale, autoencoder.shift) == (0.18215, 0.0)
    line = f"{tmp_path}/config.json has no scaling_factor: 0.18215 is used\n"
    assert capsys.readouterr().err == line


def test_half_precision_is_used_where_it_is_enough(tmp_path):
    for upcast, dtype in ((None, "float32"), (True, "float32"), (False, "bfloat16")):
        write_autoencoder(tmp_path, force_upcast=upcast)
        assert latents.load(tmp_path, dtype="bfloat16")[0].dtype == dtype


def test_variants_and_shards_are_read(loaded, tmp_path):
    write_autoencoder(tmp_path / "shards", shards=3)
    write_autoencoder(tmp_path / "half", "fp16", shards=2)
    _, params = latents.load(tmp_path / "shards")
    jax.tree.map(np.testing.assert_array_equal, params, loaded[1])
    _, params = latents.load(tmp_path / "half", variant="fp16")
    expected = jax.tree.map(lambda p: np.float32(np.float16(p)), loaded[1])
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    shard = (
        tmp_path
        / "half"
        / f"{safetensors_io.DIFFUSERS}.fp16-00002-of-00002.safetensors"
    )
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        latents.load(tmp_path / "half")


@pytest.mark.parametrize("window", [(), (1, 1)])
def test_former_names_of_the_attention_are_read_bit_for_bit(loaded, tmp_path, window):
    """query, key, value and proj_attn: products, or convolutions of one pixel."""
    (path,) = write_autoencoder(tmp_path).glob("*.safetensors")
    tensors = {}
    for name, array in load_file(path).items():
        former = former_name("vae", name)
        if former != name and array.ndim == 2:
            array = array.reshape(*array.shape, *window)
        tensors[former] = array
    names = {name.split(".")[-2] for name in tensors if ".attentions." in name}
    assert names == {"query", "key", "value", "proj_attn", "group_norm"}
    save_file(tensors, path)
    _, params = latents.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, loaded[1])


def test_a_missing_tensor_has_the_name_of_the_file(tmp_path):
    (path,) = write_autoencoder(tmp_path).glob("*.safetensors")
    tensors = load_file(path)
    del tensors["decoder.conv_in.weight"], tensors["encoder.conv_norm_out.bias"]
    save_file(tensors, path)
    names = r"decoder\.conv_in\.weight, encoder\.conv_norm_out\.bias$"
    with pytest.raises(UserError, match=f"lacks {names}"):
        latents.load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name='AutoencoderTiny'"),
        ({"act_fn": "gelu"}, "act_fn='gelu': silu"),
        ({"latents_mean": [0.0] * 4}, "latents_mean="),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types"),
        ({"block_out_channels": [8, 16, "a"]}, "block_out_channels="),
        ({"block_out_channels": [8] * 11}, "11 levels, at most 10"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 does not divide"),
        ({"scaling_factor": 0.0}, "scaling_factor=0.0: a number from"),
        ({"shift_factor": "a"}, "shift_factor='a': a number from"),
        ({"_class_name": None}, "_class_name=None: AutoencoderKL"),
        ({"down_block_types": None}, "down_block_types must be DownEncoderBlock2D"),
        ({"up_block_types": 3}, "up_block_types must be UpDecoderBlock2D"),
        ({"out_channels": 1}, "out_channels=1: in_channels=3"),
        ({"layers_per_block": 2}, "lacks "),
        ({"latent_channels": 8}, "has shape "),
    ],
)
def test_another_autoencoder_is_refused_in_one_line(tmp_path, changes, message):
    write_autoencoder(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        latents.load(tmp_path)
    assert "\n" not in str(caught.value)
