"""A small folder of diffusers' WanPipeline, and what is sampled with it.

record_wan_pipeline.py records the folder that diffusers writes but for its weights,
which `drawn.weight` draws by their names, and what diffusers samples. Tests write the
folder again and sample it.
"""

import gzip
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.parity.drawn import normal, weight

FOLDER = Path(__file__).parent
ARRAYS, FILES = FOLDER / "wan_pipeline.npz", FOLDER / "wan_pipeline.json.gz"
PIECES = (
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    "▁a",
    "▁red",
    "▁cat",
    "▁dog",
    "▁&",
    *"acdegort",
)
PROMPT, NEGATIVE = "a red  cat &amp;amp; a\ndog", "a dog"
STEPS, SCALE = 20, 5.0
FRAMES, HEIGHT, WIDTH = 9, 32, 48
RECORDED_FRAMES = [0, 3, 8]  # those of the videos that are recorded
# Name -> (class of the scheduler, its shift, the negative prompt).
RUNS = {
    "unipc": ("UniPCMultistepScheduler", 3.0, ""),
    "euler": ("FlowMatchEulerDiscreteScheduler", 5.0, NEGATIVE),
}


def noise() -> np.ndarray:
    """Return the noise of every run in torch's order, [1, 4, 3, 4, 6]."""
    return normal("wan/pipeline/noise", (1, 4, 3, HEIGHT // 8, WIDTH // 8))


def part_weight(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a weight of a part in half precision."""
    return weight(f"wan/pipeline/{part}", name, shape).astype(np.float16)


def recorded_files() -> dict:
    """Return {"texts": by path, "weights": {path: {name: shape}}} of the folder."""
    return json.loads(gzip.decompress(FILES.read_bytes()))


def write_pipeline(folder: Path, run: str = "unipc") -> Path:
    """Write the folder as diffusers wrote it, the transformer in shards.

    run: whose scheduler it has.
    """
    recorded = recorded_files()
    for path, text in recorded["texts"].items():
        first, _, rest = path.partition("/")
        if first == run:
            path = f"scheduler/{rest}"
        elif first in RUNS:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for path, shapes in recorded["weights"].items():
        part = Path(path).parts[0]
        tensors = {n: part_weight(part, n, tuple(shape)) for n, shape in shapes.items()}
        save_file(tensors, folder / path, {"format": "pt"})
    return folder
