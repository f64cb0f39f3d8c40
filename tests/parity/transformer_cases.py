"""Small folders of diffusers' DiTPipeline and LattePipeline, and what is sampled there.

record_transformers.py records the folders that diffusers writes but for their weights,
which `drawn.weight` draws by their names, and what diffusers samples. Tests write the
folders again and sample them.
"""

import gzip
import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.parity.drawn import normal, weight

FOLDER = Path(__file__).parent
ARRAYS, FILES = FOLDER / "transformers.npz", FOLDER / "transformers.json.gz"
STEPS, SCALE, LABEL = 20, 3.0, 207
# As many tokens: LattePipeline cuts the second to the length of the first and masks
# nothing.
PROMPT, NEGATIVE = "a red cat", "a dog on"
SHAPES = {"dit": (1, 4, 8, 8), "latte": (1, 4, 3, 8, 8)}


def noise(pipeline: str) -> np.ndarray:
    """Return the noise of a run, in torch's layout."""
    return normal(f"transformers/{pipeline}/noise", SHAPES[pipeline])


def part_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a weight of a part, "PIPELINE/PART/TENSOR", in half precision.

    All blocks of DiT have the same embeddings of timestep and label.
    """
    name = re.sub(r"blocks\.\d+\.norm1\.emb\.", "blocks.0.norm1.emb.", name)
    network, _, tensor = name.rpartition("/")
    return weight(f"transformers/{network}", tensor, shape).astype(np.float16)


def recorded_files(pipeline: str) -> dict:
    """Return {"texts": by path, "weights": {path: {name: shape}}} of a folder."""
    return json.loads(gzip.decompress(FILES.read_bytes()))[pipeline]


def write_pipeline(folder: Path, pipeline: str) -> Path:
    """Write a folder as diffusers wrote it: in half precision, networks in shards."""
    recorded = recorded_files(pipeline)
    for path, text in recorded["texts"].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for path, shapes in recorded["weights"].items():
        part = f"{pipeline}/{Path(path).parts[0]}"
        tensors = {
            name: part_weight(f"{part}/{name}", tuple(shape))
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / path, {"format": "pt"})
    return folder
