"""Read a run, a shipped model or a distillation from its workdir."""

import zlib
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import agreement, files, migration, sharding
from vdm_jax.build import build_model
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.manifest import MANIFEST
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.pretrained import params as params_file
from vdm_jax.settings import TRAINING, check_config, settings_of

# Sections that the config of a model must have.
MODEL_SECTIONS = {"video", "data", "network", "conditioning", "diffusion", "sample"}
# Those that decide what a model is and how it is sampled.
READ_SECTIONS = {
    name: section
    for name, section in TRAINING.items()
    if name in MODEL_SECTIONS | {"codec", "stage"}
}

# Fields of a config that are paths of this machine, "" for none.
PATH_FIELDS = tuple(
    f"{section}.{name}".removeprefix(".")
    for section, declared in TRAINING.items()
    for name, field in settings_of(declared).items()
    if field.metadata["path"]
)


def resolve_paths(config: Any) -> None:
    """Expand the paths of a config in place; UserError for a value that is no path."""
    for field in PATH_FIELDS:
        section, _, name = field.rpartition(".")
        part = config.get(section, config)
        if part.get(name):
            if not isinstance(part[name], str):
                raise UserError(f"config.{field}={part[name]!r:.40}: not a path")
            part[name] = str(user_path(part[name], f"config.{field}"))


def config_without_paths(config: Any) -> dict[str, Any]:
    """Return what of a config all processes of a run must have in common.

    Paths may differ between machines: the files there are compared by their content.
    """
    fields = config.to_dict()
    for field in PATH_FIELDS:
        section, _, name = field.rpartition(".")
        fields.get(section, fields if not section else {}).pop(name, None)
    return {"config": fields}


# Files of a distillation's workdir: its config with its teacher, its finished rounds.
DISTILLATION_FILE, ROUNDS_FILE = "distill.json", "rounds.json"
ROUND_FIELDS = {
    "steps": int, "updates": int, "loss": float | int, "metric": float | int,
    "seconds": float | int, "path": str,
}  # fmt: skip


def model_dir(workdir: Path) -> Path:
    """Return the folder of a model: the workdir, or that of the last student in it."""
    if not (workdir / DISTILLATION_FILE).is_file():
        return workdir
    return workdir / distillation_rounds(workdir)[-1]["path"]


def distillation_rounds(workdir: Path) -> list[dict[str, Any]]:
    """Return the finished rounds of a distillation, one dict of ROUND_FIELDS each.

    Raises:
      UserError: no round is finished, or the file cannot be read.
    """
    path = workdir / ROUNDS_FILE
    rows = read_json(path, list) if path.is_file() else []
    if not all(
        isinstance(row, dict)
        and all(isinstance(row.get(name), kind) for name, kind in ROUND_FIELDS.items())
        for row in rows
    ):
        raise UserError(f"{path} is not what distill.py wrote; put back a copy")
    if not rows:
        raise UserError(
            f"{workdir} has no student yet: its first round is not finished"
        )
    return rows


def read_json(path: Path, kind: type = object) -> Any:
    """Read a JSON file of a run; UserError if it is no JSON of this kind."""
    try:
        content = files.read_json(path)
    except files.CorruptFile as error:
        raise UserError(f"{path} is {error}; put back a copy") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is not what was written there; put back a copy")
    return content


def read_config_fields(
    path: Path, required: Set[str] = MODEL_SECTIONS
) -> dict[str, Any]:
    """Read a config.json, with the present field names.

    Raises:
      UserError: a required section is missing, or the file cannot be read.
    """
    fields = migration.migrate(read_json(path, dict))
    sections = {name for name, value in fields.items() if isinstance(value, dict)}
    if missing := required - sections:
        raise UserError(
            f"{path} is not a config: it lacks {', '.join(sorted(missing))}; put back "
            "the file that training wrote"
        )
    return fields


def read_config(workdir: Path) -> Any:
    """Read the complete config of a run or of a shipped model, as a ConfigDict."""
    path = model_dir(user_path(workdir, "workdir")) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} is not a run: it holds no config.json; give the --workdir of a "
            "training run or a folder of models/"
        )
    config: Any = ConfigDict(read_config_fields(path))
    try:
        check_config(config, READ_SECTIONS)
        build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}; put back a copy") from error
    resolve_paths(config)
    return config


def is_trained(workdir: Path) -> bool:
    """Return whether parameters are stored there; they may be damaged."""
    workdir = model_dir(workdir)
    checkpoints = (workdir / "checkpoints").glob(f"[0-9]*/{MANIFEST}")
    return (workdir / "params.safetensors").is_file() or any(checkpoints)


class TrainedModel(NamedTuple):
    """A trained model.

    params: averaged ones (EMA), or the last ones of a run that keeps no average; and as
      params["codec"] those of a codec that has parameters.
    step: number of finished updates, -1 for a shipped model.
    checksum: CRC-32 of the parameters as they are stored, in hexadecimal.
    """

    model: DiffusionModel
    params: Params
    config: Any
    step: int
    checksum: str


def load(workdir: str | Path, mesh: Mesh | None = None) -> TrainedModel:
    """Load a run's newest undamaged checkpoint, or a shipped model.

    Every command that needs a trained model calls it. Half-precision parameters are
    cast to the model's own precision here. With a mesh the parameters are sharded as in
    a run on it; without one they are on the first device, or on the host.

    Raises:
      UserError: the workdir holds no trained model, or what it holds is damaged.
    """
    workdir = model_dir(user_path(workdir, "workdir"))
    config = read_config(workdir)
    if config.task != "diffusion":
        raise UserError(
            f"{workdir} trains the task {config.task!r}, no diffusion model"
        )
    model = build_model(config)

    def checksum(path: Path) -> str:
        """Return that of a file, which all processes of a mesh must agree on."""
        crc32 = f"{zlib.crc32(path.read_bytes()):08x}"
        if mesh is not None:
            agreement.check(
                {f"checksum of {path.name}": crc32} | config_without_paths(config)
            )
        return crc32

    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    shardings = None
    if mesh is not None:
        shardings = sharding.state_shardings(mesh, shapes)
        shapes = sharding.with_shardings(shapes, shardings)
    shipped = workdir / "params.safetensors"
    if shipped.is_file():
        stored = checksum(shipped)
        params = params_file.read(shipped, shapes)
        if shardings is not None:
            params = jax.device_put(params, shardings)
        params = {**params, **_codec_params(model, mesh)}
        return TrainedModel(model, params, config, -1, stored)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step = checkpoints.newest_intact()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    stored = checksum(checkpoints.directory / str(step) / MANIFEST)
    averaged = any(name.startswith("ema/") for name in checkpoints.leaves(step))
    part = "ema" if averaged else "params"
    state, _ = checkpoints.restore(step, {part: shapes})
    params = {**state[part], **_codec_params(model, mesh)}
    return TrainedModel(model, params, config, step, stored)


def _codec_params(model: DiffusionModel, mesh: Mesh | None) -> dict[str, Params]:
    """Return {"codec": its parameters} of a codec that has parameters, else {}."""
    params = {"codec": own} if (own := model.codec.load_params()) else {}
    if mesh is None:
        return params
    return jax.device_put(params, sharding.state_shardings(mesh, params))
