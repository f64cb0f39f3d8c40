"""Recorded networks and names: their weights by name, and folders of them."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.parity.drawn import weight

FOLDER = Path(__file__).parent


def load(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def drawn_weights(network: str, shapes: Mapping) -> dict[str, np.ndarray]:
    """Return all weights of a network by their names in torch."""
    return {name: weight(network, name, shape) for name, shape in shapes.items()}


def real_network(name: str) -> dict:
    """Return config, number of parameters and shapes of a published network."""
    data = gzip.decompress((FOLDER / "real_size" / f"{name}.json.gz").read_bytes())
    return json.loads(data)


def real_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a published network."""
    shapes = real_network(name)["shapes"]
    return {name: tuple(shape) for name, shape in shapes.items()}


def write_weights(
    folder: Path, tensors: Mapping, stem: str, variant: str = "", shards: int = 1
) -> None:
    """Write weights as diffusers and transformers name them."""
    dotted = f".{variant}" if variant else ""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        file = folder / f"{stem}{dotted}.safetensors"
        save_file(dict(tensors), file, {"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        name = f"{stem}{dotted}-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    path = folder / f"{stem}.safetensors.index{dotted}.json"
    path.write_text(json.dumps(index))


def write_autoencoder(
    folder: Path, variant: str = "", shards: int = 1, part: str = "", **changes
) -> Path:
    """Write the folder of a recorded autoencoder; a change to None removes a key.

    part: "", or "tiles_" for the smaller one.
    changes: of its config.json.
    """
    recorded = load("autoencoder")
    shapes = json.loads(str(recorded[f"{part}shapes"]))
    tensors = drawn_weights("autoencoder_tiles" if part else "autoencoder", shapes)
    if variant:
        tensors = {name: array.astype(np.float16) for name, array in tensors.items()}
    write_weights(folder, tensors, "diffusion_pytorch_model", variant, shards)
    config = json.loads(str(recorded[f"{part}config"])) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
