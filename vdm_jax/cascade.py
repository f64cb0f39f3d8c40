"""A cascade: a base model and the super-resolution stages that follow it.

A stage of Imagen Video (Ho et al. 2022, arXiv:2210.02303, section 2.2) takes the video
of the previous stage and the text. A cascade is a TOML file, or a folder that holds one
as cascade.toml:

    [[stage]]
    name = "base"
    workdir = "base"        # a run or a shipped model, relative to the file
    steps = 64              # overrides config.sample.steps, as any sampling setting
    guidance_scale = 2.0

    [[stage]]
    name = "tsr1"
    workdir = "tsr1"
    augmentation_snr = 5.0

A base model alone, a run or a shipped one, is a cascade of one stage.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdm_jax import build, files, migration, runs, sampling
from vdm_jax import text as text_encoders
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import Conditions, Settings
from vdm_jax.settings import check, settings_of

CASCADE_FILE = "cascade.toml"
MAX_FILE_BYTES = 1 << 15  # parsing a key of many dotted parts takes quadratic time
# Settings that a file may override: all but those of reconstruction guidance, which a
# cascade does not use.
SAMPLING_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Settings)
    if not field.name.startswith("reconstruction")
)


class CascadeStage(NamedTuple):
    """One stage. Its parameters are loaded when it is sampled."""

    name: str
    workdir: Path
    model: DiffusionModel
    config: Any
    settings: Settings

    @property
    def uses_cfg(self) -> bool:
        """Whether each denoising step evaluates a second, unconditional branch."""
        return sampling.uses_cfg(self.model, self.settings)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages in sequence.

    text_encoder: name or folder of the encoder that all stages were trained with, ""
    for a cascade without text.
    """

    path: Path
    stages: tuple[CascadeStage, ...]
    text_encoder: str

    def truncate(self, last_stage: str) -> "Cascade":
        """Return the cascade up to the stage of that name; "" keeps all of it.

        Raises:
          UserError: no stage has that name.
        """
        names = [stage.name for stage in self.stages]
        if last_stage and last_stage not in names:
            raise UserError(f"stage {last_stage!r}: {self.path} has {', '.join(names)}")
        end = names.index(last_stage) + 1 if last_stage else len(names)
        return dataclasses.replace(self, stages=self.stages[:end])

    def with_sampling(self, settings: dict[str, Any]) -> "Cascade":
        """Return the cascade with these settings at every stage.

        Raises:
          UserError: a setting is out of its range, or no stage uses it.
        """
        stages = []
        for stage in self.stages:
            new = dataclasses.replace(stage.settings, **settings)
            sampling.check_settings(stage.model, 1, 0, new)
            stages.append(stage._replace(settings=new))
        for name in settings:
            reasons = [
                sampling.why_unused(name, stage.model, stage.settings)
                for stage in stages
            ]
            if all(reasons):
                raise UserError(f"{self.path}: {name} {reasons[0]}")
        return dataclasses.replace(self, stages=tuple(stages))


# --- reading and writing --------------------------------------------------------------


def read(path: str | Path) -> Cascade:
    """Read a cascade and check its stages against each other; loads no parameters.

    Raises:
      UserError: no such file, not TOML, an unknown field, a workdir that is missing, or
        a stage that does not fit the previous one.
    """
    path = user_path(path, "cascade")
    if (runs.model_dir(path) / "config.json").is_file():
        name = re.sub(r"[^\w.-]|^[.-]", "_", path.resolve().name) or "model"
        tables = [{"name": name, "workdir": str(path.resolve())}]
    else:
        path = path / CASCADE_FILE if path.is_dir() else path
        tables = _read_stage_tables(path)
    stages = [_read_stage(path, i, fields) for i, fields in enumerate(tables)]
    try:
        check_shapes_chain([(stage.name, stage.model) for stage in stages])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    conditioning = [stage.config.conditioning for stage in stages]
    if not text_encoders.same_text_encoder(conditioning):
        names = ", ".join(
            sorted({each.text_encoder or "none" for each in conditioning})
        )
        raise UserError(
            f"{path}: the stages were trained with different text encoders, or with "
            f"different weights of one: {names}"
        )
    return Cascade(path, tuple(stages), conditioning[0].text_encoder)


def _read_stage_tables(path: Path) -> list:
    """Return the [[stage]] tables of a cascade file."""
    try:
        content = tomllib.loads(files.read_text(path, MAX_FILE_BYTES))
    except OSError as error:
        raise UserError(
            f"no cascade {path} ({error.strerror}): a TOML file, a folder that holds "
            f"{CASCADE_FILE}, or a model"
        ) from error
    except (files.CorruptFile, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    _check_fields(path, content, ("stage",), "")
    tables = content.get("stage", [])
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{path} names no stage: one [[stage]] table for each")
    return tables


def _check_fields(path: Path, fields: dict, known: Sequence[str], where: str) -> None:
    """Raise UserError for the first unknown field, with the nearest known one."""
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{path}: {where}unknown field {field!r}: {hint}")


def _read_stage(path: Path, index: int, fields: Any) -> CascadeStage:
    """Build one stage from its table. path: of the cascade file."""
    where = f"stage {index + 1}: "
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {where}a table, [[stage]]")
    fields = migration.rename_fields("sample", fields)
    _check_fields(path, fields, ("name", "workdir", *SAMPLING_FIELDS), where)
    for field in ("name", "workdir"):
        if not isinstance(fields.get(field), str) or not fields[field]:
            raise UserError(f"{path}: {where}it needs a {field}")
    if not re.fullmatch(r"\w[\w.-]*", fields["name"]):  # folders are named after it
        raise UserError(
            f"{path}: {where}name={fields['name']!r}: letters, digits, '.', '-', '_'"
        )
    workdir = path.parent / user_path(fields["workdir"], f"{path}: {where}workdir")
    config = runs.read_config(workdir)
    if not runs.is_trained(workdir):
        raise UserError(f"{path}: {where}{workdir} holds no checkpoint yet: train it")
    model = build.build_model(config)
    defaults = Settings.from_config(config.sample)
    overrides = {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
    check(settings_of(Settings), overrides, f"{path}: {where}")
    settings = dataclasses.replace(defaults, **overrides)
    sampling.check_settings(model, 1, 0, settings)
    for name in overrides:
        if reason := sampling.why_unused(name, model, settings):
            raise UserError(f"{path}: {where}{name} {reason}")
    return CascadeStage(fields["name"], workdir, model, config, settings)


def check_shapes_chain(stages: Sequence[tuple[str, DiffusionModel]]) -> None:
    """Check that each stage's input has the shape of the previous stage's output.

    stages: name and model, from the base on.

    Raises:
      UserError: shapes do not fit, two stages have one name, or the first is no base.
    """
    (name, first), *rest = stages
    if first.low_resolution is not None:
        raise UserError(
            f"its first stage, {name}, needs a video as input; begin with a base model"
        )
    names = [name for name, _ in stages]
    for (previous_name, previous), (name, model) in zip(stages, rest, strict=False):
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}")
        if model.low_resolution is None:
            raise UserError(f"stage {name} is a base model, which takes no video")
        if model.low_resolution.input_shape != previous.video_shape:
            raise UserError(
                f"stage {name} takes videos of {model.low_resolution.input_shape}, and "
                f"{previous_name} before it makes {previous.video_shape}"
            )


def to_toml(stages: dict[str, dict[str, Any]]) -> str:
    """Return the text of a cascade file whose stages are in the folders of their names.

    stages: the sampling overrides of each stage, by its name.
    """
    tables = []
    for name, overrides in stages.items():
        table = ["[[stage]]"]
        for field, value in ({"name": name, "workdir": name} | overrides).items():
            # TOML's literals are those of JSON, except infinity.
            literal = str(value) if isinstance(value, float) else json.dumps(value)
            table.append(f"{field} = {literal}")
        tables.append("\n".join(table) + "\n")
    return "\n".join(tables)


def sampling_overrides(stage: CascadeStage) -> dict[str, Any]:
    """Return the settings of a stage that differ from those of its config."""
    defaults, settings = Settings.from_config(stage.config.sample), stage.settings
    return {
        name: getattr(settings, name)
        for name in SAMPLING_FIELDS
        if getattr(settings, name) != getattr(defaults, name)
    }


# --- sampling -------------------------------------------------------------------------


def encode_prompts(
    cascade: Cascade, prompts: Sequence[str], negative_prompt: str = ""
) -> tuple[Conditions, Conditions | None]:
    """Embed the prompts, and the negative prompt once for each of them.

    Returns arrays text and text_mask, none for a cascade without text; the second value
    is None without a negative prompt.

    Raises:
      UserError: a prompt is too long, or the cascade takes no text; the text encoder is
        missing, or not the one that the stages were trained with.
    """
    if not cascade.text_encoder:
        if negative_prompt or any(prompts):
            raise UserError(f"{cascade.path}: its stages were trained without text")
        return {}, None
    encoder = text_encoders.load_encoder(cascade.text_encoder)
    dim = cascade.stages[0].model.text_dim
    hashes = {stage.config.conditioning.text_encoder_sha256 for stage in cascade.stages}
    sha256 = max(hashes)  # "" for runs that did not record it
    if encoder.dim != dim or (sha256 and sha256 != encoder.sha256()):
        raise UserError(
            f"{cascade.text_encoder} is not the text encoder that {cascade.path} was "
            "trained with: its width or its weights differ"
        )
    texts = sorted({*prompts, negative_prompt})  # one call pads all to one length
    tokens, mask, _ = encoder(texts)

    def take(selected: Sequence[str]) -> Conditions:
        rows = [texts.index(text) for text in selected]
        return {"text": np.asarray(tokens)[rows], "text_mask": np.asarray(mask)[rows]}

    negative = take([negative_prompt] * len(prompts)) if negative_prompt else None
    return take(prompts), negative


def sample(
    cascade: Cascade,
    num: int,
    cond: Conditions | None = None,
    negative: Conditions | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    base_videos: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, np.ndarray]:
    """Sample every stage: videos [num, f, h, w, c] in [-1, 1], by the stage's name.

    Args:
      cond: arrays of the stages' conditions, as `encode_prompts` returns them.
      negative: the same for the unconditional branch of stages that use
        classifier-free guidance.
      seed, first_index: the seed and a video's index, counted from first_index, decide
        all of its noise.
      base_videos: used in place of the first stage's samples.
      progress: called as progress(stage, done, total) with steps of batches.

    Raises:
      UserError: a negative text, and no stage uses classifier-free guidance.
    """
    if negative is not None and not any(s.uses_cfg for s in cascade.stages):
        raise UserError(
            f"{cascade.path}: a negative text needs a stage with classifier-free "
            "guidance (guidance_scale above 1); there is none"
        )
    videos: dict[str, np.ndarray] = {}
    previous = base_videos
    for index, stage in enumerate(cascade.stages):
        if index == 0 and base_videos is not None:
            videos[stage.name] = base_videos
            continue
        trained = runs.load(stage.workdir)
        given = {} if previous is None else {"low_resolution": previous}
        previous = videos[stage.name] = sampling.sample(
            trained.model,
            trained.params,
            num,
            stage.settings,
            cond={**(cond or {}), **given},
            negative=negative if stage.uses_cfg else None,
            seed=seed,
            stage_index=index,
            first_index=first_index,
            mesh=mesh,
            progress=lambda done, total, name=stage.name: progress(name, done, total),
        )
    return videos


def nfe(cascade: Cascade) -> int:
    """Return the number of function evaluations per video, of all stages together."""
    return sum(sampling.nfe(stage.model, stage.settings) for stage in cascade.stages)
