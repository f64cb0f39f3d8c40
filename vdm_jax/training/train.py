"""Training, from a config to a finished run: reads downwards."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vdm_jax import agreement, data, runs, sampling, sharding
from vdm_jax.data.source import Source
from vdm_jax.diffusion import samplers
from vdm_jax.errors import UserError
from vdm_jax.memory import check_memory
from vdm_jax.model import DiffusionModel, Params, run_unoptimised
from vdm_jax.training.captions import CaptionEmbeddings, open_caption_embeddings
from vdm_jax.training.checks import check_batch_memory, check_config
from vdm_jax.training.init import start_from
from vdm_jax.training.optimizer import learning_rate
from vdm_jax.training.run import open_run
from vdm_jax.training.state import TrainState
from vdm_jax.training.tasks import task_from_config
from vdm_jax.training.train_loop import is_finished, train_loop
from vdm_jax.training.trainer import Trainer


def train(
    config: Any, workdir: Path, time_limit: float | None = None, is_last: bool = True
) -> TrainState:
    """Train to config.train.steps, or resume from the newest checkpoint of the workdir.

    Every process of a run calls this together.

    Args:
      time_limit: seconds from now after which the run saves and exits.
      is_last: whether the command ends with this run. Otherwise a request to stop is
        obeyed even after the last step.

    Raises:
      UserError: the config is wrong; nothing is written then.
      SystemExit: as `train_loop` raises it.
    """
    _check(config, workdir)
    mesh = sharding.mesh_from_config(config.mesh)
    source, captions, model = build_from_config(config)
    task = task_from_config(config, model)
    trainer = Trainer(config, model, source, captions, mesh, task.init_params)
    check_memory(trainer.state_bytes / jax.process_count(), "parameters and optimiser")
    lr_schedule = learning_rate(config.train)
    key = samplers.key_from_seed(config.seed)

    init_params = functools.partial(run_unoptimised, task.init_params, key)

    def init(params=None) -> TrainState:
        params = _new_params(init_params) if params is None else params
        return trainer.init_state(params)

    def load(other: str) -> Params:
        return _load_start(config, trainer, init_params, other)

    abstract, data_id = trainer.abstract_state, trainer.fingerprint(config)
    with (
        open_run(workdir, config, data_id, time_limit, abstract_state=abstract) as run,
        jax.set_mesh(mesh),
        sharding.activation_rules(config.mesh.activation_rules),
    ):
        batches = trainer.batches(config)
        state = run.resume(abstract, init, batches, load)
        if is_finished(run, int(state.step), config.train.steps):
            return state
        update = trainer.compile_update(
            run, task.make_loss(), lambda step, aux_params: lr_schedule(step), {}, key
        )
        return train_loop(
            update,
            state,
            {},
            batches,
            num_steps=config.train.steps,
            run=run,
            key=key,
            observers=task.make_observers(mesh, source, captions, run),
            is_last=is_last,
        ).state


def _new_params(init_params: Callable[[], Params]) -> Params:
    """Return new parameters, which all processes must have in common."""
    params = init_params()
    agreement.check({"new parameters": agreement.arrays_checksum(params)})
    return params


def _load_start(
    config: Any, trainer: Trainer, init_params: Callable[[], Params], other: str
) -> Params:
    """Return the parameters to start from, with those of another workdir."""
    return start_from(
        runs.load(other, trainer.mesh).params,
        trainer.abstract_state.params,
        init_params,
        config.init_new,
        config.init_widen,
        f"config.init_from={other}",
    )


def _check(config: Any, workdir: Path) -> None:
    """Raise UserError unless this config can be trained in this workdir."""
    agreement.check(
        {"command": "train"}
        | agreement.environment()
        | runs.config_without_paths(config)
    )
    check_config(config)
    check_batch_memory(config)
    if steps := config.diffusion.distilled_steps:
        raise UserError(
            f"config.diffusion.distilled_steps={steps}: only distill.py trains "
            "students; set it to 0"
        )
    if (workdir / runs.DISTILLATION_FILE).is_file():
        raise UserError(
            f"{workdir} is the workdir of a distillation: give another --workdir"
        )


def build_from_config(
    config: Any,
) -> tuple[Source, CaptionEmbeddings | None, DiffusionModel]:
    """Open the data and build the model; fill in the fields that are left open.

    Raises:
      UserError: parts that do not fit each other or the data.
    """
    if config.conditioning.guidance_range:
        raise UserError(
            f"config.conditioning.guidance_range={config.conditioning.guidance_range}: "
            "only distill.py trains students with a guidance scale; set it to ()"
        )
    source = data.open_source(config)
    data.resolve(config, source)
    captions = open_caption_embeddings(config, source)
    model = runs.build_checked_model(
        config,
        "config.network, .data, .conditioning and .diffusion make no model",
        "give each field what configs/shapes.py has there",
    )
    settings = sampling.Settings.from_config(config.sample)
    sampling.check_settings(model, config.sample.num, config.seed, settings)
    sampling.draw_labels(model, 1, config.sample.label)
    return source, captions, model
