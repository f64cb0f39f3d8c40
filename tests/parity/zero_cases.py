"""The runs that record_text2video_zero.py records with the folder of pipeline_cases.py.

text      four frames by TextToVideoZeroPipeline
controls  three frames by StableDiffusionControlNetPipeline, whose U-Net and ControlNet
          both have the cross-frame attention of Text2Video-Zero, as its program does
"""

import json

import numpy as np

from tests.parity.drawn import normal
from tests.parity.pipeline_cases import FOLDER, recorded_files

ARRAYS = FOLDER / "text2video_zero_diffusers.npz"
STEPS, SCALE = {"text": 50, "controls": 20}, 3.0
FRAMES = {"text": 4, "controls": 3}
MOTION = 64.0, -128.0  # x, y of the place that is read, as diffusers has it
CONTROL = "zero/control"  # the network by whose name its weights are drawn


def control_config() -> dict:
    """Return config.json of a ControlNet for the U-Net of the folder."""
    unet = json.loads(recorded_files()["texts"]["unet/config.json"])
    names = (
        "block_out_channels", "down_block_types", "layers_per_block",
        "norm_num_groups", "cross_attention_dim", "attention_head_dim",
    )  # fmt: skip
    own = {name: unet[name] for name in names}
    return own | {"conditioning_embedding_out_channels": [6, 8]}


def eps() -> np.ndarray:
    """Return the noise that takes the other frames from t0 to t1, [3, 4, 8, 8]."""
    return normal("zero/eps", (FRAMES["text"] - 1, 4, 8, 8))


def hints() -> np.ndarray:
    """Return the controls of all frames in [0, 1], [3, 3, 16, 16]."""
    return np.clip(
        normal("zero/hints", (FRAMES["controls"], 3, 16, 16)) / 4 + 0.5, 0, 1
    )
