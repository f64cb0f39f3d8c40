"""Names of published networks: vdm_jax/pretrained/name_maps.py, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.parity.recorded import drawn_weights, real_shapes, write_weights
from vdm_jax.networks.autoencoder import AutoencoderKL, AutoencoderSpec
from vdm_jax.networks.clip import ClipText, ClipTextSpec
from vdm_jax.pretrained import name_maps, safetensors_io
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.trees import named_leaves

IDS = jax.ShapeDtypeStruct((1, 77), jnp.int32)
CLIP = (name_maps.CLIP_TEXT, name_maps.CLIP_TEXT_WRITTEN, (IDS, IDS))
SD2_TEXT = ClipTextSpec(
    width=1024, mlp_width=4096, num_layers=23, num_heads=16, activation="gelu"
)
NETWORKS = {
    "sd_vae": (
        AutoencoderKL(), name_maps.AUTOENCODER_KL, name_maps.AUTOENCODER_KL_WRITTEN,
        (jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32),),
    ),
    "sd15_text": (ClipText(), *CLIP),
    "sd21_text": (ClipText(SD2_TEXT), *CLIP),
}  # fmt: skip
SPEC = AutoencoderSpec(channels=(8, 16), blocks=1, num_groups=4)
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def leaf_shapes(network, arguments):
    tree = jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"]
    return {path: leaf.shape for path, leaf in named_leaves(tree).items()}


def in_torch(path: str, shape: tuple) -> tuple:
    return (*shape[:-3:-1], *shape[:-2]) if path.startswith(KERNEL) else shape


@pytest.mark.parametrize("name", NETWORKS)
def test_names_of_a_published_network_are_read_and_written_without_rest(name):
    network, read, write, arguments = NETWORKS[name]
    ours, theirs = leaf_shapes(network, arguments), real_shapes(name)
    paths = {known: name_maps.rename(read, known) for known in theirs}
    found = {
        path.removeprefix(KERNEL): in_torch(path, ours[path.removeprefix(KERNEL)])
        for path in paths.values()
    }
    expected = [theirs[known] for known in paths]
    assert list(found) == [path.removeprefix(KERNEL) for path in paths.values()]
    assert list(found.values()) == expected and set(found) == set(ours)
    written = {path: name_maps.rename(write, path) for path in ours}
    back = {
        known.removeprefix(KERNEL).removeprefix("text_model."): in_torch(
            known, ours[path]
        )
        for path, known in written.items()
    }
    assert back == theirs


def tensors_of(network, write, arguments):
    """Return drawn weights of a network by their names in torch, and its shapes."""
    tree = jax.eval_shape(network.init, jax.random.key(0), *arguments)["params"]
    shapes = {
        known.removeprefix(KERNEL): in_torch(known, leaf.shape)
        for path, leaf in named_leaves(tree).items()
        for known in [name_maps.rename(write, path)]
    }
    return drawn_weights("names", shapes), tree


def read_tree(folder, tensors, like, name_map, stem="model"):
    write_weights(folder, tensors, stem)
    paths = safetensors_io.tensor_files(folder)
    return safetensors_io.read(paths, like, name_map, jnp.float32)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("window", [False, True], ids=["products", "convolutions"])
def test_former_names_of_the_attention_are_read(tmp_path, window):
    network = AutoencoderKL(SPEC)
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    tensors, like = tensors_of(network, name_maps.AUTOENCODER_KL_WRITTEN, (video,))
    former = {}
    for name, tensor in tensors.items():
        if ".attentions." in name:
            for now, before in FORMER.items():
                name = name.replace(f".{now}.", f".{before}.")
            if window and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        former[name] = tensor
    assert sum("proj_attn" in name for name in former) == 4
    expected, found = (
        read_tree(tmp_path / str(i), named, like, name_maps.AUTOENCODER_KL)
        for i, named in enumerate((tensors, former))
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("positions", [False, True])
def test_both_forms_of_clip_are_read(tmp_path, prefix, positions):
    network = ClipText(ClipTextSpec(50, 8, 12, 20, 2, 3))
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    tensors, like = tensors_of(network, name_maps.CLIP_TEXT_WRITTEN, (ids, ids))
    named = {
        prefix + name.removeprefix("text_model."): tensor
        for name, tensor in tensors.items()
    }
    if positions:
        named[f"{prefix}embeddings.position_ids"] = np.arange(8)[None]
    expected, found = (
        read_tree(tmp_path / str(i), written, like, name_maps.CLIP_TEXT)
        for i, written in enumerate((tensors, named))
    )
    assert_equal(found, expected)


def test_what_is_written_is_read_again(tmp_path):
    network = AutoencoderKL(SPEC)
    video = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), jnp.float32)
    tensors, like = tensors_of(network, name_maps.AUTOENCODER_KL_WRITTEN, (video,))
    params = read_tree(tmp_path / "a", tensors, like, name_maps.AUTOENCODER_KL)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write = name_maps.AUTOENCODER_KL_WRITTEN
    names = name_maps.their_names(named_leaves(params), write)
    safetensors_io.write(path, safetensors_io.to_names(params, names), np.float32)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    written = load_file(path)
    assert written.keys() == tensors.keys()
    assert_equal(written, tensors)


def test_a_variant_is_preferred_and_its_absence_is_said(tmp_path, capsys):
    tensors = {"a": np.ones(3, np.float32)}
    stem = safetensors_io.DIFFUSERS
    write_weights(tmp_path / "both", tensors, stem)
    write_weights(tmp_path / "both", tensors, stem, "fp16", shards=2)
    write_weights(tmp_path / "plain", tensors, stem)
    write_weights(tmp_path / "half", tensors, stem, "fp16")

    def names(folder, variant=""):
        paths = safetensors_io.tensor_files(tmp_path / folder, stem, variant)
        return [path.name.removeprefix(stem) for path in paths]

    assert names("both") == names("plain") == [".safetensors"]
    assert names("both", "fp16")[0] == ".fp16-00001-of-00002.safetensors"
    assert names("half") == names("half", "fp16") == [".fp16.safetensors"]
    assert not capsys.readouterr().err
    assert names("plain", "fp16") == [".safetensors"]
    assert capsys.readouterr().err.endswith(
        "plain has no variant fp16: diffusion_pytorch_model.safetensors is read\n"
    )
