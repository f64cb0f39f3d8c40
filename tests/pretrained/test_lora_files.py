"""LoRA files: six spellings, scales, convolutions, and what is refused."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.networks import small_sd
from tests.parity import lora_cases
from tests.parity.lora_cases import BLOCK, MORE, TEXT, UNET, dotted, kohya, matrices
from tests.parity.recorded import load
from tests.parity.sd_cases import PUBLISHED, UNETS
from vdm_jax.errors import UserError
from vdm_jax.pretrained import lora_files, sd_unet
from vdm_jax.pretrained.name_maps import KERNEL
from vdm_jax.text import clip_modules
from vdm_jax.trees import named_leaves

CLIP = {
    "model_type": "clip_text_model", "vocab_size": 60, "max_position_embeddings": 16,
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "hidden_act": "quick_gelu",
}  # fmt: skip


@functools.cache
def parts(unet="sd1"):
    """Return the modules of a small U-Net and of a small text encoder."""
    leaves = named_leaves(small_sd.abstract_params(UNETS[unet]))
    names = sd_unet.unet_names(sd_unet.unet_fields(UNETS[unet])["network"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CLIP))
        text = clip_modules(folder)
    return {"unet": lora_files.modules_of(names, leaves), "text_encoder": text}


def write(folder, tensors, metadata=None):
    path = folder / "lora.safetensors"
    save_file({k: np.ascontiguousarray(a) for k, a in tensors.items()}, path, metadata)
    return path


def read(folder, tensors, metadata=None, unet="sd1"):
    return lora_files.read(write(folder, tensors, metadata), parts(unet))


def products(deltas):
    """Return what is added to each kernel."""
    return {path: np.matmul(*pair) for path, pair in deltas.items()}


def by_hand(down, up, scale=1.0):
    """Return scale up down for a kernel of torch, as our kernel [*window, in, out]."""
    rank, in_, *window = down.shape
    flat = scale * up.reshape(len(up), rank) @ down.reshape(rank, -1)
    kernel = flat.reshape(len(up), in_, *window)
    return np.moveaxis(kernel, (0, 1), (-1, -2))


SPELLINGS = {
    "processors": lambda u, t: lora_cases.processors(u, t),
    "processors without a prefix": lambda u, t: lora_cases.processors(u, t, ""),
    "diffusers": lambda u, t: (
        dotted(u, {}, "lora.down", "lora.up")
        | dotted({}, t, "lora_linear_layer.down", "lora_linear_layer.up")
    ),
    "peft": lambda u, t: dotted(u, t, "lora_A", "lora_B"),
    "peft and transformers 5": lambda u, t: dotted(
        u,
        {name.removeprefix("text_model."): a for name, a in t.items()},
        "lora_A",
        "lora_B",
    ),
    "kohya": lambda u, t: kohya(u, t, {}),
    "kohya of two text encoders": lambda u, t: kohya(u, t, {}, "lora_te1_"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_delta_in_every_spelling(tmp_path, spelling):
    unet, text = matrices("one", UNET, 2), matrices("one", TEXT, 2)
    deltas = read(tmp_path, SPELLINGS[spelling](unet, text))
    for part, own in (("unet", unet), ("text_encoder", text)):
        added = products(deltas[part])
        assert len(added) == len(own)
        for module, arrays in own.items():
            path = parts()[part][module].path
            np.testing.assert_allclose(added[path], by_hand(*arrays), atol=1e-6)


def test_no_two_modules_share_a_name():
    """In a network of real size, whose names have conv_in and to_out.0."""
    network = sd_unet.unet_fields(PUBLISHED["sd15_unet"])["network"]
    names = sd_unet.unet_names(network)
    leaves = {
        target.removeprefix(KERNEL): np.zeros((1, 1)) for target in names.values()
    }
    modules = lora_files.modules_of(names, leaves)
    assert len(modules) > 250 and {"conv_in", f"{BLOCK}.attn1.to_out.0"} <= set(modules)
    spelled = [name for m in modules for name, _ in lora_files.spellings("unet", m)]
    assert len(set(spelled)) == len(spelled)
    assert "lora_unet_conv_in.lora_down.weight" in spelled


@pytest.mark.parametrize("alpha, scale", [(1, 0.25), (8, 2.0), (None, 1.0)])
def test_the_scale_is_alpha_over_rank_of_each_module(tmp_path, alpha, scale):
    """Of the text encoder too, and after writing and reading."""
    unet, text = matrices("s", UNET, 4), matrices("s", TEXT, 4)
    first = next(iter(UNET))  # one with another rank and alpha
    unet |= matrices("s", {first: UNET[first]}, 2)
    alphas = {} if alpha is None else dict.fromkeys(UNET | TEXT, alpha) | {first: 6}
    deltas = read(tmp_path, kohya(unet, text, alphas))
    scales = dict.fromkeys(UNET | TEXT, scale) | {first: 3.0 if alpha else 1.0}
    for part, own in (("unet", unet), ("text_encoder", text)):
        for module, arrays in own.items():
            added = np.matmul(*deltas[part][parts()[part][module].path])
            expected = by_hand(*arrays, scales[module])
            np.testing.assert_allclose(added, expected, atol=1e-5)
    again = tmp_path / "again.safetensors"
    lora_files.write(again, deltas["unet"], parts()["unet"])
    assert not [name for name in load_file(again) if "alpha" in name]
    read_back = lora_files.read(again, parts())["unet"]
    for path, pair in deltas["unet"].items():
        for before, after in zip(pair, read_back[path], strict=True):
            np.testing.assert_array_equal(before, after)


def test_alphas_of_peft_are_in_the_metadata(tmp_path):
    tensors, metadata = lora_cases.files()["peft"]
    added = products(read(tmp_path, tensors, metadata)["unet"])
    for module, arrays in matrices("a", UNET, 2).items():
        scale = 0.5 if module.endswith("attn1.to_q") else 4.0
        expected = by_hand(*arrays, scale)
        path = parts()["unet"][module].path
        np.testing.assert_allclose(added[path], expected, atol=1e-5)
    key = lora_files.METADATA
    for text, message in (
        ("{", "is not peft's config"),
        ('["unet.r"]', "is not peft's config"),
        ('{"unet.lora_alpha": "x"}', "is not peft's config"),
        ('{"unet.alpha_pattern": {"(": 1}}', "is not peft's config"),
        ('{"unet.alpha_pattern": {"to_v": "x"}}', "is not peft's config"),
        ('{"unet.use_rslora": true}', "rank-stabilised LoRA is not read"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, tensors, {key: text})


def test_convolutions_and_shapes_of_either_kind(tmp_path):
    """A 3x3 kernel with a rank above its channels; 1x1 as a matrix and 4-D."""
    modules = {"conv_in": (32, 4, 3, 3), "down_blocks.0.attentions.0.proj_in": (32, 32)}
    linear = {f"{BLOCK}.attn1.to_q": (32, 32, 1, 1)}
    for shapes in (modules, modules | linear, MORE):
        own = matrices("conv", shapes, 8)
        added = products(read(tmp_path, kohya(own, {}, {}))["unet"])
        for module, arrays in own.items():
            path, shape = parts()["unet"][module]
            expected = by_hand(*arrays).reshape(shape)
            np.testing.assert_allclose(added[path], expected, atol=1e-5)


def test_names_that_diffusers_writes(tmp_path):
    own = matrices("b", UNET | MORE, 6)
    deltas = read(tmp_path, kohya(own, {}, {}))["unet"]
    lora_files.write(tmp_path / "written.safetensors", deltas, parts()["unet"])
    written = load_file(tmp_path / "written.safetensors")
    assert sorted(written) == load("lora")["names"].tolist()
    with pytest.raises(UserError, match="network/x is no module of Stable Diffusion"):
        deltas["network/x"] = next(iter(deltas.values()))
        lora_files.write(tmp_path / "x.safetensors", deltas, parts()["unet"])


GOOD = kohya(matrices("g", UNET, 2), matrices("g", TEXT, 2), {})
QUERY = "lora_unet_" + f"{BLOCK}.attn1.to_q".replace(".", "_")


def renamed(old, new):
    return {name.replace(old, new): array for name, array in GOOD.items()}


@pytest.mark.parametrize(
    "tensors, message",
    [
        (renamed("attn1", "attn7"), "8 of its 12 tensors .*model; .*attn7_to_q.lora_"),
        (renamed("lora_", "adapter_"), "none of its 12 .*, .*, .*, .*, .*, \\.\\.\\.$"),
        ({}, "none of its 0 tensors"),
        (renamed("te_", "te2_"), "8 of its 12 tensors .* lora_te2_text"),
        (GOOD | {f"{QUERY}.dora_scale": np.ones(1)}, "12 of its 13 .*to_q.dora_scale$"),
        ({k: a for k, a in GOOD.items() if k != f"{QUERY}.lora_up.weight"},
         "lacks the up of unet.down_blocks.*attn1.to_q$"),
        (GOOD | {f"{QUERY}.lora_A.weight": GOOD[f"{QUERY}.lora_down.weight"]},
         "is a second down of"),
        (GOOD | {f"{QUERY}.lora_up.weight": np.full((32, 2), np.inf)}, "not finite"),
        (GOOD | {f"{QUERY}.alpha": np.array(np.nan)}, "alpha is not finite"),
        (GOOD | {f"{QUERY}.lora_up.weight": np.ones((32, 3), "f4")},
         r"has a down of \(2, 32\) and an up of \(32, 3\)"),
        (GOOD | {f"{QUERY}.lora_down.weight": np.ones((2, 32, 3, 3), "f4")},
         "has a down of"),
        (GOOD | {f"{QUERY}.lora_down.weight": np.ones(2, "f4")}, "has a down of"),
        (GOOD | {f"{QUERY}.lora_down.weight": np.ones((0, 32), "f4"),
                 f"{QUERY}.lora_up.weight": np.ones((32, 0), "f4")}, "has a down of"),
        (GOOD | {f"{QUERY}.alpha": np.ones(2, "f4")}, "its alpha is of shape"),
    ],
)  # fmt: skip
def test_what_is_not_a_whole_lora_of_this_model_is_refused(tmp_path, tensors, message):
    with pytest.raises(UserError, match=message) as refusal:
        read(tmp_path, tensors)
    assert "\n" not in str(refusal.value)


def test_what_is_scaled_beyond_float32_is_refused(tmp_path):
    path = write(tmp_path, GOOD)
    assert len(lora_files.read(path, parts(), -1e30)["unet"]) == len(UNET)
    for scale in (1e39, -1e39, 1e300):
        with pytest.raises(UserError, match=f" times {scale:g} is".replace("+", ".")):
            lora_files.read(path, parts(), scale)
    up = {f"{QUERY}.lora_up.weight": np.full((32, 2), 100, "f4")}
    message = "to_q times 1.5e.38 is beyond float32: a smaller scale$"
    with pytest.raises(UserError, match=message):
        read(tmp_path, GOOD | up | {f"{QUERY}.alpha": np.array(3e38, "f4")})


def test_a_lora_of_another_base_names_both_widths(tmp_path):
    own = matrices("g", {m: s for m, s in UNET.items() if "attn2" in m}, 2)
    message = (
        "attn2.to_k is for another base: from 24 to 32 channels, in this model from 40"
    )
    with pytest.raises(UserError, match=message):
        read(tmp_path, kohya(own, {}, {}), unet="sd2")


def test_a_folder_and_what_is_no_file(tmp_path):
    path = write(tmp_path, GOOD)
    path.rename(tmp_path / lora_files.FILE)
    assert len(lora_files.read(tmp_path, parts())["unet"]) == len(UNET)
    (tmp_path / "lora.pt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    for name, message in (
        ("no.safetensors", "no.safetensors does not exist: give a LoRA"),
        ("lora.pt", "a LoRA is a .safetensors file; pickled ones are not read"),
        ("cut.safetensors", "is not a whole safetensors file"),
    ):
        with pytest.raises(UserError, match=message):
            lora_files.read(tmp_path / name, parts())


def test_integers_and_half_precision(tmp_path):
    """kohya-ss may store alpha as an integer; the matrices in either half precision."""
    half = {name: array.astype(np.float16) for name, array in GOOD.items()}
    alpha = {f"{QUERY}.alpha": np.array(2, np.int64)}
    deltas = read(tmp_path, half | alpha)["unet"]
    down, _ = deltas[parts()["unet"][f"{BLOCK}.attn1.to_q"].path]
    assert down.dtype == np.float32
    with pytest.raises(UserError, match="is I64: give weights in"):
        read(tmp_path, GOOD | {f"{QUERY}.lora_up.weight": np.ones((32, 2), np.int64)})
