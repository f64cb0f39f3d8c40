"""The stages of a cascade, distilled one after the other.

WORKDIR/STAGE/        a distillation
        cascade.toml  names the stages for `sample.py --cascade`
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import agreement, cascade, runs
from vdm_jax.checkpoint import on_first_process
from vdm_jax.distillation import rounds
from vdm_jax.distillation.driver import distill
from vdm_jax.training.cascade import remaining_time, write_cascade_file

STUDENT_SETTINGS = (
    "guidance", "snr", "threshold", "percentile", "tiled", "batch_size",
)  # fmt: skip


def distill_cascade(
    path: str, config: Any, workdir: Path, time_limit: float | None = None
) -> None:
    """Distil every stage of a cascade in turn, all as the config says.

    The same call goes on where it stood. Every process of a run calls this together.
    Raises as `distill` and `cascade.read` do.
    """
    started = time.monotonic()
    links = cascade.read(path).stages
    agreement.check(
        {"command": "distill --cascade", "workdir": str(workdir)}
        | {"stages": [link.name for link in links]}
        | agreement.environment()
        | runs.config_without_paths(config)
        | {link.name: dataclasses.asdict(link.settings) for link in links}
    )
    for link in links:  # all of them before the first takes its hours
        rounds.check(config.distill, link.config, link.model)
    for link in links:
        place = workdir / link.name
        print(f"{link.name}: distilling in {place}", flush=True)
        teacher, seconds = (
            str(link.workdir.absolute()),
            remaining_time(time_limit, started),
        )
        distill(config, teacher, place, seconds, more=link is not links[-1])
    fields = {
        link.name: student_settings(link, config.distill.guidance) for link in links
    }
    on_first_process(lambda: write_cascade_file(fields, workdir))


def student_settings(
    link: cascade.CascadeStage, guidance: Sequence[float]
) -> dict[str, float]:
    """What the teachers' file says of sampling that holds for their students too."""
    differing = cascade.sampling_overrides(link).items()
    found = {name: value for name, value in differing if name in STUDENT_SETTINGS}
    if "guidance" in found:
        # A student that is not told a weight has none.
        low, high = guidance or link.model.guidance_range or (0.0, 0.0)
        found["guidance"] = float(np.clip(found["guidance"], low, high))
    return found
