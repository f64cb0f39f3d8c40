"""What train.py can train: one class each, and a row of TASKS, named by config.task."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vdm_jax import runs
from vdm_jax.errors import UserError
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.training.autoencoder import AutoencoderTask
from vdm_jax.training.contrastive import ContrastiveTask
from vdm_jax.training.observers import make_observers
from vdm_jax.training.run import OpenRun
from vdm_jax.training.step import LossFn, make_loss
from vdm_jax.training.train_loop import Observer
from vdm_jax.training.trainer import Trainer


class Diffusion:
    """The diffusion loss of the model that the config describes."""

    def __init__(self, config: Any, model: DiffusionModel):
        if config.network.kind == "autoencoder":
            raise UserError(
                "config.network.kind='autoencoder' goes with config.task='autoencoder'"
            )
        self.config, self.model = config, model

    def init_params(self, key: jax.Array) -> Params:
        """Return new parameters; traceable."""
        return self.model.init_params(key)

    def load_params(self, workdir: str, mesh: Mesh) -> Params:
        """Return the parameters of a trained model, to start from."""
        return runs.load(workdir, mesh).params

    def load_aux_params(self) -> dict[str, Any]:
        """Return what the loss reads apart from the parameters that train."""
        return {}

    def make_loss(self) -> LossFn:
        """Return (params, aux_params, batch, key) -> (loss, metrics)."""
        return make_loss(self.model, self.config.diffusion.loss_weighting)

    def make_observers(self, trainer: Trainer, run: OpenRun) -> tuple[Observer, ...]:
        """Return what is done every so many steps besides training."""
        return make_observers(trainer, run)


# config.task -> (config, model) -> the task.
TASKS: dict[str, Callable[[Any, DiffusionModel], Any]] = {
    "diffusion": Diffusion,
    "autoencoder": AutoencoderTask,
    "contrastive": ContrastiveTask,
}
