"""A model: a network, what it is told, its schedule and scaling, built from a config.

The one way in for every verb: `build(config)` for a new model, `load(workdir)` for a
trained one. ConfigDicts stop here; what leaves is frozen dataclasses and Linen.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vdm_jax.conditions.encoder import Cond, ConditioningEncoder
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array, Denoiser, Prediction, append_dims
from vdm_jax.networks import unet3d

Params = Any


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Immutable; parameters are passed to its functions and never held.

    shape: (frames, height, width, channels) of a video. mean, variance: of the data in
    [-1, 1], for the preconditioning; 0 and 1 make it the plain network of the papers.
    guidance_range: lowest and highest weight w of (1 + w) conditional - w unconditional
    that a guided student is told, in place of a second branch; () for all others.
    """

    network: unet3d.UNet3D
    conditioning_encoder: ConditioningEncoder
    schedule: schedules.Schedule  # of sampling
    training_schedule: schedules.Schedule
    shape: tuple[int, int, int, int]
    label_vocabulary: tuple[tuple[str, ...], ...] = ()
    prediction_type: str = "v"
    mean: float = 0.0
    variance: float = 1.0
    label_dropout: float = 0.0
    attribute_dropout: float = 0.0
    text_dim: int = 0
    text_dropout: float = 0.0
    guidance_range: tuple[float, ...] = ()
    low_resolution: LowResolution | None = (
        None  # of a cascade, for models that are given a video
    )

    def encode(self, video: Array) -> Array:
        """uint8 video [b, f, h, w, c] -> what is diffused, in [-1, 1]."""
        return video.astype(jnp.result_type(float)) / 127.5 - 1.0

    def raw_conditions(self, batch: dict[str, Array]) -> Cond:
        """The raw conditions in a batch, all kept."""
        cond: Cond = {"keep": {}}
        if "frame_mask" in batch:
            cond["frame_mask"] = batch["frame_mask"]
        if self.label_vocabulary:
            cond["label"] = batch["label"]
            cond["keep"]["label"] = jnp.ones(batch["label"].shape[:-1], bool)
        if self.text_dim:
            cond |= {"text": batch["text"], "text_mask": batch["text_mask"]}
            cond["keep"]["text"] = jnp.ones(batch["text"].shape[:-2], bool)
        return cond

    def prepare_batch(
        self, batch: dict[str, Array], key: Array, drop_conditions: bool = True
    ) -> tuple[Array, Cond]:
        """A batch as training has it: videos to diffuse, and what is told of them."""
        x, cond = self.encode(batch["video"]), self.raw_conditions(batch)
        if self.low_resolution is not None:
            # `drop` splits this key, and fold_in(key, i) is split(key)[i]: another.
            x, low = self.low_resolution.prepare_batch(x, jax.random.fold_in(key, 2))
            cond |= low
        return x, self.condition_dropout(cond, key) if drop_conditions else cond

    def condition_dropout(self, cond: Cond, key: Array) -> Cond:
        """Training's random dropping: whole conditions, and single attributes."""
        shares = {"label": self.label_dropout, "text": self.text_dropout}
        key, single = jax.random.split(key)
        keep = {
            name: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - share, old.shape)
            for i, (name, share) in enumerate(shares.items())
            if (old := cond["keep"].get(name)) is not None
        }
        cond = {**cond, "keep": keep}
        if "label" in cond:
            label = cond["label"]
            lost = jax.random.bernoulli(single, self.attribute_dropout, label.shape)
            cond["label"] = jnp.where(lost, -1, label)
        return cond

    @property
    def supports_cfg(self) -> bool:
        """Whether training dropped every condition that guidance would drop."""
        drops = [self.label_dropout] * bool(self.label_vocabulary)
        drops += [self.text_dropout] * bool(self.text_dim)
        return bool(drops) and all(drop > 0 for drop in drops)

    def with_guidance_weight(self, cond: Cond, weight: Array) -> Cond:
        """With the guidance weight [b] that a guided student is told."""
        return {**cond, "guidance": weight}

    def unconditional(self, cond: Cond) -> Cond:
        """The unconditional twin: every keep mask false, the rest shared."""
        return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}

    def init_params(self, key: Array) -> Params:
        """New parameters, traceable: for eval_shape and for `init`."""
        dtype = jnp.result_type(float)
        batch = {
            "label": jnp.zeros((1, len(self.label_vocabulary)), jnp.int32),
            "text": jnp.zeros((1, 1, self.text_dim), dtype),
            "text_mask": jnp.ones((1, 1), bool),
        }
        cond = self.raw_conditions(batch)
        if self.low_resolution is not None:
            cond |= self.low_resolution.zero_cond(dtype)
        if self.guidance_range:
            cond = self.with_guidance_weight(cond, jnp.zeros(1, dtype))
        told = (jnp.zeros(1, dtype), self.shape[0], cond)
        first, second = jax.random.split(key)
        inputs, conditioning = self.conditioning_encoder.init_with_output(first, *told)
        z = jnp.zeros((1, *self.shape), dtype)
        network = self.network.init(second, z, inputs)
        return {
            "conditioning_encoder": conditioning["params"],
            "network": network["params"],
        }

    def init(self, key: Array) -> Params:
        """New parameters. Compiled without optimisation, since it runs once."""
        quick: Any = {"xla_backend_optimization_level": "0"}
        return jax.jit(self.init_params).lower(key).compile(quick)(key)

    def denoiser(self, params: Params, dropout_key: Array | None = None) -> Denoiser:
        """`denoise(z, step, cond)` with these parameters; dropout only with a key.

        Preconditioning, for v outputs: v = E[v | z] for data of this mean and variance
        if it were Gaussian, plus the residual's standard deviation times the network,
        which sees z standardised (after Karras et al. 2022, section 5).
        """
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None

        def denoise(z: Array, step: schedules.NoiseLevel, cond: Cond) -> Prediction:
            batch, frames = z.shape[:2]
            logsnr = jnp.asarray(step.logsnr, z.dtype)
            if logsnr.ndim == 0:
                logsnr = jnp.broadcast_to(logsnr, (batch,))
            inputs = self.conditioning_encoder.apply(
                {"params": params["conditioning_encoder"]}, logsnr, frames, cond
            )
            alpha, sigma = (append_dims(jnp.asarray(a, z.dtype), z) for a in step[2:4])
            spread = alpha**2 * self.variance + sigma**2
            centred = z - alpha * self.mean
            output: Any = self.network.apply(
                {"params": params["network"]},
                centred / jnp.sqrt(spread),
                inputs,
                train,
                rngs=rngs,
            )
            output = output.astype(z.dtype)
            if self.prediction_type == "v":
                linear = alpha * sigma * (1 - self.variance) / spread * centred
                scale = jnp.sqrt(self.variance / spread)
                output = linear - sigma * self.mean + scale * output
            return process.PREDICTION_TYPES[self.prediction_type](output, z, step)

        return denoise
