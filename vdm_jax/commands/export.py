"""python -m vdm_jax.export: runs as shipped models, with their logs."""

from pathlib import Path

from absl import flags

from vdm_jax.commands.flags import define_out, define_path, require_one
from vdm_jax.commands.main import run
from vdm_jax.errors import UserError
from vdm_jax.files import make_folder, write_bytes

FLAGS = flags.FLAGS
FILES = "params.safetensors", "config.json", "metrics.jsonl"


def main() -> None:
    """Parse the command line and export."""
    define_path("workdir", "a run, or a shipped model")
    define_path("cascade", "or: a cascade of them")
    define_out("folder to write, as models/NAME")
    flags.mark_flag_as_required("out")
    run(_export, "Write the averaged parameters of runs as half-precision safetensors.")


def _export() -> None:
    out = Path(FLAGS.out)
    if require_one(workdir="a model", cascade="a cascade of models") == "workdir":
        _check_folders(out)
        return export_model(Path(FLAGS.workdir), out)
    from vdm_jax import cascade, cascade_file

    exported = cascade.read(FLAGS.cascade)
    _check_folders(out, *(out / stage.name for stage in exported.stages))
    for stage in exported.stages:
        export_model(stage.workdir, out / stage.name)
    stages = {s.name: cascade.sampling_overrides(s) for s in exported.stages}
    text = cascade_file.to_toml(stages)
    write_bytes(out / cascade_file.CASCADE_FILE, text.encode(), overwrite=True)


def _check_folders(*folders: Path) -> None:
    """Raise UserError for a folder that is a run, or that holds a model to keep."""
    from vdm_jax import cascade_file, runs

    ours = {*FILES, cascade_file.CASCADE_FILE}
    for folder in filter(Path.is_dir, folders):
        names = {path.name for path in folder.iterdir()}
        if names & {"checkpoints", runs.DISTILLATION_FILE}:
            raise UserError(f"--out={folder} is a run: give a folder of its own")
        if names & ours and not FLAGS.overwrite:
            raise UserError(
                f"{folder} already holds a model: another --out, or --overwrite"
            )


def export_model(workdir: Path, out: Path) -> None:
    """Write a run or a shipped model as the folder of a shipped model."""
    from vdm_jax import runs
    from vdm_jax.pretrained import params

    trained = runs.load(workdir)
    out = make_folder(out)
    file = out / "params.safetensors"
    own = {part: p for part, p in trained.params.items() if part != "codec"}
    params.write(file, own)
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
