"""The stages of a cascade, trained one after the other: a directory for each.

workdir/text  embeddings of the captions    workdir/STAGE  a run    cascade.toml
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vdm_jax import cascade, data, text, video_io
from vdm_jax.checkpoint import Checkpoints, on_first_process
from vdm_jax.data.embeddings import INDEX
from vdm_jax.errors import UserError
from vdm_jax.training.train import train

Settings = Callable[[str], Any]  # a stage's name to its config


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
        left = time_limit and max(time_limit - (time.monotonic() - started), 1e-3)
        print(f"{name}: training in {place}", flush=True)
        train(config, place, left)
    on_first_process(lambda: write_file(stages, workdir))


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


def write_file(stages: Sequence[str], workdir: Path) -> None:
    """The file by which `sample.py --cascade` finds the stages; never overwritten."""
    path = workdir / cascade.FILE
    if path.exists():
        return
    tables = [f'[[stage]]\nname = "{name}"\nworkdir = "{name}"\n' for name in stages]
    with video_io.replacing(path) as temporary:
        temporary.write_text("\n".join(tables))
