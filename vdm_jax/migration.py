"""Names that changed: what is read from disk is translated.

Reading rewrites no file. Whatever reads one passes it through here
first, so that the rest of the library knows the present names only:

  migrate, rename       fields of config.json and distill.json
  rename_fields         one section of them; "sample" is a stage of cascade.toml too
  migrate_fingerprint   the data's fingerprint in a checkpoint
  migrate_path          paths of parameters, such as network/down/conv_in/kernel; they
                        are the names of the Flax modules
  is_former_pattern     patterns of such paths, in train.trainable

On a command line an old name is refused, with the new one in the message (`new_flag`).
"""

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


def unchanged(value: Any) -> Any:
    """Return the value: most fields changed their name only."""
    return value


def scale(weight: Any) -> Any:
    """Return the guidance scale s = w + 1 of VDM's weight w, or of each in a tuple."""
    if isinstance(weight, list | tuple):
        return [scale(each) for each in weight]
    return weight + 1 if type(weight) in (int, float) else weight


def scale_schedule(schedule: Any) -> Any:
    """Return a guidance schedule whose lower or first weight is a scale."""
    if not isinstance(schedule, str):
        return schedule
    name, *numbers = schedule.split(":")
    if name in ("oscillating", "frames") and numbers:
        with contextlib.suppress(ValueError):
            numbers[0] = str(float(numbers[0]) + 1)
    return ":".join([name, *numbers])


SCALE_NOTE = (
    "it is the scale s of uncond + s (cond - uncond), 1 is off; the values of "
    "guidance_schedule are scales too"
)
RANGE_NOTE = "it is of scales s = w + 1, 1 is without guidance"


def default_weight(weight: Any) -> Any:
    """Return None for 9, the default of version 0.1, else the weight.

    None is the default today: the weight then depends on what is observed.
    """
    return None if weight == 9.0 else weight


class RenamedField(NamedTuple):
    """A config field of an earlier version.

    section: of the config; "network.levels" means each level of the network.
    old, new: names. They are equal where only the value is written differently.
    convert: old value -> new value.
    requires: "" or the old name of another field of the section. The row holds only for
      files that have it, which tells an old file from a new one where `old` is `new`.
    note: what a user who types the old flag must know about the value.
    """

    section: str
    old: str
    new: str
    convert: Callable[[Any], Any] = unchanged
    requires: str = ""
    note: str = ""


def metric_name(name: Any) -> Any:
    """Return the present name of a distillation's metric."""
    names = {"agreement": "r2_to_teacher", "joint": "shape_accuracy"}
    return names.get(str(name), name)


# Section -> old name -> new name.
RENAMED_ONLY = {
    "data": {
        "images": "joint_image_frames", "unseen": "held_out_combinations",
        "held_out": "validation_fraction", "max_bad_share": "max_bad_fraction",
        "attributes": "label_vocabulary", "embeddings": "text_embeddings_dir",
    },
    "network.levels": {
        "mixing": "layers", "once": "layers_after_last_block_only",
    },
    "network": {
        "middle": "mid_layers", "patch": "patch_size",
        "extra_up_block": "skip_downsamples",
    },
    "conditioning": {
        "width": "cond_dim", "layers": "cond_mlp_layers", "label_drop": "label_dropout",
        "attribute_drop": "attribute_dropout",
        "frame_position": "frame_index_embedding", "text_width": "text_dim",
        "encoder": "text_encoder", "encoder_sha256": "text_encoder_sha256",
        "text_drop": "text_dropout",
    },
    "stage": {
        "fill": "temporal_fill", "noise": "augmentation_time", "crop": "train_crop",
    },
    "diffusion": {
        "shift": "logsnr_shift", "noise_shift": "noise_logsnr_shift",
        "train_shifts": "train_logsnr_shifts", "output": "prediction_type",
        "student_steps": "distilled_steps", "weighting": "loss_weighting",
    },
    "train": {
        "decay": "lr_schedule", "final": "end_lr_fraction", "clip": "grad_clip_norm",
        "ema": "ema_decay", "accumulate": "grad_accum_steps",
        "preview_every": "sample_every", "validate_every": "eval_every",
        "max_nonfinite": "max_nonfinite_updates",
    },
    "sample": {
        "gamma": "ancestral_gamma", "churn": "s_churn", "corrector": "langevin_delta",
        "schedule": "sampling_schedule", "combine": "cfg_mode", "threshold": "clip_x",
        "percentile": "dynamic_threshold", "snr": "augmentation_snr",
        "tiled": "tiled_sampling",
    },
    "distill": {
        "start": "start_steps", "end": "end_steps", "weighting": "loss_weighting",
        "told_updates": "guidance_updates", "told_learning_rate": "guidance_lr",
        "updates": "updates_per_round", "last_updates": "updates_last_rounds",
        "late": "time_power", "tolerance": "max_metric_drop",
    },
}  # fmt: skip
RENAMED = (
    *(
        RenamedField(section, old, new)
        for section, names in RENAMED_ONLY.items()
        for old, new in names.items()
    ),
    RenamedField(
        "conditioning", "guidance_range", "guidance_range", scale, requires="width"
    ),
    RenamedField("sample", "guidance", "guidance_scale", scale, note=SCALE_NOTE),
    RenamedField(
        "sample", "guidance_schedule", "guidance_schedule", scale_schedule, "guidance"
    ),
    RenamedField("sample", "reconstruction", "reconstruction_weight", default_weight),
    RenamedField("distill", "guidance", "guidance_range", scale, note=RANGE_NOTE),
    RenamedField("distill", "metric", "metric", metric_name),
)


RENAMED_FLAGS = {
    "against": "baseline_reports", "beside": "show_samples", "between": "interpolate",
    "churn": "s_churn", "combine": "cfg_mode", "commands": "report_commands",
    "corrector": "langevin_delta", "deciding": "num_key_samples",
    "encoder": "text_encoder", "factor": "downscale_factor", "fewer": "compare_steps",
    "frames": "num_frames", "fvd": "network_metrics", "gamma": "ancestral_gamma",
    "given": "num_cond_frames", "overlap": "overlap_frames",
    "percentile": "dynamic_threshold", "reconstruction": "reconstruction_weight",
    "schedule": "sampling_schedule", "snr": "augmentation_snr", "threshold": "clip_x",
    "until": "last_stage", "windows": "multidiffusion",
}  # fmt: skip
# Flag of an earlier version -> its name now, "" where it is gone, and a note. Of a
# field of a config only the last component is another.
RETIRED_FLAGS = {
    **{
        f"config.{row.section}.{row.old}": (row.new, row.note)
        for row in RENAMED
        if row.old != row.new
    },
    **{old: (new, "") for old, new in RENAMED_FLAGS.items()},
    "guidance": ("guidance_scale", SCALE_NOTE),
    "intermediate": ("", "the videos of every stage are written"),
    "negative": ("negative_label", "or --negative_prompt for models of text"),
}

# Flags that moved from sample.py to edit.py.
MOVED_FLAGS = (
    "extend", "interpolate", "inpaint", "upscale", "backward", "num_cond_frames",
    "downscale_factor",
)  # fmt: skip

# Fields younger than some files, with what those did before there was a choice.
ADDED_FIELDS: dict[str, dict[str, Any]] = {
    "codec": {"kind": "identity", "path": "", "tile": 0},
    "network": {"kind": "unet"},
    "conditioning": {
        "guidance_range": [], "text_encoder": "", "text_encoder_sha256": "",
        "text_pooling": True, "clip_skip": 0, "clean_frames": [], "kind": "vdm",
    },
    "data": {
        "held_out_combinations": 0, "text_embeddings_dir": "", "latents_dir": "",
        "caption": "", "edited_caption": "",
    },
    "diffusion": {
        "schedule": "cosine", "noise_logsnr_shift": 0.0, "distilled_steps": 0,
        "resolution_base": 0, "train_lognormal": [],
    },
    "train": {"lr_schedule": "cosine"},
    "sample": {"augmentation_snr": 5.0, "tiled_sampling": False, "mesh": ""},
    "mesh": {
        "tensor": 1, "context": 1, "slice": 1,
        "activation_rules": [
            ["batch", ["slice", "data", "fsdp", "context"]],
            ["frames", ["context", "slice", "data", "fsdp"]],
            ["height", "context"], ["width", None], ["channel", "tensor"],
        ],
        "param_rules": [[".*(kernel|embedding)", ["tensor", "fsdp"]], [".*", None]],
    },
}  # fmt: skip

# A choice between two names of one program.
REMOVED_FIELDS = {"network": ("attention",)}

# Keys of the data's fingerprint in checkpoints.
FINGERPRINT = {"images": "joint_image_frames", "images_told": "image_conditions"}

# Consecutive components of a path: version 0.1 -> today; {i} stands for a number.
# They are translated wherever they occur, since the moments of the optimizer and the
# EMA repeat the paths of the parameters behind a prefix.
PARAMETER_PATHS = (
    ("conditioner/frame", "conditioning_encoder/frame_index"),
    ("conditioner/guidance", "conditioning_encoder/guidance_weight"),
    ("conditioner/low", "conditioning_encoder/low_resolution"),
    ("conditioner/noise", "conditioning_encoder/noise_level"),
    ("conditioner/text/LayerNorm_0", "conditioning_encoder/text/norm"),
    ("conditioner", "conditioning_encoder"),
    ("network/down/stem", "network/down/conv_in"),
    ("network/down/shrink_{i}", "network/down/downsample_{i}"),
    ("network/up/grow_{i}", "network/up/upsample_{i}"),
    ("network/norm", "network/norm_out"),
    ("network/out", "network/conv_out"),
)
# Parts of former paths that no present path has: a pattern with one is of version 0.1.
FORMER_WORDS = ("conditioner", "LayerNorm", "stem", "shrink", "grow")


def rename_fields(section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of one section under their present names, values converted.

    Fields that the table does not have are returned as they are. Where a file has the
    old and the new name, the new one counts.
    """
    rows = {
        row.old: row
        for row in RENAMED
        if row.section == section and (not row.requires or row.requires in fields)
    }
    renamed = {
        row.new: row.convert(value)
        for name, value in fields.items()
        if (row := rows.get(name))
    }
    return renamed | {n: value for n, value in fields.items() if n not in rows}


def rename(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config or distill.json with the present names.

    What is no section (a damaged file may hold anything) is returned as it is.
    """
    renamed = {
        name: rename_fields(name, fields) if isinstance(fields, dict) else fields
        for name, fields in config.items()
    }
    network = renamed.get("network")
    if isinstance(network, dict) and isinstance(network.get("levels"), list | tuple):
        network["levels"] = [
            rename_fields("network.levels", level) if isinstance(level, dict) else level
            for level in network["levels"]
        ]
    return renamed


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's stored config as the present version would have written it.

    Fields are renamed, removed ones are dropped, and later ones get the value that
    stands for what the earlier version did.
    """
    added = {
        "task": "diffusion", "init_new": [], "init_widen": [], "init_checksum": "",
        "codec": {},
    }  # fmt: skip
    fields = rename(added | dict(config))
    stage = fields.get("stage")
    if isinstance(stage, dict) and stage.get("kind") == "base":
        del fields["stage"]  # a base model has none
    for section, added in ADDED_FIELDS.items():
        if isinstance(fields.get(section), dict):
            fields[section] = added | fields[section]
            for name in REMOVED_FIELDS.get(section, ()):
                fields[section].pop(name, None)
    network = fields.get("network")
    if isinstance(network, dict) and network["kind"] == "unet":  # it has all fields
        fields["network"] = {"attention_backend": "auto"} | network
    return fields


def migrate_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a checkpoint with the present keys."""
    return {FINGERPRINT.get(name, name): v for name, v in fingerprint.items()}


def new_flag(flag: str, command: str = "") -> str:
    """Return what a retired flag is called now, or "".

    flag: a word of the command line, as "--config.train.ema=0.99" or "--fvd".
    command: the command that was called, as "sample", for flags that moved to another.
    """
    if not flag.startswith("-"):  # the value of a flag
        return ""
    name = flag.lstrip("-").partition("=")[0]
    old = re.sub(r"\[\d+\]", "", name)
    no = "no" if old.startswith("no") and old not in RETIRED_FLAGS else ""
    old = old.removeprefix(no)
    new, note = RETIRED_FLAGS.get(old, (old, ""))
    if not new:
        return f"--{name} is gone: {note}"
    if command == "sample" and new in MOVED_FLAGS:
        place = "edit.py --"
    elif new != old:
        place = "--" + name[: name.rfind(".") + 1]
    else:
        return ""
    answer = f"--{name} is {place}{no}{new} now"
    return f"{answer}; {note}" if note else answer


def migrate_path(path: str) -> str:
    """Return today's path of a parameter; paths of today stay as they are."""
    for former, present in PARAMETER_PATHS:
        path = _replace(path, former, present)
    return path


def former_path(path: str) -> str:
    """Return the path that a parameter of today had in version 0.1."""
    for former, present in PARAMETER_PATHS:
        path = _replace(path, present, former)
    return path


def is_former_pattern(pattern: str, paths: Sequence[str]) -> bool:
    """Return whether a pattern is of version 0.1, so that it matches former paths.

    It has one of the FORMER_WORDS, or it matches none of the present paths.
    """
    if any(word in pattern for word in FORMER_WORDS):
        return True
    return not any(re.fullmatch(pattern, path) for path in paths)


def _replace(path: str, old: str, new: str) -> str:
    return _components(old).sub(new.replace("{i}", r"\1"), path)


@functools.cache
def _components(names: str) -> re.Pattern[str]:
    """Match whole components: neither part of a name before nor after them."""
    return re.compile(r"(?<![^/])" + names.replace("{i}", r"(\d+)") + r"(?![^/])")
