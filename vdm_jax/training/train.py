"""Training, from a config to a finished run: reads downwards."""

import re
from pathlib import Path
from typing import Any

import jax

from vdm_jax import agreement, build, data, runs, sampling, sharding
from vdm_jax.data import one_clip
from vdm_jax.data.source import Source
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.pretrained import sd_pipeline
from vdm_jax.training import base_model, control_tuning, lora_tuning
from vdm_jax.training.captions import CaptionEmbeddings, open_caption_embeddings
from vdm_jax.training.checks import check_config
from vdm_jax.training.init import start_from
from vdm_jax.training.step import TrainState
from vdm_jax.training.stop import PreemptionSignal
from vdm_jax.training.tasks import TASKS
from vdm_jax.training.trainer import Trainer


def train(
    config: Any, workdir: Path, stop: PreemptionSignal | None = None
) -> TrainState:
    """Train to config.train.steps, or resume from the newest checkpoint of the workdir.

    Every process of a run calls this together.

    Args:
      stop: that of the command, where more than this run belongs to it.

    Raises:
      UserError: the config is wrong; nothing is written then.
      SystemExit: as `train_loop` raises it.
    """
    if config.data.source == "one_clip":
        one_clip.fill_in(config, workdir)
    base_model.complete(config)
    _check(config, workdir)
    mesh = sharding.mesh_from_config(config.mesh)
    source, captions, model = build_from_config(config)
    task = TASKS[config.task](config, model)
    trainer = Trainer(config, model, source, captions, mesh, task.init_params)
    aux_params = jax.device_put(task.load_aux_params(), sharding.replicated(mesh))
    if lora_tuning.applies(config):
        lora_tuning.check(config, trainer.abstract_state.params)
    with trainer.open_run(workdir, config, stop) as run:
        return trainer.train(
            run,
            lambda: trainer.init_state(_start_params(trainer, task)),
            lambda: trainer.compile_update(
                run, task.make_loss(), aux_params, _identity(config, model)
            ),
            lambda: task.make_observers(trainer, run),
            aux_params,
        )


def _identity(config: Any, model: DiffusionModel) -> Any:
    """Return what decides the program of a training step, as plain data."""
    parts = re.sub(" at 0x[0-9a-f]+", "", repr(model))  # addresses of functions
    return [config.to_dict(), parts, model.codec.fingerprint()]


def _start_params(trainer: Trainer, task: Any) -> Params:
    """Return new parameters, or those of config.init_from as far as it has them."""
    config = trainer.config

    def init() -> Params:
        return trainer.new_params(config.seed)

    if not config.init_from:
        return init()
    loaded = task.load_params(config.init_from, trainer.mesh)
    if control_tuning.applies(config):
        loaded = control_tuning.with_copy(loaded)
    return start_from(
        loaded,
        trainer.abstract_state.params,
        init,
        f"config.init_from={config.init_from}",
        config.init_new,
        config.init_widen,
    )


def _check(config: Any, workdir: Path) -> None:
    """Raise UserError unless this config can be trained in this workdir."""
    agreement.check_command("train", runs.config_without_paths(config))
    check_config(config)
    if (workdir / runs.DISTILLATION_FILE).is_file():
        raise UserError(
            f"{workdir} is the workdir of a distillation: give another --workdir"
        )
    if config.init_from and sd_pipeline.is_pipeline(Path(config.init_from)):
        base_model.check_same(config, runs.read_config(config.init_from), "is tuned")


def build_from_config(
    config: Any,
) -> tuple[Source, CaptionEmbeddings | None, DiffusionModel]:
    """Open the data and build the model; fill in the fields that are left open.

    Raises:
      UserError: parts that do not fit each other or the data.
    """
    if config.conditioning.guidance_range or config.diffusion.distilled_steps:
        raise UserError(
            "config.conditioning.guidance_range and config.diffusion.distilled_steps: "
            "only distill.py trains students; set them to () and 0"
        )
    source = data.open_source(config)
    for tuning in (lora_tuning, control_tuning):
        if tuning.applies(config):
            tuning.prepare(config)
    data.resolve(config, source)
    captions = open_caption_embeddings(config, source)
    model = build.build_model(config)
    if "mixed_sizes" in config:
        for row in config.mixed_sizes.rows:
            build.at_size(config, row[:3])
    clip = next(data.pipeline.fixed_clips(config, source.split(False), 1))
    in_batch = clip.keys() | (captions.shapes((1,)) if captions else {})
    if missing := model.clip_arrays - in_batch:
        raise UserError(
            f"the model is conditioned on {', '.join(sorted(missing))}, which clips of "
            f"{source.name} do not have: their source must return it with each clip"
        )
    settings = sampling.Settings.from_config(config.sample)
    sampling.check_settings(model, config.sample.num, config.seed, settings)
    sampling.label_array(model, 1, config.sample.label)
    return source, captions, model
