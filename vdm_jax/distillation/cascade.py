"""The stages of a cascade, distilled sequentially.

WORKDIR/STAGE/        a distillation
        cascade.toml  lists the stages for `sample.py --cascade`
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import agreement, cascade, runs
from vdm_jax.checkpoint import on_first_process
from vdm_jax.distillation import rounds
from vdm_jax.distillation.driver import distill
from vdm_jax.settings import DISTILLATION, check_config
from vdm_jax.training.cascade import write_cascade_file
from vdm_jax.training.stop import PreemptionSignal

# Sampling settings of a stage that hold for its student too.
STUDENT_SETTINGS = (
    "guidance_scale", "augmentation_snr", "clip_x", "dynamic_threshold",
    "tiled_sampling", "batch_size", "mesh",
)  # fmt: skip


def distill_cascade(
    path: str, config: Any, workdir: Path, stop: PreemptionSignal | None = None
) -> None:
    """Distil every stage of a cascade with the same config; the same call resumes.

    Every process of a run calls this together. Raises as `distill` and `cascade.read`
    do.
    """
    stop = stop or PreemptionSignal()
    stages = cascade.read(path).stages
    facts = {"workdir": str(workdir), "stages": [stage.name for stage in stages]}
    facts |= {stage.name: dataclasses.asdict(stage.settings) for stage in stages}
    facts |= runs.config_without_paths(config)
    agreement.check_command("distill --cascade", facts)
    check_config(config, DISTILLATION)
    for stage in stages:  # all of them before hours are spent on the first
        rounds.check(config.distill, stage.config, stage.model)
    for stage in stages:
        place = workdir / stage.name
        print(f"{stage.name}: distilling in {place}", flush=True)
        distill(config, str(stage.workdir.absolute()), place, stop)
        if stage is not stages[-1]:
            stop.exit_if_requested(f"saved {stage.name}")
    fields = {
        stage.name: student_settings(stage, config.distill.guidance_range)
        for stage in stages
    }
    on_first_process(lambda: write_cascade_file(fields, workdir))


def student_settings(
    stage: cascade.CascadeStage, guidance_range: Sequence[float]
) -> dict[str, float]:
    """Return the settings of a teacher's stage that hold for its student too.

    guidance_range: of the distillation, () where it does not distil guidance.
    """
    overrides = cascade.sampling_overrides(stage).items()
    settings = {name: value for name, value in overrides if name in STUDENT_SETTINGS}
    if "guidance_scale" in settings:
        # A student without a guidance embedding is sampled without guidance.
        low, high = guidance_range or stage.model.guidance_range or (1.0, 1.0)
        settings["guidance_scale"] = float(
            np.clip(settings["guidance_scale"], low, high)
        )
    return settings
