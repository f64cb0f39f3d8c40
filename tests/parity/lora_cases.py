"""LoRA files that record_lora.py applies by diffusers, and tests by ours.

Their tensors are drawn by the module's name, so one LoRA has one delta in every
spelling of its names.
"""

import json

import numpy as np

from tests.parity.drawn import normal
from tests.parity.recorded import load

# Modules of the U-Net "sd1" of sd_cases.py and their weights in torch's layout.
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = {
    f"{BLOCK}.attn1.to_q": (32, 32),
    f"{BLOCK}.attn1.to_out.0": (32, 32),
    f"{BLOCK}.attn2.to_k": (32, 24),
    f"{BLOCK}.attn2.to_v": (32, 24),
}
# Of what not every program changes: a gated MLP, 1x1 and 3x3 convolutions.
MORE = {
    f"{BLOCK}.ff.net.0.proj": (256, 32),
    f"{BLOCK}.ff.net.2": (32, 128),
    "down_blocks.0.attentions.0.proj_in": (32, 32, 1, 1),
    "down_blocks.0.resnets.0.conv1": (32, 32, 3, 3),
    "down_blocks.0.resnets.0.time_emb_proj": (32, 128),
    "up_blocks.0.resnets.0.conv_shortcut": (64, 128, 1, 1),
    "down_blocks.0.downsamplers.0.conv": (32, 32, 3, 3),
    "conv_in": (32, 4, 3, 3),
    "time_embedding.linear_1": (128, 32),
}
# Of the text encoder "quick_gelu" of record_clip_text.py.
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj": (24, 24),
    "text_model.encoder.layers.1.self_attn.out_proj": (24, 24),
}
IDS = load("clip_text")["ids"]


def matrices(name: str, modules: dict, rank: int) -> dict[str, tuple]:
    """Return down and up by module, of a LoRA with this name."""
    drawn = {}
    for module, (out, in_, *window) in modules.items():
        down = normal(f"{name}/{module}/down", (rank, in_, *window))
        up = normal(f"{name}/{module}/up", (out, rank, *(1 for _ in window)))
        drawn[module] = np.float32(0.2) * down, np.float32(0.2) * up
    return drawn


def kohya(unet: dict, text: dict, alphas: dict, te: str = "lora_te_") -> dict:
    """Return the tensors of a file of kohya-ss. alphas: by module, of some."""
    tensors = {}
    for prefix, part in (("lora_unet_", unet), (te, text)):
        for module, (down, up) in part.items():
            name = prefix + module.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            if module in alphas:
                tensors[f"{name}.alpha"] = np.array(alphas[module], np.float32)
    return tensors


def dotted(unet: dict, text: dict, down: str, up: str) -> dict:
    """Return tensors whose names end with `down` and `up`."""
    return {
        f"{prefix}.{module}.{end}.weight": array
        for prefix, part in (("unet", unet), ("text_encoder", text))
        for module, arrays in part.items()
        for end, array in zip((down, up), arrays, strict=True)
    }


def processors(unet: dict, text: dict, prefix: str = "unet.") -> dict:
    """Return the names of diffusers before 0.17, which had attentions only."""
    tensors = {}
    for module, arrays in unet.items():
        attention, leaf = module.removesuffix(".0").rsplit(".", 1)
        for end, array in zip(("down", "up"), arrays, strict=True):
            tensors[f"{prefix}{attention}.processor.{leaf}_lora.{end}.weight"] = array
    for module, arrays in text.items():
        attention, leaf = module.rsplit(".", 1)
        leaf = f"to_{leaf.removesuffix('_proj')}_lora"
        for end, array in zip(("down", "up"), arrays, strict=True):
            tensors[f"text_encoder.{attention}.{leaf}.{end}.weight"] = array
    return tensors


def files() -> dict[str, tuple[dict, dict]]:
    """Return tensors and metadata of the recorded files."""
    attention, text = matrices("a", UNET, 2), matrices("a", TEXT, 2)
    every = matrices("b", UNET | MORE, 6)
    # One for each part: diffusers ignores those of single attention projections.
    alphas = dict.fromkeys(every, 3) | dict.fromkeys(TEXT, 1)
    peft = {
        f"{part}.{key}": value
        for part, modules in (("unet", attention), ("text_encoder", text))
        for key, value in dict(
            r=2, lora_alpha=8, bias="none", lora_bias=False, use_dora=False,
            target_modules=[m.removeprefix("text_model.") for m in modules],
            alpha_pattern={"attn1.to_q": 1} if part == "unet" else {},
        ).items()
    }  # fmt: skip
    return {
        "diffusers": (
            dotted(attention, {}, "lora.down", "lora.up")
            | dotted({}, text, "lora_linear_layer.down", "lora_linear_layer.up"), {},
        ),
        "kohya": (
            kohya(every, matrices("b", TEXT, 2), alphas), {},
        ),
        "peft": (
            dotted(attention, text, "lora_A", "lora_B"),
            {"lora_adapter_metadata": json.dumps(peft)},
        ),
    }  # fmt: skip


SEVERAL = {"diffusers": 0.7, "kohya": -0.4}  # files and their weights
