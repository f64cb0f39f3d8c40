"""A small folder of diffusers' StableDiffusionPipeline, and what is sampled with it.

record_pipeline.py records the folder that diffusers writes but for its weights, which
`drawn.weight` draws by their names, and what diffusers samples. Tests write the folder
again and sample it.
"""

import gzip
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.parity.drawn import normal, weight

FOLDER = Path(__file__).parent
ARRAYS, FILES = FOLDER / "pipeline.npz", FOLDER / "pipeline.json.gz"
MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "o n</w>")
PROMPT, NEGATIVE = "a red cat on a dog", "a dog"
STEPS, SCALE, STRENGTH = 20, 3.0, 0.6

# Name -> (class of the scheduler, its prediction type, the negative prompt, strength).
# Strength 0 is from noise.
RUNS = {
    "ddim": ("DDIMScheduler", "epsilon", "", 0),
    "ddim_v": ("DDIMScheduler", "v_prediction", NEGATIVE, 0),
    "dpm": ("DPMSolverMultistepScheduler", "epsilon", "", 0),
    "euler": ("EulerDiscreteScheduler", "epsilon", "", 0),
    "ddim_edit": ("DDIMScheduler", "epsilon", "", STRENGTH),
    "dpm_edit": ("DPMSolverMultistepScheduler", "v_prediction", "", STRENGTH),
}


def noise() -> np.ndarray:
    """Return the noise of every run, [1, 4, 8, 8]."""
    return normal("pipeline/noise", (1, 4, 8, 8))


def picture() -> np.ndarray:
    """Return the picture that the edits start from, uint8 [16, 16, 3]."""
    smooth = np.kron(normal("pipeline/picture", (4, 4, 3)), np.ones((4, 4, 1)))
    return np.clip(smooth * 50 + 128, 0, 255).astype(np.uint8)


def part_weight(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a weight of a part in half precision."""
    return weight(f"pipeline/{part}", name, shape).astype(np.float16)


def recorded_files() -> dict:
    """Return {"texts": by path, "weights": {path: {name: shape}}} of the folder."""
    return json.loads(gzip.decompress(FILES.read_bytes()))


def recorded_scheduler(name: str) -> dict:
    """Return the scheduler_config.json of a run."""
    return json.loads(recorded_files()["texts"][f"{name}/scheduler_config.json"])


def write_pipeline(folder: Path, run: str = "ddim", former_names: bool = False) -> Path:
    """Write the folder as diffusers wrote it: in half precision, the U-Net in shards.

    run: whose scheduler it has. former_names: as folders of older versions have them,
    `text_model.` before CLIP's and `query` in the autoencoder.
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
        tensors = {}
        for name, shape in shapes.items():
            own = former_name(part, name) if former_names else name
            tensors[own] = part_weight(part, name, tuple(shape))
        save_file(tensors, folder / path, {"format": "pt"})
    return folder


def former_name(part: str, name: str) -> str:
    """Return a name as folders had it before versions 0.15 and 5 of both packages."""
    if part == "text_encoder":
        return f"text_model.{name.removeprefix('text_model.')}"
    if part == "vae" and ".attentions." in name:
        former = {
            "to_q": "query",
            "to_k": "key",
            "to_v": "value",
            "to_out.0": "proj_attn",
        }
        for new, old in former.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name
