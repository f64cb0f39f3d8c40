"""python -m vdm_jax.export: runs as shipped models, or as folders of diffusers."""

import itertools
from pathlib import Path

from absl import flags

from vdm_jax.commands.flags import (
    check_mode,
    define_out,
    define_path,
    define_run,
    require_one,
)
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes

FLAGS = flags.FLAGS
FILES = "params.safetensors", "config.json", "metrics.jsonl"


def main() -> None:
    """Parse the command line and export."""
    define_run("workdir", "a run, or a shipped model")
    define_path("cascade", "or: a cascade of them")
    define_out("folder to write, as models/NAME")
    flags.DEFINE_enum(
        "format", "vdm_jax", list(FORMATS), "a shipped model, an image model as a "
        "StableDiffusionPipeline of diffusers, or what a run with network.lora_rank "
        "or with control has trained, as a LoRA file or as a ControlNet of diffusers",
    )  # fmt: skip
    flags.DEFINE_enum(
        "dtype", "float16", ["float16", "float32"], "of the weights; a LoRA is float32"
    )
    flags.mark_flag_as_required("out")
    run(_export, "Write the averaged parameters of runs as safetensors.")


def _export() -> None:
    modes = {f"--format={name}": ("dtype",) for name in FORMATS}
    check_mode(f"--format={FLAGS.format}", modes | {"--format=lora": ()})
    out = Path(FLAGS.out)
    if require_one(workdir="a model", cascade="a cascade of models") == "workdir":
        _check_folders(out)
        _check_source(Path(FLAGS.workdir), out)
        return FORMATS[FLAGS.format](Path(FLAGS.workdir), out, FLAGS.dtype)
    if FLAGS.format != "vdm_jax":
        raise UserError(f"--format={FLAGS.format} is of one model: give --workdir")
    from vdm_jax import cascade, cascade_file

    exported = cascade.read(FLAGS.cascade)
    folders = [out / stage.name for stage in exported.stages]
    _check_folders(out, *folders)
    for stage in exported.stages:
        _check_source(stage.workdir, *folders)
    for stage, folder in zip(exported.stages, folders, strict=True):
        export_model(stage.workdir, folder, FLAGS.dtype)
    stages = {s.name: cascade.sampling_overrides(s) for s in exported.stages}
    text = cascade_file.to_toml(stages)
    write_bytes(out / cascade_file.CASCADE_FILE, text.encode(), overwrite=True)


def _check_source(workdir: Path, *outs: Path) -> None:
    """Raise UserError for a folder of output that a model is read from, or in one.

    It is read from the workdir and from the folders of the model that it was tuned
    from, of its autoencoder and of its text encoder.
    """
    from vdm_jax import runs
    from vdm_jax.pretrained import sd_pipeline

    config = runs.read_config(workdir)
    codec, condition = (config.get(s, {}) for s in ("codec", "conditioning"))
    named = config.get("init_from"), codec.get("path"), condition.get("text_encoder")
    sources = [Path(path).resolve() for path in (workdir, *named) if path]
    if FLAGS.format == "diffusers":
        outs += tuple(out / part for out in outs for part in sd_pipeline.PARTS)
    for out, source in itertools.product(outs, sources):
        if source.is_dir() and out.resolve().is_relative_to(source):
            raise UserError(
                f"--out={FLAGS.out}: the model is read from {source}: give a folder "
                "outside of it"
            )


def _check_folders(*folders: Path) -> None:
    """Raise UserError for a folder that is a run, or that holds a model to keep."""
    from vdm_jax import cascade_file, runs
    from vdm_jax.commands import export_autoencoder
    from vdm_jax.pretrained import lora_files, sd_pipeline

    ours = {*FILES, *export_autoencoder.FILES, cascade_file.CASCADE_FILE}
    ours |= {lora_files.FILE, sd_pipeline.INDEX}
    if FLAGS.format == "diffusers":
        ours |= {*sd_pipeline.PARTS}
    # A folder with both would be read as the one that was there.
    other = {"vdm_jax": sd_pipeline.INDEX, "diffusers": runs.PARAMS}.get(FLAGS.format)
    for folder in filter(Path.is_dir, folders):
        names = {path.name for path in folder.iterdir()}
        if names & {"checkpoints", runs.DISTILLATION_FILE}:
            raise UserError(f"--out={folder} is a run: give a folder of its own")
        if other in names:
            raise UserError(
                f"{folder} holds a model of another format, {other}: give a folder of "
                "its own"
            )
        if names & ours and not FLAGS.overwrite:
            raise UserError(
                f"{folder} already holds a model: another --out, or --overwrite"
            )


def export_model(workdir: Path, out: Path, dtype: str = "float16") -> None:
    """Write a run or a shipped model as the folder of a shipped model."""
    from vdm_jax import image_text, runs, shipped
    from vdm_jax.commands.export_autoencoder import export_autoencoder

    config = runs.read_config(workdir)
    log = runs.model_dir(workdir) / "metrics.jsonl"
    if config.task == "autoencoder":
        export_autoencoder(workdir, config, out, dtype)
        return _copy_log(log, out)
    trained = (image_text if config.task == "contrastive" else runs).load(workdir)
    line = shipped.write(out, workdir, trained, dtype)
    _copy_log(log, out)
    print(line)


def _copy_log(log: Path, out: Path) -> None:
    if log.is_file():
        write_bytes(out / log.name, log.read_bytes(), overwrite=True)


def export_lora(workdir: Path, out: Path, dtype: str) -> None:
    """Write the LoRA of a run, in a folder that diffusers and --lora read."""
    del dtype  # is float32
    from vdm_jax import adapters, runs
    from vdm_jax.pretrained import lora_files

    trained = runs.load(workdir)
    file = out / lora_files.FILE
    adapters.write(file, trained.params, trained.model, trained.config)
    print(f"step {trained.step}, {file.stat().st_size / 1e6:.2f} MB in {file}")


def export_pipeline(workdir: Path, out: Path, dtype: str) -> None:
    """Write an image model as a folder of diffusers."""
    from vdm_jax import adapters, diffusers_export, runs

    trained = adapters.merged(runs.load(workdir))
    absent = diffusers_export.write(out, trained, workdir, dtype)
    note = ""
    if absent:
        note = f": from_pretrained(DIR, {', '.join(f'{part}=None' for part in absent)})"
    if clip_skip := trained.config.conditioning.clip_skip:
        note += f"; call it with {clip_skip=}"
    print(f"a StableDiffusionPipeline in {out}{note}")


def export_controlnet(workdir: Path, out: Path, dtype: str) -> None:
    """Write the ControlNet of a run as a folder of diffusers."""
    from vdm_jax import controls, runs
    from vdm_jax.pretrained.safetensors_io import DIFFUSERS

    trained = runs.load(workdir)
    controls.write(out, trained, dtype)
    size = (out / f"{DIFFUSERS}.safetensors").stat().st_size / 1e6
    print(f"step {trained.step}, a ControlNetModel of {size:.2f} MB in {out}")


FORMATS = {
    "vdm_jax": export_model, "diffusers": export_pipeline, "lora": export_lora,
    "controlnet": export_controlnet,
}  # fmt: skip
