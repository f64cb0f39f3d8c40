"""LoRA files of Wan: names of diffusers and of the original program."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity.drawn import normal
from tests.parity.wan_pipeline_cases import write_pipeline
from vdm_jax import adapters, runs
from vdm_jax.errors import UserError
from vdm_jax.pretrained import wan_transformer
from vdm_jax.trees import named_leaves

RANK, ALPHA = 3, 6.0
MODULES = {  # of diffusers -> of the original program
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.1.attn2.to_out.0": "blocks.1.cross_attn.o",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    "condition_embedder.time_proj": "time_projection.1",
}
PATHS = {
    "blocks.0.attn1.to_q": "network/block_0/self_attention/q/kernel",
    "blocks.1.attn2.to_out.0": "network/block_1/cross_attention/out/kernel",
    "blocks.1.ffn.net.0.proj": "network/block_1/mlp_in/kernel",
    "condition_embedder.time_proj": "network/levels/kernel",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return runs.load(write_pipeline(tmp_path_factory.mktemp("wan")))


def matrices(trained, module):
    """Return down [rank, in] and up [out, rank] of a module."""
    rows, columns = named_leaves(trained.params)[PATHS[module]].shape
    down, up = (RANK, rows), (columns, RANK)
    return normal(f"{module}/down", down), normal(f"{module}/up", up)


def write(trained, path, spelling):
    """Write a LoRA of MODULES. spelling: diffusers, original or kohya."""
    tensors = {}
    for module, original in MODULES.items():
        down, up = matrices(trained, module)
        prefix = {
            "diffusers": f"transformer.{module}",
            "original": f"diffusion_model.{original}",
            "kohya": f"lora_unet_{original.replace('.', '_')}",
        }[spelling]
        is_kohya = spelling == "kohya"
        names = ("lora_down", "lora_up") if is_kohya else ("lora_A", "lora_B")
        tensors |= {f"{prefix}.{names[0]}.weight": down, f"{prefix}.alpha": ALPHA}
        tensors |= {f"{prefix}.{names[1]}.weight": up}
    tensors = {name: np.asarray(a, np.float32) for name, a in tensors.items()}
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("spelling", ["diffusers", "original", "kohya"])
def test_both_spellings_are_read(trained, tmp_path, spelling):
    """alpha / rank times up down is added to the kernels, and to no other leaf."""
    write(trained, path := tmp_path / "a.safetensors", spelling)
    made = named_leaves(adapters.apply(trained, [(path, 0.5)]).params)
    before = named_leaves(trained.params)
    for module, name in PATHS.items():
        down, up = matrices(trained, module)
        expected = np.asarray(before[name]) + 0.5 * ALPHA / RANK * (up @ down).T
        np.testing.assert_allclose(made[name], expected, atol=1e-4)
    for name in before.keys() - {*PATHS.values()}:
        np.testing.assert_array_equal(made[name], before[name])


def test_modules_of_image_to_video_are_counted_and_named(trained, tmp_path, capsys):
    tensors = write(trained, path := tmp_path / "a.safetensors", "original")
    alone = adapters.apply(trained, [(path, 1.0)])
    assert capsys.readouterr().err == ""
    extra = np.ones((RANK, 36), np.float32)
    for name in ("k_img", "v_img"):
        for role in ("lora_A", "lora_B"):
            tensors[f"diffusion_model.blocks.0.cross_attn.{name}.{role}.weight"] = extra
    save_file(tensors, path)
    made = adapters.apply(trained, [(path, 1.0)])
    err = capsys.readouterr().err
    assert "a.safetensors: 4 tensors of modules that this model has not: " in err
    assert "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight" in err
    jax.tree.map(np.testing.assert_array_equal, made.params, alone.params)


def test_an_unknown_name_and_a_module_twice_are_refused(trained, tmp_path):
    tensors = write(trained, path := tmp_path / "a.safetensors", "original")
    save_file(tensors | {"diffusion_model.blocks.9.ffn.0.alpha": np.ones(1)}, path)
    with pytest.raises(UserError, match=r"unknown are diffusion_model\.blocks\.9\.ffn"):
        adapters.apply(trained, [(path, 1.0)])
    both = write(trained, tmp_path / "b.safetensors", "diffusers") | tensors
    save_file(both, path)
    with pytest.raises(UserError, match="is there under two names"):
        adapters.apply(trained, [(path, 1.0)])


def test_every_module_has_an_original_name(trained):
    modules = adapters.unet_modules(trained.model, trained.config)
    by_path = {}
    for name, own in modules.items():
        by_path.setdefault(own.path, []).append(name)
    alone = [names for names in by_path.values() if len(names) != 2]
    assert alone == [["patch_embedding"]]
    assert wan_transformer.original_name("proj_out") == "head.head"
