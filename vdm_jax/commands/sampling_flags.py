"""Flags that sample.py and edit.py share."""

from absl import flags

from vdm_jax.commands.flags import (
    SAMPLER_SETTINGS,
    define_overwrite,
    define_path,
    define_settings,
)

SETTINGS = (
    *SAMPLER_SETTINGS, "guidance_scale", "reconstruction_weight",
    "reconstruction_schedule",
)  # fmt: skip

# The flags of every mode, and those of every mode that samples one model.
COMMON = {
    *SAMPLER_SETTINGS, "guidance_scale", "num", "out", "overwrite", "seed", "label",
    "negative_label", "prompt", "prompts", "negative_prompt", "text_encoder",
}  # fmt: skip
MODEL = COMMON | {
    "workdir", "num_frames", "overlap_frames", "tiles", "multidiffusion",
    "reconstruction_weight", "reconstruction_schedule",
}  # fmt: skip


def define_flags(*settings: str) -> None:
    """Define the flags of MODEL, and these settings."""
    define_path("workdir", "a run, or a folder of models/")
    flags.DEFINE_integer(
        "num", None, "how many videos, of each prompt if there are any "
        "(default: of each prompt 1, else the model's own)", 1,
    )  # fmt: skip
    flags.DEFINE_string(
        "label", None, "one name per attribute, comma separated, the others open; "
        "none: all open (default: the model's own)",
    )  # fmt: skip
    flags.DEFINE_string("negative_label", "", "label of the unconditional branch")
    flags.DEFINE_multi_string("prompt", [], "a text; may be repeated")
    define_path("prompts", "a file of prompts, one per line")
    flags.DEFINE_string("negative_prompt", "", "text of the unconditional branch")
    define_path("text_encoder", "its folder, if it is not where training had it")
    flags.DEFINE_integer(
        "num_frames", None, "frames (default: one block, to extend two)", 1
    )
    flags.DEFINE_integer(
        "overlap_frames", None, "frames that blocks share (default: half a block)"
    )
    flags.DEFINE_string("tiles", "1", "ROWSxCOLUMNS of the model's size, or one number")
    flags.DEFINE_bool(
        "multidiffusion", False, "all frames at once, averaged over windows"
    )
    define_settings((*SETTINGS, *settings))
    define_path("out", "folder for the videos")
    define_overwrite()
