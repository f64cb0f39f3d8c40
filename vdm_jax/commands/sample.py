"""sample.py: sample a model; extend, interpolate, inpaint or upscale a clip."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from tqdm import tqdm

from vdm_jax.commands.flags import (
    SAMPLER_SETTINGS,
    check_mode,
    define_overwrite,
    define_path,
    define_settings,
    override_settings,
    require_one,
)
from vdm_jax.commands.main import command_line, run, start_jax
from vdm_jax.commands.sample_cascade import sample_cascade
from vdm_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from vdm_jax.runs import TrainedModel
    from vdm_jax.sampling import Observation, Settings
    from vdm_jax.sampling.observations import ClipInfo

FLAGS = flags.FLAGS
SETTINGS = (
    *SAMPLER_SETTINGS, "guidance_scale", "reconstruction_weight",
    "reconstruction_schedule", "augmentation_snr", "num", "label",
)  # fmt: skip

# The flags that each way to call the command uses.
_COMMON = {
    *SAMPLER_SETTINGS, "guidance_scale", "num", "workdir", "out", "overwrite", "seed",
}  # fmt: skip
_MODEL = _COMMON | {
    "label", "negative_label", "num_frames", "overlap_frames", "tiles",
    "multidiffusion", "reconstruction_weight", "reconstruction_schedule",
}  # fmt: skip
NOISE, CASCADE = "a sample from noise", "--cascade or --prompt"
MODES = {
    NOISE: _MODEL,
    "--extend": _MODEL | {"extend", "num_cond_frames", "backward"},
    "--interpolate": _MODEL | {"interpolate", "num_cond_frames"},
    "--inpaint": _MODEL | {"inpaint", "mask"},
    "--upscale": _MODEL | {"upscale", "downscale_factor"},
    CASCADE: _COMMON
    | {"cascade", "prompt", "prompts", "negative_prompt", "text_encoder"}
    | {"last_stage", "augmentation_snr"},
}
EDITS = ("extend", "interpolate", "inpaint", "upscale")


def main() -> None:
    """Parse the command line and sample."""
    define_path("workdir", "a run, or a folder of models/")
    define_settings(SETTINGS)
    flags.DEFINE_string("negative_label", None, "label of the unconditional branch")
    _define_observation()
    _define_cascade()
    define_path("out", "folder for the videos")
    define_overwrite()
    run(_sample, "Sample videos; extend, interpolate, inpaint or upscale a clip.")


def _define_observation() -> None:
    """Define the flags of the clip that is observed, and of the output's size."""
    define_path("extend", "a clip to continue")
    flags.DEFINE_bool("backward", False, "--extend: sample what precedes the clip")
    define_path("interpolate", "a clip between whose frames to sample")
    flags.DEFINE_integer(
        "num_cond_frames", None, "frames of the clip to condition on "
        "(default: half a block, to interpolate no gap above a block)", 1,
    )  # fmt: skip
    define_path("inpaint", "a clip to inpaint where --mask is white")
    define_path("mask", "an image or video of the clip's shape")
    define_path("upscale", "a small clip whose large version to sample")
    flags.DEFINE_integer(
        "downscale_factor", None, "--upscale: shrink the clip by this first", 2
    )
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


def _define_cascade() -> None:
    """Define the flags of a cascade and of prompts."""
    define_path("cascade", "or: a cascade's TOML file, or its folder")
    flags.DEFINE_multi_string("prompt", [], "a text; may be repeated")
    define_path("prompts", "a file of prompts, one per line")
    flags.DEFINE_string("negative_prompt", None, "text of the unconditional branch")
    define_path("text_encoder", "its folder, if it is not where training had it")
    flags.DEFINE_string("last_stage", "", "stage to end with (default: the last)")


def _sample() -> None:
    require_one(workdir="a model", cascade="a cascade of models")
    if not FLAGS.out:
        raise UserError("give --out=FOLDER for the videos")
    edits = [name for name in EDITS if FLAGS[name].value is not None]
    mode = f"--{edits[0]}" if edits else NOISE
    if FLAGS.cascade is not None or FLAGS.prompt or FLAGS.prompts is not None:
        mode = CASCADE
    check_mode(mode, MODES)
    start_jax()
    if mode == CASCADE:
        return sample_cascade((*SAMPLER_SETTINGS, "guidance_scale", "augmentation_snr"))
    _sample_model(edits[0] if edits else "")


def _sample_model(edit: str) -> None:
    """Sample one model, from noise or with the observation of an edit."""
    from vdm_jax import runs, sampling, video_io

    out = Path(FLAGS.out)
    _check_model(FLAGS.workdir)
    video_io.check_output_folder(out, "samples", FLAGS.overwrite)
    trained = runs.load(FLAGS.workdir)
    override_settings(trained, SETTINGS)
    config, model = trained.config, trained.model
    if edit == "upscale" and FLAGS.reconstruction_weight is None:
        with config.unlocked():  # the model's own is for known frames
            config.sample.reconstruction_weight = None
    settings = sampling.Settings.from_config(config.sample)
    num, label = config.sample.num, config.sample.label
    sampling.check_settings(model, num, FLAGS.seed, settings)
    distilled_steps = config.diffusion.distilled_steps
    if distilled_steps and settings.steps != distilled_steps:
        print(f"this student was distilled for {distilled_steps} steps", flush=True)
    negative_labels = _negative_labels(trained, settings)
    observation, info = _read_observation(trained, edit)
    settings = sampling.with_reconstruction_weight(model, settings, observation)
    if edit and not label and model.label_vocabulary:
        label = sampling.OPEN_LABEL  # one drawn at random would contradict the clip
    labels = sampling.draw_labels(model, num, label, FLAGS.seed)
    is_conditional = labels is not None and (labels >= 0).any()
    if (
        sampling.uses_cfg(model, settings)
        and negative_labels is None
        and not is_conditional
    ):
        print("no label is set: sampling without guidance", flush=True)
        settings = dataclasses.replace(
            settings, guidance_scale=1.0, guidance_schedule="constant"
        )
    conditions = {
        "cond": {} if labels is None else {"label": labels},
        "negative": None if negative_labels is None else {"label": negative_labels},
    }
    videos = _sample_videos(trained, num, settings, observation, conditions)
    texts = None
    if labels is not None:
        texts = [sampling.label_text(model, row) for row in labels]
    fields = config.sample.to_dict() | dataclasses.asdict(settings)
    meta = {"command": command_line(), "seed": FLAGS.seed, "sample": fields}
    if info:
        meta["observation"] = info
    files = video_io.write_samples(
        out,
        "samples",
        sampling.to_uint8(videos),
        config.video.fps,
        meta | {"workdir": FLAGS.workdir, "step": trained.step},
        labels=texts,
        overwrite=FLAGS.overwrite,
    )
    print(f"{len(videos)} videos in {out}; see {files[-3]}")


def _check_model(workdir: str) -> None:
    """Raise UserError for a model that needs a cascade or a prompt."""
    from vdm_jax import build, runs

    model = build.build_model(runs.read_config(Path(workdir)))
    if model.low_resolution is not None:
        raise UserError(
            f"{workdir} is a super-resolution stage: name it in a cascade's file after "
            "the stage that makes its input, and give --cascade"
        )
    if model.text_dim:
        raise UserError(f"{workdir} is conditioned on text: give --prompt")


def _negative_labels(trained: "TrainedModel", settings: "Settings"):
    """Return the labels of --negative_label, int [num, attributes]; None without."""
    from vdm_jax import sampling

    if not FLAGS.negative_label:
        return None
    if not sampling.uses_cfg(trained.model, settings):
        raise UserError(
            "--negative_label needs --guidance_scale above 1, and a model that is not "
            "a guided student, which has one branch only"
        )
    return sampling.draw_labels(
        trained.model,
        trained.config.sample.num,
        FLAGS.negative_label,
        flag="negative_label",
    )


def _sample_videos(
    trained: "TrainedModel",
    num: int,
    settings: "Settings",
    observation: "Observation",
    conditions: dict[str, Any],
) -> "np.ndarray":
    """Sample with a progress bar: block after block, or by MultiDiffusion."""
    from vdm_jax import sampling

    with tqdm(unit="step", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def call(method: Callable, **options) -> "np.ndarray":
            return method(
                trained.model, trained.params, num, settings, seed=FLAGS.seed,
                progress=progress, **conditions, **options,
            )  # fmt: skip

        if FLAGS.multidiffusion:
            return call(
                sampling.sample,
                observation=None if observation.empty else observation,
                size=observation.video.shape[1:4],
            )
        return call(
            sampling.extend_in_blocks,
            observation=observation,
            overlap_frames=FLAGS.overlap_frames,
            backward=FLAGS.backward,
        )


def _read_observation(
    trained: "TrainedModel", edit: str
) -> "tuple[Observation, ClipInfo]":
    """Read the observation of an edit; an empty one of the output's size without."""
    from vdm_jax.sampling import observations

    block, config = trained.model.video_shape[0], trained.config
    if FLAGS.multidiffusion and FLAGS.overlap_frames is not None:
        raise UserError(
            "--overlap_frames is for blocks: the windows of --multidiffusion overlap "
            "by half"
        )
    if FLAGS.overlap_frames is not None and not 0 <= FLAGS.overlap_frames < block:
        raise UserError(
            f"--overlap_frames={FLAGS.overlap_frames}: from 0 to {block - 1} frames"
        )
    output = observations.OutputSpec(
        trained.model,
        config.video.fps,
        FLAGS.num_frames or 0,
        _parse_tiles(FLAGS.tiles),
        config.sample.num,
    )
    num_cond_frames = FLAGS.num_cond_frames or 0
    match edit:
        case "extend":
            observation, info = observations.extend(
                output, FLAGS.extend, num_cond_frames, FLAGS.backward
            )
        case "interpolate":
            observation, info = observations.interpolate(
                output, FLAGS.interpolate, num_cond_frames
            )
        case "inpaint":
            observation, info = observations.inpaint(output, FLAGS.inpaint, FLAGS.mask)
        case "upscale":
            observation, info = observations.upscale(
                output, FLAGS.upscale, FLAGS.downscale_factor or 0
            )
        case _:
            return observations.no_observation(output)
    used, length = len(info["clip_frames"]), info["clip_length"]
    ignored = ", the rest is ignored" if used < length else ""
    print(
        f"{info['clip']}: {used} of its {length} frames are used{ignored}", flush=True
    )
    return observation, info


def _parse_tiles(text: str) -> tuple[int, int]:
    """Return (rows, columns) of --tiles."""
    sides = text.split("x")
    if not all(n.isdecimal() and 1 <= int(n) <= 64 for n in sides) or len(sides) > 2:
        raise UserError(f"--tiles={text}: as 2x3, rows and columns, or 2 for both")
    return int(sides[0]), int(sides[-1])
