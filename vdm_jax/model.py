"""A diffusion model: a network, its conditions, its noise schedule and its scaling.

`build.build_model(config)` makes a new one, `runs.load(workdir)` reads a trained one.
Both return the frozen dataclass of this module, which knows no ConfigDict.
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
    """Immutable and without parameters, which are an argument of its methods.

    shape              (frames, height, width, channels) of a video
    label_vocabulary   names of the values of each label attribute, () without labels
    prediction_type    output of the network: v, eps, x or flow
    mean, variance     of the data in [-1, 1], for the preconditioning; 0 and 1 make it
                       the plain network of the papers
    label_dropout      probability with which training drops the label
    attribute_dropout  probability with which it drops one attribute of the label
    text_dim           width of the token embeddings, 0 without text
    guidance_range     lowest and highest scale s of uncond + s (cond - uncond) that a
                       guided student takes as a condition, in place of a second branch;
                       () for all other models
    low_resolution     the low-resolution condition of a super-resolution stage, or None
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
    low_resolution: LowResolution | None = None

    def encode(self, video: Array) -> Array:
        """Return a uint8 video [b, f, h, w, c] as floats in [-1, 1]."""
        return video.astype(jnp.result_type(float)) / 127.5 - 1.0

    def raw_conditions(self, batch: dict[str, Array]) -> Cond:
        """Return the raw conditions of a batch, none of them dropped.

        "keep" holds a mask per condition: bool [b], or [b, 1 + k] where a batch has k
        independent images.
        """
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
        """Return the videos to diffuse [b, f, h, w, c] and their conditions.

        key: of the low-resolution condition's crops and noise and of the dropout.
        drop_conditions: apply `condition_dropout`, as training does.
        """
        x, cond = self.encode(batch["video"]), self.raw_conditions(batch)
        if self.low_resolution is not None:
            # `condition_dropout` splits this key into two, and fold_in(key, i) is
            # split(key)[i]: 2 is independent of both.
            x, low = self.low_resolution.prepare_batch(x, jax.random.fold_in(key, 2))
            cond |= low
        return x, self.condition_dropout(cond, key) if drop_conditions else cond

    def condition_dropout(self, cond: Cond, key: Array) -> Cond:
        """Drop whole conditions and single label attributes, at random.

        Each example is dropped by itself, and so is each independent image. A dropped
        attribute is -1.
        """
        rates = {"label": self.label_dropout, "text": self.text_dropout}
        key, attribute_key = jax.random.split(key)
        keep = {
            name: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, mask.shape)
            for i, (name, rate) in enumerate(rates.items())
            if (mask := cond["keep"].get(name)) is not None
        }
        cond = {**cond, "keep": keep}
        if "label" in cond:
            label, rate = cond["label"], self.attribute_dropout
            dropped = jax.random.bernoulli(attribute_key, rate, label.shape)
            cond["label"] = jnp.where(dropped, -1, label)
        return cond

    @property
    def supports_cfg(self) -> bool:
        """Whether training dropped every condition that guidance drops."""
        rates = [self.label_dropout] * bool(self.label_vocabulary)
        rates += [self.text_dropout] * bool(self.text_dim)
        return bool(rates) and all(rate > 0 for rate in rates)

    @property
    def guidance_weight_range(self) -> tuple[float, ...]:
        """The guidance_range as VDM's weights w = s - 1, which the embedding reads."""
        return tuple(scale - 1 for scale in self.guidance_range)

    def with_guidance_weight(self, cond: Cond, weight: Array) -> Cond:
        """Add the guidance weight w = s - 1, [b], which a guided student embeds."""
        return {**cond, "guidance": weight}

    def unconditional(self, cond: Cond) -> Cond:
        """Return the same conditions with every keep mask false; the rest is shared."""
        return {**cond, "keep": jax.tree.map(jnp.zeros_like, cond["keep"])}

    def init_params(self, key: Array) -> Params:
        """Return new parameters; traceable, for `jax.eval_shape` and `init`."""
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
        encoder_key, network_key = jax.random.split(key)
        inputs, conditioning = self.conditioning_encoder.init_with_output(
            encoder_key, jnp.zeros(1, dtype), self.shape[0], cond
        )
        z = jnp.zeros((1, *self.shape), dtype)
        network = self.network.init(network_key, z, inputs)
        return {
            "conditioning_encoder": conditioning["params"],
            "network": network["params"],
        }

    def init(self, key: Array) -> Params:
        """Return new parameters, from a program that is compiled without optimisation.

        It runs once, and optimising it takes longer than running it.
        """
        options: Any = {"xla_backend_optimization_level": "0"}
        return jax.jit(self.init_params).lower(key).compile(options)(key)

    def denoiser(self, params: Params, dropout_key: Array | None = None) -> Denoiser:
        """Return `denoise(z, level, cond)` with these parameters.

        Preconditioning of v outputs, after Karras et al. 2022, section 5: v is E[v | z]
        of Gaussian data with this mean and variance, plus the standard deviation of the
        residual times the network's output. The network reads z standardised.

        dropout_key: of the network's dropout; None switches it off.
        """
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None

        def denoise(z: Array, level: schedules.NoiseLevel, cond: Cond) -> Prediction:
            batch, frames = z.shape[:2]
            logsnr = jnp.asarray(level.logsnr, z.dtype)
            if logsnr.ndim == 0:
                logsnr = jnp.broadcast_to(logsnr, (batch,))
            inputs = self.conditioning_encoder.apply(
                {"params": params["conditioning_encoder"]}, logsnr, frames, cond
            )
            alpha, sigma = (
                append_dims(jnp.asarray(a, z.dtype), z)
                for a in (level.alpha, level.sigma)
            )
            z_variance = alpha**2 * self.variance + sigma**2
            centred = z - alpha * self.mean
            output: Any = self.network.apply(
                {"params": params["network"]},
                centred / jnp.sqrt(z_variance),
                inputs,
                train,
                rngs=rngs,
            )
            output = output.astype(z.dtype)
            if self.prediction_type == "v":
                linear = alpha * sigma * (1 - self.variance) / z_variance * centred
                scale = jnp.sqrt(self.variance / z_variance)
                output = linear - sigma * self.mean + scale * output
            return process.PREDICTION_TYPES[self.prediction_type](output, z, level)

        return denoise
