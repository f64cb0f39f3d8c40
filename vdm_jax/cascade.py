"""Stages in a row: prompts in, videos out, each stage given what the one before made.

A cascade is a small TOML file, or a folder that holds one as cascade.toml:

    [[stage]]
    name = "base"
    workdir = "base"        # a run or a shipped model, seen from the file
    steps = 64              # and what else of how to sample differs from its config
    guidance = 1.0

    [[stage]]
    name = "tsr1"
    workdir = "tsr1"
    snr = 5.0

A base model by itself, a run or a shipped one, is a cascade of one stage.

After Imagen Video (Ho et al. 2022, arXiv:2210.02303, section 2.2).
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

from vdm_jax import build, files, runs, sampling
from vdm_jax import text as text_encoders
from vdm_jax.errors import UserError
from vdm_jax.files import user_path
from vdm_jax.model import DiffusionModel
from vdm_jax.sampling import Settings, TextEmbeddings

CASCADE_FILE = "cascade.toml"
MAX_FILE_BYTES = 1 << 15  # bytes; the time of a name of many parts is quadratic
# What may be said of a stage: all but what is of given frames and pixels.
SAMPLING_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Settings)
    if not field.name.startswith("reconstruction")
)


class CascadeStage(NamedTuple):
    """One stage of a cascade. Its parameters are loaded when it is its turn."""

    name: str
    workdir: Path
    model: DiffusionModel
    config: Any
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Cascade:
    """encoder: that of the text that every stage was trained with, "" for none."""

    path: Path
    stages: tuple[CascadeStage, ...]
    text_encoder: str

    def truncate(self, name: str) -> "Cascade":
        """The same, ending with the stage of that name; "" is all of it.

        Raises:
          UserError: no stage has that name.
        """
        names = [link.name for link in self.stages]
        if name and name not in names:
            raise UserError(f"stage {name!r}: {self.path} has {', '.join(names)}")
        end = names.index(name) + 1 if name else len(names)
        return dataclasses.replace(self, links=self.stages[:end])

    def with_sampling(self, settings: dict[str, Any]) -> "Cascade":
        """The same with these settings at every stage.

        Raises:
          UserError: a setting out of its range, or that no stage reads.
        """
        links = []
        for link in self.stages:
            new = dataclasses.replace(link.settings, **settings)
            sampling.check_settings(link.model, 1, 0, new)
            links.append(link._replace(settings=new))
        for name in settings:
            why = [sampling.why_unused(name, at.model, at.settings) for at in links]
            if all(why):
                raise UserError(f"{self.path}: {name} {why[0]}")
        return dataclasses.replace(self, links=tuple(links))


def read(path: str | Path) -> Cascade:
    """A cascade, its stages checked against each other; nothing is loaded yet.

    Raises:
      UserError: no such file, not TOML, an unknown field, a workdir that is missing or
        that does not take what the stage before makes.
    """
    path = user_path(path, "cascade")
    if (runs.model_dir(path) / "config.json").is_file():
        name = re.sub(r"[^\w.-]|^[.-]", "_", path.resolve().name) or "model"
        stages = [{"name": name, "workdir": str(path.resolve())}]
    else:
        path = path / CASCADE_FILE if path.is_dir() else path
        stages = _read_stage_tables(path)
    links = [_read_stage(path, i, fields) for i, fields in enumerate(stages)]
    try:
        check_shapes_chain([(link.name, link.model) for link in links])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    told = [link.config.conditioning for link in links]
    if not text_encoders.same_text_encoder(told):
        names = ", ".join(sorted({each.text_encoder or "none" for each in told}))
        raise UserError(
            f"{path}: stages were trained with text of different encoders, or of "
            f"different weights of one: {names}"
        )
    return Cascade(path, tuple(links), told[0].text_encoder)


def _read_stage_tables(path: Path) -> list:
    """What a file says of each stage."""
    try:
        asked = tomllib.loads(files.read_text(path, MAX_FILE_BYTES))
    except OSError as error:
        raise UserError(
            f"no cascade {path} ({error.strerror}): a TOML file, a folder that holds "
            f"{CASCADE_FILE}, or a model"
        ) from error
    except (files.CorruptFile, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    _check_fields(path, asked, ("stage",), "")
    stages = asked.get("stage", [])
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{path} names no stage: [[stage]], one after the other")
    return stages


def to_toml(stages: dict[str, dict[str, Any]]) -> str:
    """The file of stages that stand beside it, each in the folder of its name.

    stages: by its name, what of sampling differs from the stage's own config.
    """
    tables = []
    for name, fields in stages.items():
        table = ["[[stage]]"]
        for field, value in ({"name": name, "workdir": name} | fields).items():
            # JSON's words are TOML's but for infinity.
            word = str(value) if isinstance(value, float) else json.dumps(value)
            table.append(f"{field} = {word}")
        tables.append("\n".join(table) + "\n")
    return "\n".join(tables)


def sampling_overrides(link: CascadeStage) -> dict[str, Any]:
    """What a cascade's file says of a stage's sampling that its config does not."""
    own, asked = Settings.from_config(link.config.sample), link.settings
    return {
        name: getattr(asked, name)
        for name in SAMPLING_FIELDS
        if getattr(asked, name) != getattr(own, name)
    }


def _check_fields(path: Path, fields: dict, known: Sequence[str], where: str) -> None:
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{path}: {where}unknown field {field!r}: {hint}")


def _read_stage(path: Path, number: int, fields: Any) -> CascadeStage:
    where = f"stage {number + 1}: "
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {where}a table, [[stage]]")
    _check_fields(path, fields, ("name", "workdir", *SAMPLING_FIELDS), where)
    for field in ("name", "workdir"):
        if not isinstance(fields.get(field), str) or not fields[field]:
            raise UserError(f"{path}: {where}it needs a {field}")
    if not re.fullmatch(r"\w[\w.-]*", fields["name"]):  # it names folders
        raise UserError(
            f"{path}: {where}name={fields['name']!r}: letters, digits, '.', '-', '_'"
        )
    workdir = path.parent / user_path(fields["workdir"], f"{path}: {where}workdir")
    config = runs.read_config(workdir)
    settings = Settings.from_config(config.sample)
    given = {}
    for name in fields.keys() & set(SAMPLING_FIELDS):
        kind = type(getattr(settings, name))
        value = fields[name]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(
                f"{path}: {where}{name}={value!r}: {kind.__name__} expected"
            )
        given[name] = value
    if not runs.is_trained(workdir):
        raise UserError(f"{path}: {where}{workdir} holds no checkpoint yet: train it")
    model = build.build_model(config)
    settings = dataclasses.replace(settings, **given)
    sampling.check_settings(model, 1, 0, settings)
    for name in given:
        if without := sampling.why_unused(name, model, settings):
            raise UserError(f"{path}: {where}{name} {without}")
    return CascadeStage(fields["name"], workdir, model, config, settings)


def check_shapes_chain(stages: Sequence[tuple[str, DiffusionModel]]) -> None:
    """Raise UserError unless names differ and each takes what the one before makes.

    stages: name and model, from the base on.
    """
    (name, first), *rest = stages
    if first.low_resolution is not None:
        raise UserError(
            f"its first stage, {name}, is given a video; begin with a base model"
        )
    names = [name for name, _ in stages]
    for (before, made), (name, model) in zip(stages, rest, strict=False):
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}")
        if model.low_resolution is None:
            raise UserError(f"stage {name} is a base model, which is given no video")
        if model.low_resolution.input_shape != made.shape:
            raise UserError(
                f"stage {name} takes videos of {model.low_resolution.input_shape}, and {before} "
                f"before it makes {made.shape}"
            )


def encode_prompts(
    cascade: Cascade, prompts: Sequence[str], negative_prompt: str = ""
) -> tuple[TextEmbeddings | None, TextEmbeddings | None]:
    """Embeddings of the prompts, and of the negative one for each of them.

    Raises:
      UserError: a prompt that is too long, or any where no stage was told by text; an
        encoder that is not there, or not the one that the stages were trained with.
    """
    if not cascade.text_encoder:
        if negative_prompt or any(prompts):
            raise UserError(f"{cascade.path}: its stages were trained without text")
        return None, None
    encode = text_encoders.load(cascade.text_encoder)
    width = cascade.stages[0].model.text_dim
    weights = {each.config.conditioning.text_encoder_sha256 for each in cascade.stages}
    known = max(weights)  # "" of runs that did not write it down
    if encode.width != width or (known and known != encode.sha256()):
        raise UserError(
            f"{cascade.text_encoder} is not the text encoder that {cascade.path} was "
            "trained with: its width or its weights are others"
        )
    each = sorted({*prompts, negative_prompt})  # in one call: of one length
    tokens, mask, _ = encode(each)
    texts = TextEmbeddings(np.asarray(tokens), np.asarray(mask))

    def of(wanted: Sequence[str]) -> TextEmbeddings:
        rows = [each.index(text) for text in wanted]
        return TextEmbeddings(texts.tokens[rows], texts.mask[rows])

    return of(prompts), of(
        [negative_prompt] * len(prompts)
    ) if negative_prompt else None


def sample(
    cascade: Cascade,
    num: int,
    text: TextEmbeddings | None = None,
    negative_text: TextEmbeddings | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    base_videos: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, np.ndarray]:
    """Videos [num, f, h, w, c] in [-1, 1] of every stage, by its name.

    text: a prompt a video; negative: what unguided ones are told, where a stage is
    guided. seed and a video's number, from `first` on, decide all of its noise.
    given: videos to start from instead of the first stage's.
    progress: called as progress(stage, done, total) with steps of batches.

    Raises:
      UserError: a negative text where nothing is guided by two branches.
    """
    if negative_text is not None and not any(
        sampling.uses_cfg(link.model, link.settings) for link in cascade.stages
    ):
        raise UserError(
            f"{cascade.path}: a negative text needs a stage with guidance above 0 and "
            "two branches; here is none"
        )
    videos: dict[str, np.ndarray] = {}
    before = base_videos
    for number, link in enumerate(cascade.stages):
        if number == 0 and base_videos is not None:
            videos[link.name] = base_videos
            continue
        loaded = runs.load(link.workdir)
        guided = sampling.uses_cfg(link.model, link.settings)
        before = videos[link.name] = sampling.sample(
            loaded.model,
            loaded.params,
            num,
            link.settings,
            text=text,
            negative_text=negative_text if guided else None,
            low_res=before,
            seed=seed,
            stage_index=number,
            first_index=first_index,
            mesh=mesh,
            progress=lambda done, total, name=link.name: progress(name, done, total),
        )
    return videos


def nfe(cascade: Cascade) -> int:
    """Of the networks for one video, over all stages."""
    return sum(sampling.nfe(link.model, link.settings) for link in cascade.stages)
