"""The stages of a cascade, trained or distilled one after the other.

WORKDIR/text          embeddings of the captions (training)
        STAGE/        a run, or a distillation
        cascade.toml  names the stages for `sample.py --cascade`
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import cascade, data, text
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.data.embeddings import INDEX
from vdm_jax.errors import UserError
from vdm_jax.training.distillation import distill
from vdm_jax.training.train import train

Settings = Callable[[str], Any]  # a stage's name to its config
STUDENTS_KEEP = ("guidance", "snr", "threshold", "percentile")


def train_cascade(
    stages: Sequence[str],
    config_of: Settings,
    workdir: Path,
    time_limit: float | None = None,
) -> None:
    """Train what is not trained yet; the same call goes on where it stood.

    Captions are embedded first where the configs ask for text and name no embeddings.
    Every process of a run calls this together. Raises as `train` does.
    """
    started = time.monotonic()
    for name in stages:
        config, place = config_of(name), workdir / name
        if done(place) >= config.train.steps:
            print(f"{name}: trained", flush=True)
            continue
        if config.conditioning.text_width and not config.data.embeddings:
            with config.unlocked():
                config.data.embeddings = str(workdir / "text")
            on_first_process(lambda config=config: embed(config))
        print(f"{name}: training in {place}", flush=True)
        train(config, place, left(time_limit, started))
    on_first_process(lambda: write_file({name: {} for name in stages}, workdir))


def distill_cascade(
    path: str, config: Any, workdir: Path, time_limit: float | None = None
) -> None:
    """Distil every stage of a cascade in turn, all as the config says.

    The same call goes on where it stood. Every process of a run calls this together.
    Raises as `distill` and `cascade.read` do.
    """
    started = time.monotonic()
    links = cascade.read(path).links
    for link in links:
        place = workdir / link.name
        print(f"{link.name}: distilling in {place}", flush=True)
        teacher = str(link.workdir.absolute())
        distill(config, teacher, place, left(time_limit, started))
    fields = {link.name: kept(link, config.distill.guidance) for link in links}
    on_first_process(lambda: write_file(fields, workdir))


def kept(link: cascade.Link, guidance: Sequence[float]) -> dict[str, float]:
    """What the teachers' file says of sampling that holds for their students too."""
    differing = cascade.differing(link).items()
    found = {name: value for name, value in differing if name in STUDENTS_KEEP}
    if "guidance" in found:
        low, high = guidance or (0.0, 0.0)  # a student not told a weight has none
        found["guidance"] = float(np.clip(found["guidance"], low, high))
    return found


def left(time_limit: float | None, started: float) -> float | None:
    """Seconds of a time limit that remain, never none: a stage leaves by itself."""
    return time_limit and max(time_limit - (time.monotonic() - started), 1e-3)


def done(workdir: Path) -> int:
    """Steps that a run has finished, 0 for one that has not begun."""
    if not (workdir / "checkpoints").is_dir():
        return 0
    return Checkpoints(workdir / "checkpoints", read_only=True).latest() or 0


def embed(config: Any) -> None:
    """The captions that a data source can make, once.

    Raises:
      UserError: the source does not know all of its captions.
    """
    folder = Path(config.data.embeddings)
    if (folder / INDEX).is_file():
        return
    captions = getattr(data.open_source(config), "captions", None)
    if captions is None:
        raise UserError(
            f"config.data.source={config.data.source!r} with text: write embeddings of "
            "its captions first, python -m vdm_jax.text, and set config.data.embeddings"
        )
    print(f"embedding {len(captions):,} captions in {folder}", flush=True)
    text.write(folder, captions, text.load())


def write_file(stages: dict[str, dict[str, float]], workdir: Path) -> None:
    """The file by which `sample.py --cascade` finds the stages; never overwritten."""
    path = workdir / cascade.FILE
    if not path.exists():
        cascade.write(path, stages)
