"""A task: an autoencoder of frames, trained by the mean squared error."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax.networks.layers import depth_to_space, space_to_depth

PATCH = 4


class Autoencoder(nn.Module):
    """Linear: patches of 4 x 4 pixels to `width` numbers and back."""

    width: int = 32

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """[b, f, h, w, c] -> its reconstruction."""
        patches = space_to_depth(video, PATCH)
        code = nn.Dense(self.width, name="encode")(patches)
        return depth_to_space(nn.Dense(patches.shape[-1], name="decode")(code), PATCH)


class Task:
    """A row of TASKS."""

    def __init__(self, config: Any, model: Any):
        self.model, self.network = model, Autoencoder()

    def init_params(self, key: jax.Array):
        """Return new parameters."""
        video = jnp.zeros((1, *self.model.video_shape))
        return self.network.init(key, video)["params"]

    def load_aux_params(self):
        """The loss reads nothing else."""
        return {}

    def make_loss(self):
        """Return the mean squared error."""

        def loss_fn(params, aux_params, batch, key):
            x = self.model.normalize(batch["video"])
            return jnp.mean((self.network.apply({"params": params}, x) - x) ** 2), {}

        return loss_fn

    def make_observers(self, trainer, run):
        """Nothing is observed."""
        return ()
