"""The codec of a causal autoencoder: shapes, masks, and videos on the host."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from tests.networks.small_wan import RECORDED, to_ours, write_vae
from tests.parity import wan_cases
from vdm_jax import codec, latents
from vdm_jax.errors import UserError
from vdm_jax.sampling import Observation, batches
from vdm_jax.settings import section_dict
from vdm_jax.settings.sections import Codec


def read(folder, kind="causal_autoencoder"):
    section = section_dict(Codec(kind=kind, path=str(folder)))
    return codec.from_config(ConfigDict({"codec": section}))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return read(write_vae(tmp_path_factory.mktemp("vae")))


def test_the_shape_of_z_is_that_of_what_it_encodes(own):
    assert own.z_shape((81, 480, 832, 3)) == (21, 60, 104, 4)
    assert own.z_shape((1, 8, 8, 3)) == (1, 1, 1, 4)
    video = jax.ShapeDtypeStruct((2, 9, 16, 24, 3), jnp.float32)
    z = jax.eval_shape(own.encode, video, own.param_shapes())
    assert z.shape[1:] == own.z_shape(video.shape[1:]) == (3, 2, 3, 4)
    assert jax.eval_shape(own.decode, z, own.param_shapes()).shape == video.shape
    for shape, message in (
        ((15, 16, 24, 3), r"15 frames: frames 4k\+1: 13 or 17"),
        ((9, 16, 25, 3), "width=25 must be a multiple of 8"),
        ((9, 16, 24, 1), "is for videos of 3 channels, not 1"),
    ):
        with pytest.raises(UserError, match=message):
            own.z_shape(shape)


def test_videos_on_the_host_equal_diffusers(own, tmp_path):
    params = own.load_params()
    videos = np.repeat(to_ours(wan_cases.frames()), 2, 0)
    z = own.encode_on_host(videos, params)
    mean = to_ours(RECORDED["vae/mean"])
    latent = np.asarray(own.autoencoder.normalize(jnp.asarray(z), inverse=True))
    np.testing.assert_allclose(latent, np.repeat(mean, 2, 0), atol=1e-5)
    z = own.autoencoder.normalize(
        jnp.asarray(to_ours(wan_cases.latents(wan_cases.FEW)))
    )
    decoded = own.decode_on_host(np.asarray(z), params)
    np.testing.assert_allclose(decoded, to_ours(RECORDED["vae/decoded"]), atol=1e-5)
    with pytest.raises(UserError, match="decoder gives values that are not finite in"):
        own.decode_on_host(np.full((1, 1, 1, 1, 4), np.nan, np.float32), params)


def test_a_latent_is_known_where_all_of_its_pixels_are(own):
    mask = np.ones((1, 9, 8, 16, 1), bool)
    mask[0, 0, 0, 15] = mask[0, 8, 7, 0] = False
    assert own.encode_mask(mask)[0, :, 0, :, 0].tolist() == [
        [True, False], [True, True], [False, True]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "lost"), [((0,), None), (range(5), None), (range(5, 9), None),
    (range(4), 1), ((0, 4), 4), ((8,), 8)],
)  # fmt: skip
def test_frames_that_do_not_fill_a_latent_are_refused(own, given, lost):
    mask = np.zeros((1, 9, 8, 16, 1), bool)
    mask[:, list(given)] = True
    if lost is None:
        batches._check_frames(mask, own.encode_mask(mask))
        return
    with pytest.raises(UserError, match=rf"frame {lost} is given .* 4k \+ 1 frames"):
        batches._check_frames(mask, own.encode_mask(mask))


def test_a_known_mean_and_deviation_are_taken_off(own, tmp_path):
    """Those of the config; the same weights with others give other z."""
    z_mean, z_std = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    folder = write_vae(tmp_path, latents_mean=z_mean, latents_std=z_std)
    other = read(folder)
    video, params = to_ours(wan_cases.frames())[:, :1], own.load_params()
    z = other.encode_on_host(video, params)
    latent = to_ours(RECORDED["vae/image_mean"])
    expected = (latent - np.array(z_mean)) / np.array(z_std)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    # A given frame takes the same way.
    mask = np.ones((*video.shape[:4], 1), bool)
    known = Observation(video, mask, strength=np.zeros((1, 1)))
    model: Any = SimpleNamespace(codec=other)
    given = batches._encode(model, {"codec": params}, known)
    assert given is not None and given.strength == 0 and given.mask.all()
    np.testing.assert_array_equal(given.video, z)
    assert other.fingerprint() != own.fingerprint()


def test_folders_of_other_kinds_and_damaged_ones_are_refused(own, tmp_path):
    folder = write_vae(tmp_path)
    with pytest.raises(UserError, match="'AutoencoderKLWan': AutoencoderKL"):
        latents.read_config(folder)
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    del tensors["decoder.norm_out.gamma"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"lacks decoder\.norm_out\.gamma$"):
        read(folder).load_params()
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"is_residual": True}, "config.json: AutoencoderKLWan with is_residual=True"),
        ({"_class_name": "AutoencoderKL"}, "give a folder of AutoencoderKLWan"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message) as refusal:
            read(folder)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="'causal_autoencoder' needs config.codec.path"):
        read("")
