"""python -m vdm_jax.export: runs as shipped models, with their logs."""

from pathlib import Path

from absl import flags

from vdm_jax.commands.flags import define_overwrite, define_path, require_one
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError
from vdm_jax.files import make_folder, write_bytes

FLAGS = flags.FLAGS
FILES = "params.safetensors", "config.json", "metrics.jsonl"


def main() -> None:
    """Parse the command line and export."""
    define_path("workdir", "a run, or a shipped model")
    define_path("cascade", "or: a cascade of them")
    define_path("out", "folder to write, as models/NAME")
    flags.mark_flag_as_required("out")
    define_overwrite()
    run(_export, "Write the averaged parameters of runs as half-precision safetensors.")


def _export() -> None:
    out = Path(FLAGS.out)
    if require_one(workdir="a model", cascade="a cascade of models") == "workdir":
        return export_model(Path(FLAGS.workdir), out)
    from vdm_jax import cascade, cascade_file

    exported = cascade.read(FLAGS.cascade)
    existing = [
        folder
        for folder in (out, *(out / stage.name for stage in exported.stages))
        if (folder / cascade_file.CASCADE_FILE).exists()
        or (folder / "config.json").exists()
    ]
    if existing and not FLAGS.overwrite:
        raise UserError(
            f"{existing[0]} already holds a model: another --out, or --overwrite"
        )
    for stage in exported.stages:
        export_model(stage.workdir, out / stage.name)
    stages = {s.name: cascade.sampling_overrides(s) for s in exported.stages}
    text = cascade_file.to_toml(stages)
    write_bytes(out / cascade_file.CASCADE_FILE, text.encode(), overwrite=True)


def export_model(workdir: Path, out: Path) -> None:
    """Write a run or a shipped model as the folder of a shipped model."""
    from vdm_jax import runs
    from vdm_jax.pretrained import params

    if (out / "checkpoints").exists() or (out / runs.DISTILLATION_FILE).exists():
        raise UserError(f"--out={out} is a run: give a folder of its own")
    trained, out = runs.load(workdir), make_folder(out)
    existing = [name for name in FILES if (out / name).exists()]
    if existing and not FLAGS.overwrite:
        raise UserError(
            f"{out} already holds {existing[0]}: another --out, or --overwrite"
        )
    file = out / "params.safetensors"
    params.write(file, trained.params)
    with trained.config.unlocked():  # paths of the machine that trained it
        trained.config.init_from = trained.config.data.text_embeddings_dir = ""
    text = trained.config.to_json_best_effort(indent=1) + "\n"
    write_bytes(out / "config.json", text.encode(), overwrite=True)
    step = f"step {trained.step}" if trained.step >= 0 else "exported before"
    log = runs.model_dir(workdir) / "metrics.jsonl"
    if log.is_file():
        write_bytes(out / log.name, log.read_bytes(), overwrite=True)
    size = file.stat().st_size / 1e6
    print(f"{step}, {size:.2f} MB in {file}")
