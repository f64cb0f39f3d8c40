"""Read a run, a shipped model or a distillation from its workdir."""

import os
import zlib
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import agreement, diffusers_folder, files, migration, sharding
from vdm_jax.build import at_size, build_model
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.pretrained import params as params_file
from vdm_jax.pretrained import sd_pipeline
from vdm_jax.pretrained.sd_pipeline import INDEX
from vdm_jax.settings import TRAINING, check_config, settings_of
from vdm_jax.trees import named_leaves

PARAMS = "params.safetensors"  # file of a shipped model

# Sections that the config of a model must have.
MODEL_SECTIONS = {"video", "data", "network", "conditioning", "diffusion", "sample"}
# Those that decide what a model is and how it is sampled.
READ_SECTIONS = {
    name: section
    for name, section in TRAINING.items()
    if name in MODEL_SECTIONS | {"codec", "stage", "control", "discrete", "flow"}
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


def read_config(workdir: Path, size: tuple[int, ...] | None = None) -> Any:
    """Read the complete config of a run or of a shipped model, as a ConfigDict.

    size: of the videos, as for `build.at_size`; None is that of training.

    Paths that a shipped model has relative to its own folder are joined with it.

    Raises:
      UserError: there is no config, or it is damaged; or the model lacks parameters of
        another one, which is missing or has changed; or it is not for the size.
    """
    config = _read_config(workdir)
    _check_base(model_dir(user_path(workdir, "workdir")), config)
    return at_size(config, size) if size else config


def _read_config(workdir: Path) -> Any:
    """Read a config as `read_config` does, without a look at other models."""
    workdir = user_path(workdir, "workdir")
    if sd_pipeline.is_pipeline(workdir):
        return _read_pipeline(workdir)
    for folder in workdir.absolute().parents[:2]:
        is_part = workdir.is_file() or workdir.absolute().name in sd_pipeline.ALL_PARTS
        if is_part and sd_pipeline.is_pipeline(folder):
            raise UserError(
                f"{workdir} is a part of a model of diffusers: give the whole, "
                f"{folder}, which has {INDEX}"
            )
    if workdir.is_file():
        raise UserError(
            f"{workdir} is one file: save it as a folder by diffusers, "
            f"StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)"
        )
    path = model_dir(workdir) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{workdir} is not a run: it holds no config.json; give the --workdir of a "
            f"training run, a folder of models/, or one of diffusers ({INDEX})"
        )
    config: Any = ConfigDict(read_config_fields(path))
    try:
        check_config(config, READ_SECTIONS)
        resolve_paths(config)
        if (path.parent / PARAMS).is_file():
            _join_paths(config, path.parent)
        build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}; put back a copy") from error
    return config


def _join_paths(config: Any, folder: Path) -> None:
    """Join the paths of a shipped model's config with its folder, in place."""

    def joined(path: str) -> str:
        return os.path.normpath(folder / path)

    if config.codec.path:
        config.codec.path = joined(config.codec.path)
    if config.init_checksum:
        config.init_from = joined(config.init_from or "")
        encoder = config.conditioning.text_encoder  # may be a name, or elsewhere
        if encoder and (folder / encoder).is_dir():
            config.conditioning.text_encoder = joined(encoder)


def base_of(workdir: Path, config: Any) -> Path | None:
    """Return the folder of the model whose other parameters a shipped one needs.

    It is None for a run, and for a shipped model that holds all of its parameters.

    config: of `read_config`.
    """
    is_shipped = (workdir / PARAMS).is_file()
    return Path(config.init_from) if is_shipped and config.init_checksum else None


def _check_base(workdir: Path, config: Any) -> None:
    """Raise UserError unless a model's base, and that one's, are what they were."""
    if (base := base_of(workdir, config)) is None:
        return
    try:
        if not base.is_dir():
            raise UserError("there is no such folder")
        base, own = model_dir(base), _read_config(base)
        found = _stored_checksum(base, own, _newest_step(base))
        if found != config.init_checksum:
            raise UserError(f"it has {found} now")
    except UserError as error:
        raise UserError(
            f"{workdir} holds only what was tuned of the model {base}, whose "
            f"parameters had the checksum {config.init_checksum}: {error}: put that "
            f"model back, or its path into init_from of {workdir}/config.json"
        ) from error
    _check_base(base, own)


def _read_pipeline(folder: Path) -> Any:
    """Return the config of a folder of diffusers."""
    config = diffusers_folder.read_config(folder)
    try:
        check_config(config, READ_SECTIONS)
        build_model(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return config


def is_trained(workdir: Path) -> bool:
    """Return whether parameters are stored there; they may be damaged."""
    if sd_pipeline.is_pipeline(workdir):
        return True
    workdir = model_dir(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    return (workdir / PARAMS).is_file() or bool(checkpoints.steps())


class TrainedModel(NamedTuple):
    """A trained model.

    params: averaged ones (EMA), or the last ones of a run that keeps no average; and as
      params["codec"] those of a codec that has parameters.
    step: number of finished updates, -1 for a shipped model.
    checksum: CRC-32 of the parameters as they are stored, in hexadecimal; with that of
      the base for a model that stores only what was tuned.
    """

    model: DiffusionModel
    params: Params
    config: Any
    step: int
    checksum: str


def load(
    workdir: str | Path,
    mesh: Mesh | None = None,
    size: tuple[int, ...] | None = None,
) -> TrainedModel:
    """Load a run's newest undamaged checkpoint, or a shipped model.

    Every command that needs a trained model calls it. Half-precision parameters are
    cast to the model's own precision here. With a mesh the parameters are sharded as in
    a run on it; without one they are on the first device, or on the host.

    size: as for `read_config`.

    Raises:
      UserError: the workdir holds no trained model, or what it holds is damaged.
    """
    workdir = model_dir(user_path(workdir, "workdir"))
    config = read_config(workdir, size)
    if config.task != "diffusion":
        raise UserError(
            f"{workdir} trains the task {config.task!r}, no diffusion model"
        )
    model = build_model(config)
    step = _newest_step(workdir)
    stored = _stored_checksum(workdir, config, step)
    if mesh is not None:  # all of its processes must read the same
        facts = {"checksum of the parameters": stored}
        agreement.check(facts | config_without_paths(config))
    if sd_pipeline.is_pipeline(workdir):
        text_encoder = diffusers_folder.text_encoder_sha256(workdir)
        config.conditioning.text_encoder_sha256 = text_encoder
    params = _read_params(workdir, config, step, mesh)
    params = {**params, **_codec_params(model, mesh)}
    return TrainedModel(model, params, config, step, stored)


def _newest_step(workdir: Path) -> int:
    """Return the step of a run's newest undamaged checkpoint, -1 for other models."""
    if sd_pipeline.is_pipeline(workdir) or (workdir / PARAMS).is_file():
        return -1
    step = Checkpoints(workdir / "checkpoints", read_only=True).newest_intact()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    return step


def _stored_checksum(workdir: Path, config: Any, step: int) -> str:
    """Return the checksum of a TrainedModel."""
    if sd_pipeline.is_pipeline(workdir):
        own = files.checksum(diffusers_folder.network_files(workdir))
    elif step < 0:
        own = files.checksum([workdir / PARAMS])
    else:
        own = Checkpoints(workdir / "checkpoints", read_only=True).checksum(step)
    if base_of(workdir, config) is None:
        return own
    return f"{zlib.crc32((own + config.init_checksum).encode()):08x}"


def _read_params(workdir: Path, config: Any, step: int, mesh: Mesh | None) -> Params:
    """Return parameters as `load` does, without those of a codec."""
    model = build_model(config)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    shardings = None
    if mesh is not None:
        shardings = sharding.state_shardings(mesh, shapes)
        shapes = sharding.with_shardings(shapes, shardings)
    if step >= 0:
        return _restore_averaged(workdir, step, shapes)
    if sd_pipeline.is_pipeline(workdir):
        params = diffusers_folder.read_params(workdir, config, shapes)
    else:
        others = _base_leaves(workdir, config, mesh)
        params = params_file.read(workdir / PARAMS, shapes, others)
    return params if shardings is None else jax.device_put(params, shardings)


def _base_leaves(workdir: Path, config: Any, mesh: Mesh | None) -> Params:
    """Return the parameters of a model's base by their paths; {} where it has none."""
    if (base := base_of(workdir, config)) is None:
        return {}
    base = model_dir(base)
    own = _read_config(base)
    return named_leaves(_read_params(base, own, _newest_step(base), mesh))


def load_averaged(workdir: Path, shapes: Params) -> tuple[Params, int]:
    """Return the averaged parameters of a run's newest undamaged checkpoint, its step.

    They are the last ones of a run that keeps no average.

    shapes: of the parameters, with their shardings if they have any.

    Raises:
      UserError: there is no checkpoint, or it does not fit.
    """
    step = _newest_step(workdir)
    return _restore_averaged(workdir, step, shapes), step


def _restore_averaged(workdir: Path, step: int, shapes: Params) -> Params:
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    averaged = any(name.startswith("ema/") for name in checkpoints.leaves(step))
    part = "ema" if averaged else "params"
    state, _ = checkpoints.restore(step, {part: shapes})
    return state[part]


def _codec_params(model: DiffusionModel, mesh: Mesh | None) -> dict[str, Params]:
    """Return {"codec": its parameters} of a codec that has parameters, else {}."""
    params = {"codec": own} if (own := model.codec.load_params()) else {}
    if mesh is None:
        return params
    return jax.device_put(params, sharding.state_shardings(mesh, params))
