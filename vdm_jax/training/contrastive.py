"""The task "contrastive": images and their captions, near in one space.

CLIP's symmetric loss (Radford et al. 2021, arXiv:2103.00020, figure 3). Its negatives
are the whole batch, over all devices.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax import image_text, sharding
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError
from vdm_jax.metrics import clip_score
from vdm_jax.model import DiffusionModel, Params
from vdm_jax.networks.image_text import ImageText
from vdm_jax.training.captions import add_text
from vdm_jax.training.run import OpenRun
from vdm_jax.training.step import LossFn, TrainState
from vdm_jax.training.train_loop import Observer
from vdm_jax.training.trainer import Trainer

NUM_HELD_OUT = 256  # clips of the measures, and captions among which they choose


class ContrastiveTask:
    """A row of TASKS.

    Raises:
      UserError: the network has no towers, there is no text, or a batch has parts.
    """

    def __init__(self, config: Any, model: DiffusionModel):
        if not isinstance(model.network, ImageText) or not model.text_dim:
            raise UserError(
                "config.task='contrastive' needs config.network.kind='image_text' and "
                "config.conditioning.text_dim, as configs/clip_small.py has"
            )
        for field, value, only in (
            ("train.grad_accum_steps", config.train.grad_accum_steps, 1),
            ("data.joint_image_frames", config.data.joint_image_frames, 0),
        ):
            if value != only:
                raise UserError(
                    f"config.{field}={value}: the task 'contrastive' has {only}, since "
                    "the negatives of a clip are the whole batch"
                )
        self.model: DiffusionModel = model
        self.network: ImageText = model.network

    def init_params(self, key: jax.Array) -> Params:
        """Return new parameters; traceable."""
        text = self.model.null_conditions((1,))
        video = jnp.zeros((1, *self.model.video_shape))
        arrays = video, text["text"], text["text_mask"]
        return self.network.init(key, *arrays)["params"]

    def load_params(self, workdir: str, mesh: Mesh) -> Params:
        """Return the parameters of a trained model, to start from."""
        return image_text.load(workdir).params

    def load_aux_params(self) -> dict[str, Any]:
        """Return what the loss reads apart from the parameters that train."""
        return {}

    def make_loss(self) -> LossFn:
        """Return (params, aux_params, batch, key) -> (loss, metrics)."""

        def loss_fn(params, aux_params, batch, key):
            del aux_params, key
            image, text, scale = self._embed(params, batch)
            loss, accuracy = contrastive_loss(image, text, scale)
            return loss, {"accuracy": accuracy, "logit_scale": scale}

        return loss_fn

    def _embed(self, params: Params, batch: Mapping[str, Any]):
        """Return embeddings of videos and of captions, and the scale."""
        video = self.model.normalize(batch["video"])
        arrays = video, batch["text"], batch["text_mask"]
        embedded: Any = self.network.apply({"params": params}, *arrays)
        return embedded

    def make_observers(self, trainer: Trainer, run: OpenRun) -> tuple[Observer, ...]:
        """Return the measures of held-out clips; none where no clips are held out.

        Without labels two clips have one caption where the texts are equal.
        """
        source = trainer.source
        if not len(source.split(True)):
            return ()
        n = sharding.whole_batch(trainer.mesh, NUM_HELD_OUT)
        clips = pipeline.held_out_batch(run.config, source, n)
        names = clips.get("label", clips["caption"][:, None])
        _, group = np.unique(names, axis=0, return_inverse=True)
        batch = add_text(clips, trainer.captions)
        batch = {name: batch[name] for name in ("video", "text", "text_mask")}
        embed = jax.jit(self._embed)

        def measure(state: TrainState) -> dict[str, float]:
            image, text, _ = map(np.asarray, embed(state.eval_params, batch))
            group_of = group.reshape(-1)
            return {
                "val/retrieval": clip_score.retrieval(image, text, group_of).mean(),
                "val/clip_score": clip_score.clip_scores(image, text).mean(),
            }

        return ((run.config.train.eval_every, "validating", measure),)


def contrastive_loss(
    image: jax.Array, text: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the mean of both cross-entropies, and how often an image finds its text.

    image, text: [b, d] of length 1. scale: of their cosines, 1 / temperature.
    """
    logits = scale * jnp.matmul(image, text.T, precision="highest")
    matched = jnp.diagonal(logits)
    losses = [jax.nn.logsumexp(logits, axis=axis) - matched for axis in (0, 1)]
    accuracy = (logits.argmax(1) == jnp.arange(len(logits))).mean()
    return (losses[0].mean() + losses[1].mean()) / 2, accuracy
