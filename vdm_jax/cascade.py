"""A cascade: a base model and the super-resolution stages that follow it.

A stage of Imagen Video (Ho et al. 2022, arXiv:2210.02303, section 2.2) takes the video
of the previous stage and the text. `cascade_file.py` reads the file that names the
stages. A base model alone, a run or a shipped one, is a cascade of one stage.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax import build, cascade_file, diffusers_folder, migration, runs, sampling
from vdm_jax import text as text_encoders
from vdm_jax.adapters import Loras
from vdm_jax.cascade_file import CASCADE_FILE
from vdm_jax.controls import Controls, with_controls
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.model import DiffusionModel, check_shapes_chain
from vdm_jax.pretrained import sd_pipeline
from vdm_jax.runs import TrainedModel
from vdm_jax.sampling import Conditions, SamplingInputs, Settings
from vdm_jax.settings import check, settings_of

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

    def with_settings(self, **settings: Any) -> "CascadeStage":
        """Return the stage with these settings; UserError if one is out of range."""
        new = dataclasses.replace(self.settings, **settings)
        sampling.check_settings(self.model, 1, 0, new)
        return self._replace(settings=new)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Stages in sequence.

    text_encoder: name or folder of the encoder that all stages were trained with, ""
    for a cascade without text. loras: applied to the first stage and to that encoder.
    controls: of the first stage, whose model has them. size: of its videos, as
    for `build.at_size`, where it is not that of training.
    """

    path: Path
    stages: tuple[CascadeStage, ...]
    text_encoder: str
    loras: Loras = Loras()
    controls: Controls = Controls()
    size: tuple[int, ...] | None = None

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

    def with_controls(self, controls: Controls) -> "Cascade":
        """Return the cascade whose first stage has these ControlNets.

        Raises:
          UserError: its model has one already.
        """
        first, *rest = self.stages
        first = first._replace(model=with_controls(first.model, controls.networks))
        return dataclasses.replace(self, stages=(first, *rest), controls=controls)

    def load_first(self) -> TrainedModel:
        """Load the first stage's model, with its LoRAs and ControlNets."""
        trained = runs.load(self.stages[0].workdir, size=self.size)
        return self.controls.apply(self.loras.apply(trained))

    def with_sampling(self, settings: dict[str, Any]) -> "Cascade":
        """Return the cascade with these settings at every stage.

        Raises:
          UserError: a setting is out of its range, or no stage uses it.
        """
        stages = tuple(stage.with_settings(**settings) for stage in self.stages)
        for name in settings:
            reasons = [sampling.why_unused(name, s.model, s.settings) for s in stages]
            if all(reasons):
                raise UserError(f"{self.path}: {name} {reasons[0]}")
        return dataclasses.replace(self, stages=stages)

    def without_guidance(self) -> "Cascade":
        """Return the cascade without classifier-free guidance at any stage."""
        off = {"guidance_scale": 1.0, "guidance_schedule": "constant"}
        stages = (s.with_settings(**off) if s.uses_cfg else s for s in self.stages)
        return dataclasses.replace(self, stages=tuple(stages))


# --- reading --------------------------------------------------------------


def read(path: str | Path) -> Cascade:
    """Read a cascade and check its stages against each other; loads no parameters.

    path: a cascade file, its folder, or a base model.

    Raises:
      UserError: no such file, not TOML, an unknown field, a workdir that is missing, or
        a stage that does not fit the previous one.
    """
    path = user_path(path, "cascade")
    if (runs.model_dir(path) / "config.json").is_file():
        return read_model(path)
    path = path / CASCADE_FILE if path.is_dir() else path
    tables = cascade_file.read_tables(path)
    return _join(path, [_read_stage(path, i, table) for i, table in enumerate(tables)])


def read_model(workdir: str | Path, size: tuple[int, ...] | None = None) -> Cascade:
    """Read a base model, a run or a shipped one, as a cascade of one stage.

    Raises:
      UserError: no such model, or one that needs a video as input, or not for the size.
    """
    workdir = user_path(workdir, "workdir")
    name = re.sub(r"[^\w.-]|^[.-]", "_", workdir.resolve().name) or "model"
    config = runs.read_config(workdir, size)
    stage = as_stage(build.build_model(config), config, name, workdir)
    return dataclasses.replace(_join(workdir, [stage]), size=size)


def as_stage(
    model: DiffusionModel, config: Any, name: str = "model", workdir: Path = Path()
) -> CascadeStage:
    """Return a model as a stage, with the settings of its config."""
    settings = Settings.from_config(config.sample)
    return CascadeStage(name, workdir, model, config, settings)


def _join(path: Path, stages: Sequence[CascadeStage]) -> Cascade:
    """Return the stages as a cascade; UserError if they do not fit each other."""
    try:
        check_shapes_chain([(stage.name, stage.model) for stage in stages])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    conditioning = [stage.config.conditioning for stage in stages]
    if not text_encoders.same_text_encoder(conditioning):
        names = {each.text_encoder or "none" for each in conditioning}
        raise UserError(
            f"{path}: the stages were trained with different text encoders, or with "
            f"different weights or layers of one: {', '.join(sorted(names))}"
        )
    if len({stage.model.label_vocabulary for stage in stages} - {()}) > 1:
        raise UserError(f"{path}: the stages were trained with different labels")
    return Cascade(path, tuple(stages), conditioning[0].text_encoder)


def _read_stage(path: Path, index: int, fields: Any) -> CascadeStage:
    """Build one stage from its table. path: of the cascade file."""
    where = f"stage {index + 1}: "
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {where}a table, [[stage]]")
    fields = migration.rename_fields("sample", fields)
    cascade_file.check_fields(
        path, fields, ("name", "workdir", *SAMPLING_FIELDS), where
    )
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
    stage = as_stage(build.build_model(config), config, fields["name"], workdir)
    overrides = {name: fields[name] for name in SAMPLING_FIELDS if name in fields}
    check(settings_of(Settings), overrides, f"{path}: {where}")
    stage = stage.with_settings(**overrides)
    for name in overrides:
        if reason := sampling.why_unused(name, stage.model, stage.settings):
            raise UserError(f"{path}: {where}{name} {reason}")
    return stage


def sampling_overrides(stage: CascadeStage) -> dict[str, Any]:
    """Return the settings of a stage that differ from those of its config."""
    defaults, settings = Settings.from_config(stage.config.sample), stage.settings
    own = {name: getattr(settings, name) for name in SAMPLING_FIELDS}
    return {name: v for name, v in own.items() if v != getattr(defaults, name)}


# --- sampling -------------------------------------------------------------------------


def encode_conditions(
    cascade: Cascade,
    num: int,
    *,
    label: str = "",
    negative_label: str = "",
    prompts: Sequence[str] = (),
    negative_prompt: str = "",
    seed: int = 0,
) -> tuple[Conditions, Conditions | None]:
    """Return the conditions of `num` videos, and those of the unconditional branch.

    Args:
      label, negative_label: as `sampling.label_array` takes them; "" draws labels for
        the videos, and sets none in the other branch.
      prompts: one per video, or none, which drops the text.
      negative_prompt: "" for none.
      seed: decides the labels that are drawn.

    Returns:
      Arrays label, text, text_mask, null_text and null_text_mask, those that the
      stages read. The second value is None without a negative label and a negative
      prompt.

    Raises:
      UserError: as `sampling.label_array` and `encode_prompts`.
    """
    model = cascade.stages[0].model
    cond = {}
    negative = {}
    labels = sampling.label_array(model, num, label, seed)
    if labels is not None:
        cond["label"] = labels
    if negative_label:
        negative["label"] = sampling.label_array(
            model, num, negative_label, flag="negative_label"
        )
    if prompts or negative_prompt or "null_text" in model.batch_arrays:
        text, negative_text = encode_prompts(cascade, prompts, negative_prompt)
        cond |= text
        negative |= negative_text
    return cond, negative or None


def encode_prompts(
    cascade: Cascade, prompts: Sequence[str], negative_prompt: str = ""
) -> tuple[Conditions, Conditions]:
    """Embed the prompts, and the negative prompt for all of them.

    Returns arrays text and text_mask of both. There are none for a cascade without
    text, nor in the second dict without a negative prompt. The first has the tokens of
    "" too, as null_text and null_text_mask, where a dropped text is the empty one.

    Raises:
      UserError: a prompt is too long, or the cascade takes no text; the text encoder is
        missing, or not the one that the stages were trained with.
    """
    if not cascade.text_encoder:
        if negative_prompt or any(prompts):
            raise UserError(f"{cascade.path} was trained without text")
        return {}, {}
    for stage in cascade.stages:
        if sd_pipeline.is_pipeline(stage.workdir):
            diffusers_folder.announce(stage.workdir)
    clip_skip = cascade.stages[0].config.conditioning.clip_skip
    encoder = text_encoders.load_encoder(cascade.text_encoder, clip_skip=clip_skip)
    model = cascade.stages[0].model
    hashes = {stage.config.conditioning.text_encoder_sha256 for stage in cascade.stages}
    sha256 = max(hashes)  # "" for runs that did not record it
    if encoder.dim != model.text_dim or (sha256 and sha256 != encoder.sha256()):
        raise UserError(
            f"{cascade.text_encoder} is not the text encoder that {cascade.path} was "
            "trained with: its width or its weights differ"
        )
    encoder = cascade.loras.apply_to_text_encoder(encoder)
    null_names = model.condition("text").required
    # One call pads all to one length.
    wanted = {*prompts, negative_prompt} | ({""} if null_names else set())
    texts = sorted(wanted)
    tokens, mask, _ = map(np.asarray, encoder(texts))

    def take(selected: Sequence[str]) -> Conditions:
        rows = [texts.index(text) for text in selected]
        return {"text": tokens[rows], "text_mask": mask[rows]} if rows else {}

    negative = take([negative_prompt] if negative_prompt else [])
    if null_names:
        null = dict(zip(null_names, take([""]).values(), strict=True))
        # Both branches have arrays of one shape: without a prompt the text is "".
        own = take(prompts or ([""] if negative else []))
        return {**own, **null}, negative
    # Without a prompt no token, as if dropped, of the negative's shape.
    none = {name: np.zeros_like(array) for name, array in negative.items()}
    return take(prompts) or none, negative


def sample(
    cascade: Cascade,
    num: int,
    cond: Conditions | None = None,
    negative: Conditions | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    base_videos: np.ndarray | None = None,
    sample_base: Callable[..., np.ndarray] | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    on_stage: Callable[[CascadeStage, TrainedModel, np.ndarray], None] | None = None,
) -> dict[str, np.ndarray]:
    """Sample every stage: videos [num, f, h, w, c] in [-1, 1], by the stage's name.

    Args:
      cond: arrays of conditions, as `encode_conditions` returns them.
      negative: the same for the unconditional branch of stages with guidance.
      seed, first_index: the seed and a video's index, counted from first_index, decide
        all of its noise.
      base_videos: used in place of the first stage's samples.
      sample_base: samples the first stage; called as `sampling.sample`, the default.
      progress: called as progress(stage, done, total) with the name of the stage that
        is sampled, and steps of its batches.
      on_stage: called as on_stage(stage, trained, videos) when a stage was sampled.

    Raises:
      UserError: a negative label or text, and no stage uses classifier-free guidance.
    """
    if negative is not None:
        check_guided(cascade)
    videos: dict[str, np.ndarray] = {}
    previous = base_videos
    for index, stage in enumerate(cascade.stages):
        if index == 0 and base_videos is not None:
            videos[stage.name] = base_videos
            continue
        trained = cascade.load_first() if index == 0 else runs.load(stage.workdir)
        inputs = _stage_inputs(stage, cond or {}, negative or {}, previous)
        if index == 0:
            inputs = cascade.controls.add(inputs)
        method = sample_base if sample_base and not index else sampling.sample
        report = functools.partial(progress, stage.name)
        previous = videos[stage.name] = method(
            trained.model, trained.params, num, stage.settings, inputs,
            sampling.Run(seed, index, first_video=first_index, progress=report),
        )  # fmt: skip
        if on_stage:
            on_stage(stage, trained, previous)
    return videos


def check_guided(cascade: Cascade) -> None:
    """Raise UserError if no stage uses guidance, which a negative text needs."""
    if not any(stage.uses_cfg for stage in cascade.stages):
        raise UserError(
            f"{cascade.path}: a negative label or text needs a guidance_scale above 1, "
            "and a stage that is no guided student, which has one branch only"
        )


def _stage_inputs(
    stage: CascadeStage, cond: Conditions, negative: Conditions, previous
) -> SamplingInputs:
    """Return the conditions of a stage. previous: videos of the stage before, or None.

    The first stage takes all conditions, so that an unknown one is refused.
    """
    own = [cond, negative if stage.uses_cfg else {}]
    if previous is not None:
        read = stage.model.batch_arrays
        own = [{name: each[name] for name in each.keys() & read} for each in own]
        own[0]["low_resolution"] = previous
    return SamplingInputs(own[0], own[1] or None)


def nfe(cascade: Cascade) -> int:
    """Return the number of function evaluations per video, of all stages together."""
    return sum(sampling.nfe(stage.model, stage.settings) for stage in cascade.stages)
