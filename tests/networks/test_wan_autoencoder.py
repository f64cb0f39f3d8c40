"""Wan's causal autoencoder: parity with diffusers, chunks, causality, wrong sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks.small_wan import RECORDED, described, to_ours, write_vae
from tests.parity import wan_cases
from tests.parity.drawn import normal
from tests.parity.recorded import real_network
from vdm_jax import causal_latents
from vdm_jax.causal_latents import CausalAutoencoder
from vdm_jax.errors import UserError
from vdm_jax.networks import wan_autoencoder
from vdm_jax.networks.wan_autoencoder import WanAutoencoder, WanAutoencoderSpec
from vdm_jax.pretrained import wan_vae
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

CONFIG, SHAPES = described("vae")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = write_vae(tmp_path_factory.mktemp("vae"))
    autoencoder = causal_latents.read_config(folder)
    return autoencoder, causal_latents.read_params(autoencoder, folder)


def latent_of(loaded, z):
    return np.asarray(loaded[0].normalize(jnp.asarray(z), inverse=True))


def whole(loaded, method, x):
    autoencoder, params = loaded
    apply = jax.jit(
        lambda p, x: autoencoder.network.apply(
            {"params": p}, x, method=method, mutable=["cache"]
        )[0]
    )
    return apply(params, jnp.asarray(x))


def test_moments_equal_diffusers(loaded):
    """Nine frames at once, and as the posterior of chunks, are three latents."""
    frames = to_ours(wan_cases.frames())
    posterior = whole(loaded, "encode", frames)
    mean, log_variance = (
        to_ours(RECORDED[f"vae/{name}"]) for name in ("mean", "log_variance")
    )
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-5)
    np.testing.assert_allclose(posterior.log_variance, log_variance, atol=1e-5)
    autoencoder, params = loaded
    moments = jax.jit(autoencoder.moments)(params, jnp.asarray(frames))
    z, deviation = np.split(np.asarray(moments), 2, -1)
    np.testing.assert_allclose(latent_of(loaded, z), mean, atol=1e-5)
    expected = np.exp(log_variance / 2) / np.float32(autoencoder.std)
    np.testing.assert_allclose(deviation, expected, rtol=1e-4)


def test_the_first_frame_is_an_image(loaded):
    autoencoder, params = loaded
    image = jnp.asarray(to_ours(wan_cases.frames())[:, :1])
    z = jax.jit(autoencoder.encode)(params, image)
    expected = to_ours(RECORDED["vae/image_mean"])
    np.testing.assert_allclose(latent_of(loaded, z), expected, atol=1e-5)


@pytest.mark.parametrize("by", ["chunks", "whole"])
def test_videos_equal_diffusers(loaded, by):
    autoencoder, params = loaded
    latents = jnp.asarray(to_ours(wan_cases.latents(wan_cases.FEW)))
    if by == "whole":
        video = whole(loaded, "decode", latents)
    else:
        video = jax.jit(autoencoder.decode)(params, autoencoder.normalize(latents))
    np.testing.assert_allclose(video, to_ours(RECORDED["vae/decoded"]), atol=1e-5)


def test_17_latents_are_65_frames(loaded):
    """Chunks equal the whole, and both what diffusers decodes."""
    autoencoder, params = loaded
    latents = jnp.asarray(to_ours(wan_cases.latents(wan_cases.MANY)))
    video = jax.jit(autoencoder.decode)(params, autoencoder.normalize(latents))
    assert video.shape == (1, 65, 8, 8, 3)
    expected = to_ours(RECORDED["vae/decoded_65"])
    np.testing.assert_allclose(video[:, wan_cases.MANY_FRAMES], expected, atol=1e-5)
    np.testing.assert_allclose(video, whole(loaded, "decode", latents), atol=1e-5)


def test_later_frames_are_not_read(loaded):
    """Nor is the first latent's frame by the next one's upsampling in time alone."""
    autoencoder, params = loaded
    frames = jnp.asarray(to_ours(wan_cases.frames()))
    encode = jax.jit(autoencoder.encode)
    z = encode(params, frames)
    changed = encode(params, frames.at[:, 5:].set(0.3))
    np.testing.assert_array_equal(changed[:, :2], z[:, :2])
    assert np.abs(changed[:, 2] - z[:, 2]).max() > 1e-2


def test_blocks_equal_diffusers(loaded):
    _, params = loaded

    def apply(module, params, x, *args):
        variables = {"params": params}
        return module.apply(variables, x, *args, mutable=["cache"])[0]

    x = jnp.asarray(to_ours(normal("wan/input/block", (1, 8, 3, 4, 5))))
    block = wan_autoencoder.ResBlock(16)
    y = apply(block, params["encoder"]["level_1_block_0"], x, True)
    np.testing.assert_allclose(y, to_ours(RECORDED["vae/block"]), atol=1e-5)
    x = jnp.asarray(to_ours(normal("wan/input/attention", (1, 32, 2, 3, 4))))
    attention = params["decoder"]["middle"]["attention"]
    y = apply(wan_autoencoder.Attention(), attention, x)
    np.testing.assert_allclose(y, to_ours(RECORDED["vae/attention"]), atol=1e-5)


def test_one_function_normalizes_both_ways():
    autoencoder = CausalAutoencoder(WanAutoencoder(), (0.5, -1.0), (2.0, 0.25))
    latent = jnp.asarray([[1.5, -0.5], [0.5, -1.0]])
    z = autoencoder.normalize(latent)
    np.testing.assert_array_equal(z, [[0.5, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(autoencoder.normalize(z, inverse=True), latent)


def test_bfloat16_is_close(loaded):
    autoencoder, params = loaded
    half = dataclasses.replace(autoencoder, dtype="bfloat16")
    z = jnp.asarray(to_ours(wan_cases.latents(wan_cases.FEW)))
    video, expected = (
        np.asarray(jax.jit(each.decode)(params, z)) for each in (half, autoencoder)
    )
    assert video.dtype == np.float32
    assert 0 < np.std(video - expected) < 0.05 * expected.std()


def test_names_and_shapes_of_the_published_network():
    """Both ways without rest: no name of theirs and no path of ours is left."""
    listed = real_network("wan21_vae")
    fields = wan_vae.fields(listed["config"])
    spec = WanAutoencoderSpec(**fields["spec"])
    assert spec == WanAutoencoderSpec()
    autoencoder = CausalAutoencoder(WanAutoencoder(spec), fields["mean"], fields["std"])
    ours = named_leaves(causal_latents.param_shapes(autoencoder))
    names = wan_vae.names(fields["spec"])
    assert names.keys() == listed["shapes"].keys()
    paths = [target.removeprefix(KERNEL) for target in names.values()]
    assert sorted(paths) == sorted(ours)
    for theirs, target in names.items():
        shape = ours[target.removeprefix(KERNEL)].shape
        if target.startswith(KERNEL):  # [*window, in, out] -> [out, in, *window]
            shape = (shape[-1], shape[-2], *shape[:-2])
        expected = listed["shapes"][theirs]
        assert [n for n in expected if n > 1] == [n for n in shape if n > 1], theirs
    assert sum(math.prod(leaf.shape) for leaf in ours.values()) == listed["parameters"]


@pytest.mark.parametrize(
    "shape, message",
    [
        ((15, 64, 64), r"15 frames: frames 4k\+1: 13 or 17$"),
        ((48, 64, 64), r"48 frames: frames 4k\+1: 45 or 49$"),
        ((3, 64, 64), r"3 frames: frames 4k\+1: 1 or 5$"),
        ((13, 60, 64), "height=60 must be a multiple of 8"),
    ],
)
def test_a_video_that_it_cannot_encode_is_refused(shape, message):
    with pytest.raises(UserError, match=message):
        wan_autoencoder.check(WanAutoencoderSpec(), *shape)
    wan_autoencoder.check(WanAutoencoderSpec(), 81, 480, 832)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"is_residual": True}, "is_residual=True: only False"),
        ({"temperal_downsample": [True]}, "true or false for each of the 3 halvings"),
        ({"latents_std": [1.0]}, "latents_std of 1 channels: z_dim=4 of each"),
        ({"dim_mult": [1, -2, 4, 4]}, "no such sizes"),
        ({"out_channels": 12}, "out_channels=12: in_channels=3"),
    ],
)
def test_a_config_of_another_network_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        wan_vae.fields(CONFIG | changes)
