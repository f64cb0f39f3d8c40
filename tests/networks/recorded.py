"""What tests/networks/record_text_encoders.py recorded of transformers, and folders made of it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DATA = Path(__file__).parent / "data" / "text_encoders.npz"
SMALL = ("t5_relu", "t5_gated", "bert")


def case(name: str) -> dict:
    """config, ids, mask, tokens and params (by their names) of a small encoder."""
    with np.load(DATA) as arrays:
        found = {
            key.removeprefix(f"{name}/"): arrays[key]
            for key in arrays.files
            if key.startswith(f"{name}/")
        }
    params = {k: v for k, v in found.items() if k.startswith("params/")}
    found = {k: v for k, v in found.items() if k not in params}
    found["params"] = {k.removeprefix("params/"): v for k, v in params.items()}
    if "config" in found:
        found["config"] = json.loads(str(found["config"]))
    return found


def write_folder(folder: Path, name: str, shards: int = 1) -> dict:
    """As Hugging Face stores it, without a tokenizer; returns the case."""
    found = case(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found["config"]))
    if shards == 1:
        save_file(found["params"], folder / "model.safetensors")
        return found
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(found["params"].items())[i::shards])
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return found
