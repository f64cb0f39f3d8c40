"""The stages of a cascade, trained or distilled one after the other.

WORKDIR/text          embeddings of the captions (training)
        STAGE/        a run, or a distillation
        cascade.toml  names the stages for `sample.py --cascade`
"""

import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import cascade, data, text
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.data.embeddings import INDEX
from vdm_jax.errors import UserError
from vdm_jax.training import rounds
from vdm_jax.training.distillation import distill
from vdm_jax.training.stop import EXIT_STATUS, RESTART
from vdm_jax.training.train import train

Settings = Callable[[str], Any]  # a stage's name to its config
STUDENTS_KEEP = (
    "guidance", "snr", "threshold", "percentile", "tiled", "batch_size",
)  # fmt: skip


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
        seconds = left(time_limit, started)
        train(config, place, seconds, more=name != stages[-1])
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
    for link in links:  # all of them before the first takes its hours
        rounds.check(config.distill, link.config, link.model)
    for link in links:
        place = workdir / link.name
        print(f"{link.name}: distilling in {place}", flush=True)
        teacher, seconds = str(link.workdir.absolute()), left(time_limit, started)
        distill(config, teacher, place, seconds, more=link is not links[-1])
    fields = {link.name: kept(link, config.distill.guidance) for link in links}
    on_first_process(lambda: write_file(fields, workdir))


def kept(link: cascade.Link, guidance: Sequence[float]) -> dict[str, float]:
    """What the teachers' file says of sampling that holds for their students too."""
    differing = cascade.differing(link).items()
    found = {name: value for name, value in differing if name in STUDENTS_KEEP}
    if "guidance" in found:
        # A student that is not told a weight has none.
        low, high = guidance or link.model.guidance_range or (0.0, 0.0)
        found["guidance"] = float(np.clip(found["guidance"], low, high))
    return found


def left(time_limit: float | None, started: float) -> float | None:
    """Seconds of a time limit that remain; SystemExit where none does, on all hosts."""
    if not time_limit:
        return None
    seconds = on_first_process(lambda: time_limit - (time.monotonic() - started))
    if seconds <= 0:
        print("the time limit has passed; the same command goes on", flush=True)
        raise SystemExit(EXIT_STATUS[RESTART])
    return seconds


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
    """The file by which `sample.py --cascade` finds the stages.

    What it says already of one of them, which a person may have changed, stays.
    """
    path = workdir / cascade.FILE
    if path.exists():
        try:
            tables = tomllib.loads(path.read_text())["stage"]
            said = {table["name"]: table for table in tables}
        except (
            tomllib.TOMLDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
        ) as bad:
            raise UserError(
                f"{path} names no stages ({bad}): mend or delete it; the same command "
                "then writes it anew, all stages are done"
            ) from bad
        stages = stages | {name: said[name] for name in stages if name in said}
    cascade.write(path, stages)
