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
from vdm_jax.sampling import Settings, Text

FILE = "cascade.toml"
MAX_FILE = 1 << 15  # bytes; the time of a name of many parts is quadratic
# What may be said of a stage: all but what is of given frames and pixels.
SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(Settings)
    if not field.name.startswith("reconstruction")
)


class Link(NamedTuple):
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
    links: tuple[Link, ...]
    encoder: str

    def until(self, name: str) -> "Cascade":
        """The same, ending with the stage of that name; "" is all of it.

        Raises:
          UserError: no stage has that name.
        """
        names = [link.name for link in self.links]
        if name and name not in names:
            raise UserError(f"stage {name!r}: {self.path} has {', '.join(names)}")
        end = names.index(name) + 1 if name else len(names)
        return dataclasses.replace(self, links=self.links[:end])

    def changed(self, settings: dict[str, Any]) -> "Cascade":
        """The same with these settings at every stage.

        Raises:
          UserError: a setting out of its range, or that no stage reads.
        """
        links = []
        for link in self.links:
            new = dataclasses.replace(link.settings, **settings)
            sampling.check(link.model, 1, 0, new)
            links.append(link._replace(settings=new))
        for name in settings:
            why = [sampling.unread(name, at.model, at.settings) for at in links]
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
    if (runs.resolve(path) / "config.json").is_file():
        name = re.sub(r"[^\w.-]|^[.-]", "_", path.resolve().name) or "model"
        stages = [{"name": name, "workdir": str(path.resolve())}]
    else:
        path = path / FILE if path.is_dir() else path
        stages = _tables(path)
    links = [_link(path, i, fields) for i, fields in enumerate(stages)]
    try:
        chain([(link.name, link.model) for link in links])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    told = [link.config.conditioning for link in links]
    if not text_encoders.one_encoder(told):
        names = ", ".join(sorted({each.encoder or "none" for each in told}))
        raise UserError(
            f"{path}: stages were trained with text of different encoders, or of "
            f"different weights of one: {names}"
        )
    return Cascade(path, tuple(links), told[0].encoder)


def _tables(path: Path) -> list:
    """What a file says of each stage."""
    try:
        asked = tomllib.loads(files.read_text(path, MAX_FILE))
    except OSError as error:
        raise UserError(
            f"no cascade {path} ({error.strerror}): a TOML file, a folder that holds "
            f"{FILE}, or a model"
        ) from error
    except (files.Damaged, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    _known(path, asked, ("stage",), "")
    stages = asked.get("stage", [])
    if not isinstance(stages, list) or not stages:
        raise UserError(f"{path} names no stage: [[stage]], one after the other")
    return stages


def as_toml(stages: dict[str, dict[str, Any]]) -> str:
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


def differing(link: Link) -> dict[str, Any]:
    """What a cascade's file says of a stage's sampling that its config does not."""
    own, asked = Settings.of(link.config.sample), link.settings
    return {
        name: getattr(asked, name)
        for name in SETTINGS
        if getattr(asked, name) != getattr(own, name)
    }


def _known(path: Path, fields: dict, known: Sequence[str], where: str) -> None:
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UserError(f"{path}: {where}unknown field {field!r}: {hint}")


def _link(path: Path, number: int, fields: Any) -> Link:
    where = f"stage {number + 1}: "
    if not isinstance(fields, dict):
        raise UserError(f"{path}: {where}a table, [[stage]]")
    _known(path, fields, ("name", "workdir", *SETTINGS), where)
    for field in ("name", "workdir"):
        if not isinstance(fields.get(field), str) or not fields[field]:
            raise UserError(f"{path}: {where}it needs a {field}")
    if not re.fullmatch(r"\w[\w.-]*", fields["name"]):  # it names folders
        raise UserError(
            f"{path}: {where}name={fields['name']!r}: letters, digits, '.', '-', '_'"
        )
    workdir = path.parent / user_path(fields["workdir"], f"{path}: {where}workdir")
    config = runs.read_config(workdir)
    settings = Settings.of(config.sample)
    given = {}
    for name in fields.keys() & set(SETTINGS):
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
    sampling.check(model, 1, 0, settings)
    for name in given:
        if without := sampling.unread(name, model, settings):
            raise UserError(f"{path}: {where}{name} {without}")
    return Link(fields["name"], workdir, model, config, settings)


def chain(stages: Sequence[tuple[str, DiffusionModel]]) -> None:
    """Raise UserError unless names differ and each takes what the one before makes.

    stages: name and model, from the base on.
    """
    (name, first), *rest = stages
    if first.stage is not None:
        raise UserError(
            f"its first stage, {name}, is given a video; begin with a base model"
        )
    names = [name for name, _ in stages]
    for (before, made), (name, model) in zip(stages, rest, strict=False):
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}")
        if model.stage is None:
            raise UserError(f"stage {name} is a base model, which is given no video")
        if model.stage.given != made.shape:
            raise UserError(
                f"stage {name} takes videos of {model.stage.given}, and {before} "
                f"before it makes {made.shape}"
            )


def tell(
    cascade: Cascade, prompts: Sequence[str], negative: str = ""
) -> tuple[Text | None, Text | None]:
    """Embeddings of the prompts, and of the negative one for each of them.

    Raises:
      UserError: a prompt that is too long, or any where no stage was told by text; an
        encoder that is not there, or not the one that the stages were trained with.
    """
    if not cascade.encoder:
        if negative or any(prompts):
            raise UserError(f"{cascade.path}: its stages were trained without text")
        return None, None
    encode = text_encoders.load(cascade.encoder)
    width = cascade.links[0].model.text_width
    weights = {each.config.conditioning.encoder_sha256 for each in cascade.links}
    known = max(weights)  # "" of runs that did not write it down
    if encode.width != width or (known and known != encode.sha256()):
        raise UserError(
            f"{cascade.encoder} is not the text encoder that {cascade.path} was "
            "trained with: its width or its weights are others"
        )
    each = sorted({*prompts, negative})  # in one call: of one length
    tokens, mask, _ = encode(each)
    texts = Text(np.asarray(tokens), np.asarray(mask))

    def of(wanted: Sequence[str]) -> Text:
        rows = [each.index(text) for text in wanted]
        return Text(texts.tokens[rows], texts.mask[rows])

    return of(prompts), of([negative] * len(prompts)) if negative else None


def sample(
    cascade: Cascade,
    num: int,
    text: Text | None = None,
    negative: Text | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    given: np.ndarray | None = None,
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
    if negative is not None and not any(
        sampling.two_branches(link.model, link.settings) for link in cascade.links
    ):
        raise UserError(
            f"{cascade.path}: a negative text needs a stage with guidance above 0 and "
            "two branches; here is none"
        )
    videos: dict[str, np.ndarray] = {}
    before = given
    for number, link in enumerate(cascade.links):
        if number == 0 and given is not None:
            videos[link.name] = given
            continue
        loaded = runs.load(link.workdir)
        guided = sampling.two_branches(link.model, link.settings)
        before = videos[link.name] = sampling.sample(
            loaded.model,
            loaded.params,
            num,
            link.settings,
            text=text,
            negative_text=negative if guided else None,
            low=before,
            seed=seed,
            stage=number,
            first=first,
            mesh=mesh,
            progress=lambda done, total, name=link.name: progress(name, done, total),
        )
    return videos


def calls(cascade: Cascade) -> int:
    """Of the networks for one video, over all stages."""
    return sum(sampling.calls(link.model, link.settings) for link in cascade.links)
