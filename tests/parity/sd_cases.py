"""The small U-Nets and sampler runs that record_sd.py records and tests repeat."""

from pathlib import Path

from tests.parity.drawn import normal

FOLDER = Path(__file__).parent

# As unet/config.json of a folder of diffusers. "sd1" has the shape of version 1, "sd2"
# that of version 2: numbers of heads by level under the name attention_head_dim.
UNETS = {
    "sd1": dict(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
        attention_head_dim=4, sample_size=8,
    ),
    "sd2": dict(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=16, cross_attention_dim=40,
        attention_head_dim=(2, 4), sample_size=8, use_linear_projection=True,
        upcast_attention=True,
    ),
}  # fmt: skip
_FULL = dict(
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
PUBLISHED = {  # the configs of versions 1.5 and 2.1
    "sd15_unet": dict(
        **_FULL, sample_size=64, cross_attention_dim=768, attention_head_dim=8
    ),
    "sd21_unet": dict(
        **_FULL, sample_size=96, cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
    ),
}  # fmt: skip
TIMESTEPS = (999, 21)  # of the two images


def unet_inputs(name: str) -> tuple:
    """Return images [2, 4, 8, 8] in torch's order and texts [2, 5, d]."""
    width = UNETS[name]["cross_attention_dim"]
    sample = normal(f"{name}/input/sample", (2, 4, 8, 8))
    return sample, normal(f"{name}/input/text", (2, 5, width))


# Name -> (class of diffusers, number of steps, its settings).
RUNS = {
    "ddim_leading": ("DDIMScheduler", 20, {}),
    "ddim_leading_50": ("DDIMScheduler", 50, {}),
    "ddim_to_clean": ("DDIMScheduler", 20, {"set_alpha_to_one": True}),
    "ddim_trailing": ("DDIMScheduler", 20, {"timestep_spacing": "trailing"}),
    "dpm_leading": (
        "DPMSolverMultistepScheduler", 20, {"timestep_spacing": "leading"},
    ),
    "dpm_trailing": (
        "DPMSolverMultistepScheduler", 20, {"timestep_spacing": "trailing"},
    ),
    "dpm_linspace": ("DPMSolverMultistepScheduler", 20, {}),
    "euler_leading": ("EulerDiscreteScheduler", 20, {"timestep_spacing": "leading"}),
    "euler_trailing": ("EulerDiscreteScheduler", 20, {"timestep_spacing": "trailing"}),
    "euler_linspace": ("EulerDiscreteScheduler", 20, {}),  # between two timesteps
}  # fmt: skip
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}


def noise():
    """Return the start of all runs, [1, 4, 6, 8] in torch's order."""
    return normal("sd/input/noise", (1, 4, 6, 8))


def stand_in(z, timestep, roll):
    """Return the output of a linear stand-in for a network; roll: by 1 along a row."""
    return (0.3 + timestep / 2000) * z + 0.25 * roll(z)
