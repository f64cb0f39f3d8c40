"""Arrays recorded from transformers (record_text_encoders.py), and folders of them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data" / "text_encoders.npz"
SMALL = ("t5_relu", "t5_gated", "bert")


def case(name: str) -> dict:
    """Return config, ids, mask, tokens and params (by original name) of an encoder."""
    with np.load(DATA) as arrays:
        recorded = {
            key.removeprefix(f"{name}/"): arrays[key]
            for key in arrays.files
            if key.startswith(f"{name}/")
        }
    params = {k: v for k, v in recorded.items() if k.startswith("params/")}
    recorded = {k: v for k, v in recorded.items() if k not in params}
    recorded["params"] = {k.removeprefix("params/"): v for k, v in params.items()}
    if "config" in recorded:
        recorded["config"] = json.loads(str(recorded["config"]))
    return recorded


def write_folder(folder: Path, name: str, shards: int = 1) -> dict:
    """Write a Hugging Face folder without a tokenizer; return the case."""
    recorded = case(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(recorded["config"]))
    if shards == 1:
        save_file(recorded["params"], folder / "model.safetensors")
        return recorded
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(recorded["params"].items())[i::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return recorded
