"""Write a trained model as the folder of a shipped model: parameters and config.

A model that was tuned from another one, its base, stores what trained and what is new.
`runs.load` reads the rest from the base, whose path and checksum are in the config.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import runs, sharding
from vdm_jax.errors import UserError
from vdm_jax.files import write_bytes
from vdm_jax.pretrained import params
from vdm_jax.runs import PARAMS
from vdm_jax.trees import named_leaves


def write(out: Path, workdir: Path, trained: Any, dtype: str = "float16") -> str:
    """Write a model; return a line that says what was written.

    Args:
      workdir: that the model was loaded from.
      trained: a TrainedModel, or a model of another task with the fields params, config
        and step. Its config is changed.
      dtype: of the parameters in the file.

    Raises:
      UserError: a value is not finite in that dtype; or the base is missing, has
        changed, or would be overwritten. Nothing is written then.
    """
    config = trained.config
    own = {part: leaves for part, leaves in trained.params.items() if part != "codec"}
    own, checksum = _without_base(named_leaves(own), workdir, config, out)
    file = out / PARAMS
    params.write(file, own, dtype)
    with config.unlocked():  # paths of the machine that trained it
        config.data.update(text_embeddings_dir="", latents_dir="")
        if config.codec.path:
            config.codec.path = _portable(config.codec.path, out)
        base = config.init_from if checksum else ""
        config.init_from = _portable(base, out) if base else ""
        config.init_checksum = checksum
        encoder = config.conditioning.text_encoder
        if base and encoder and _is_inside(Path(encoder), Path(base)):
            config.conditioning.text_encoder = _portable(encoder, out)
    text = config.to_json_best_effort(indent=1) + "\n"
    write_bytes(out / "config.json", text.encode(), overwrite=True)
    step = f"step {trained.step}" if trained.step >= 0 else "exported before"
    rest = f", next to those of {base}" if base else ""
    return f"{step}, {file.stat().st_size / 1e6:.2f} MB in {file}{rest}"


def _without_base(
    own: dict[str, Any], workdir: Path, config: Any, out: Path
) -> tuple[dict[str, Any], str]:
    """Return the parameters without frozen ones of the base, and its checksum.

    All of them and "" where there is no base, or nothing of it is frozen.
    """
    trainable = config.get("train", {}).get("trainable", ())
    is_tuned = config.task == "diffusion" and config.init_from
    if not is_tuned or all(trains for _, trains in trainable):
        return own, ""
    base = _load_base(workdir, config)
    theirs = named_leaves(base.params)
    table = sharding.match_rules(own, trainable, "train.trainable")
    frozen = {
        name: leaf
        for name, leaf in own.items()
        if not table[name] and name in theirs and leaf.shape == theirs[name].shape
    }
    for name, leaf in frozen.items():
        if not np.array_equal(leaf, theirs[name]):
            raise _no_base(workdir, config, f"its {name} is another now")
    if not frozen:
        return own, ""
    place: Path | None = Path(config.init_from)
    while place is not None:
        if place.resolve() == out.resolve():
            raise UserError(
                f"--out={out} is the model that {workdir} was tuned from: give a "
                "folder of its own"
            )
        place = runs.base_of(place, runs.read_config(place))
    return {n: leaf for n, leaf in own.items() if n not in frozen}, base.checksum


def _load_base(workdir: Path, config: Any) -> runs.TrainedModel:
    try:
        return runs.load(config.init_from)
    except UserError as error:
        raise _no_base(workdir, config, str(error)) from error


def _no_base(workdir: Path, config: Any, reason: str) -> UserError:
    return UserError(
        f"{workdir} was tuned from the model {config.init_from}, without which it is "
        f"not exported: {reason}: put that model back; or set init_from to '' in "
        f"{workdir}/config.json, to export all parameters"
    )


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is that of a folder inside of another one."""
    return path.is_dir() and path.resolve().is_relative_to(folder.resolve())


def _portable(path: str, folder: Path) -> str:
    """Return a path relative to a folder; absolute where only / is above both."""
    path, start = os.path.abspath(path), os.path.abspath(folder)
    alone = os.path.commonpath([path, start]) == os.sep
    return path if alone else os.path.relpath(path, start)
