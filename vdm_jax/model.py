"""A diffusion model: a network, its conditions, its noise schedule and its scaling.

`build.build_model(config)` makes a new one, `runs.load(workdir)` reads a trained one.
Both return the frozen dataclass of this module, which knows no ConfigDict.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vdm_jax import latents
from vdm_jax.codec import Codec, Shape
from vdm_jax.conditions.base import Cond, Condition, VideoCondition, condition_key
from vdm_jax.conditions.encoder import ConditioningEncoder
from vdm_jax.conditions.low_resolution import LowResolution
from vdm_jax.diffusion import guidance, process, schedules
from vdm_jax.diffusion.process import Array, Denoiser, Prediction, append_dims
from vdm_jax.errors import UserError
from vdm_jax.initialization import Initializer
from vdm_jax.networks.inputs import Packing

Params = Any


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Immutable and without parameters, which are an argument of its methods.

    video_shape        (frames, height, width, channels) of a video
    codec              from videos to z, which is diffused, and back
    conditions         what the network is conditioned on, by name
    prediction_type    output of the network: v, eps, x or flow
    reads_flow_state   the network reads flow matching's z / (alpha + sigma), not z
    mean, variance     of the data in [-1, 1], for the preconditioning; 0 and 1 make it
                       the plain network of the papers
    """

    network: nn.Module
    conditioning_encoder: ConditioningEncoder
    schedule: schedules.Schedule  # of sampling
    training_schedule: schedules.Schedule
    video_shape: tuple[int, int, int, int]
    codec: Codec = Codec()
    conditions: tuple[tuple[str, Condition], ...] = ()
    prediction_type: str = "v"
    reads_flow_state: bool = False
    mean: float = 0.0
    variance: float = 1.0

    @property
    def shape(self) -> Shape:
        """(frames, height, width, channels) of z."""
        return self.codec.z_shape(self.video_shape)

    def condition(self, name: str) -> Any:
        """Return the condition of that name, None where the model has none."""
        return dict(self.conditions).get(name)

    @property
    def label_vocabulary(self) -> tuple[tuple[str, ...], ...]:
        """Names of the values of each label attribute, () without labels."""
        return getattr(self.condition("label"), "vocabulary", ())

    @property
    def text_dim(self) -> int:
        """Width of the token embeddings, 0 without text."""
        return getattr(self.condition("text"), "dim", 0)

    @property
    def guidance_range(self) -> tuple[float, ...]:
        """Lowest and highest scale s that a guided student takes as a condition.

        It has one branch in place of two. () for all other models.
        """
        return getattr(self.condition("guidance_weight"), "scales", ())

    @property
    def low_resolution(self) -> LowResolution | None:
        """The low-resolution condition of a super-resolution stage."""
        return self.condition("low_resolution")

    @property
    def video_conditions(self) -> tuple[tuple[str, VideoCondition], ...]:
        """The conditions that are made of videos."""
        return tuple(
            (name, condition)
            for name, condition in self.conditions
            if isinstance(condition, VideoCondition)
        )

    def normalize(self, video: Array) -> Array:
        """Return a uint8 video [b, f, h, w, c] as floats in [-1, 1]."""
        return video.astype(jnp.result_type(float)) / 127.5 - 1.0

    @property
    def batch_arrays(self) -> set[str]:
        """Names of the arrays of a batch that the conditions read."""
        return {
            name
            for _, condition in self.conditions
            if condition.in_batch
            for name in condition.null((1,))
        }

    @property
    def clip_arrays(self) -> set[str]:
        """Names of the arrays of a clip, apart from its video, that training reads."""
        read = (name for _, own in self.video_conditions for name in own.reads)
        return self.batch_arrays.union(read)

    def raw_conditions(self, batch: dict[str, Array]) -> Cond:
        """Return the raw conditions of a batch, none of them dropped.

        "keep" holds a mask per condition: bool [b], or [b, 1 + k] where a batch has k
        independent images, or [b, s] of buffers of s packed videos.
        """
        cond: Cond = {"keep": {}}
        if "segments" in batch:
            names = (field.name for field in dataclasses.fields(Packing))
            cond["packing"] = Packing(*(batch[name] for name in names))
        if "frame_mask" in batch:
            cond["frame_mask"] = batch["frame_mask"]
        for name, condition in self.conditions:
            if condition.in_batch:
                cond |= {array: batch[array] for array in condition.null((1,))}
                cond["keep"][name] = jnp.ones(condition.keep_shape(cond), bool)
        return cond

    def prepare_batch(
        self,
        batch: dict[str, Array],
        key: Array,
        drop_conditions: bool = True,
        codec_params: Any = None,
    ) -> tuple[Array, Cond]:
        """Return z [b, f, h, w, c] of a batch of videos, and its conditions.

        batch: with videos, or as "latents" the stored mean and deviation of their z,
          which need no codec_params. Packed buffers are z [b, n, 1, 1, p p c].
        key: of the draw of z, of the low-resolution condition's crops and noise and of
          the dropout.
        drop_conditions: apply `condition_dropout` and give frames, as training does.
        codec_params: of the codec, if it has parameters.
        """
        cond = self.raw_conditions(batch)
        # Independent of the two keys that `condition_dropout` splits this one into,
        # which are its fold_in of 0 and of 1; so are the keys of the conditions.
        z_key = condition_key(key, "z")
        if "latents" in batch:
            moments = batch["latents"].astype(jnp.result_type(float))
            z = latents.draw(moments, z_key)
        else:
            x = self.normalize(batch["video"])
            for name, condition in self.video_conditions:
                own_key = condition_key(key, name)
                read = {array: batch[array] for array in condition.reads}
                x, arrays = condition.prepare_batch(x, own_key, codec_params, **read)
                cond |= arrays
            z = self.codec.encode(x, codec_params, z_key)
        if drop_conditions:
            cond = self.condition_dropout(cond, key)
            if (clean := self.condition("clean_frames")) is not None:
                own_key = condition_key(key, "clean_frames")
                packing = cond.get("packing")
                frames = min(self.shape[0], z.shape[1])  # clips may have fewer
                cond["clean"] = clean.draw(own_key, z, frames, packing)
        return z, cond

    def condition_dropout(self, cond: Cond, key: Array) -> Cond:
        """Drop whole conditions and single label attributes, at random.

        Each example is dropped by itself, and so is each independent image. A dropped
        attribute is -1.
        """
        key, augment_key = jax.random.split(key)
        keep = {
            name: jax.random.bernoulli(
                condition_key(key, name), 1 - condition.dropout, mask.shape
            )
            for name, condition in self.conditions
            if (mask := cond["keep"].get(name)) is not None
        }
        cond = {**cond, "keep": keep}
        for name, condition in self.conditions:
            # Labels were augmented with the key itself before others could be.
            own = augment_key if name == "label" else condition_key(augment_key, name)
            cond |= condition.augment(cond, own)
        return cond

    @property
    def supports_cfg(self) -> bool:
        """Whether training dropped a condition, so that guidance can drop it."""
        return any(condition.dropout > 0 for _, condition in self.conditions)

    def with_guidance_weight(self, cond: Cond, weight: Array) -> Cond:
        """Add the guidance weight w = s - 1, [b], which a guided student embeds."""
        return {**cond, "guidance": weight}

    def unconditional(self, cond: Cond) -> Cond:
        """Drop the conditions that are dropped at random in training."""
        keep = {
            name: jnp.zeros_like(mask) if self.condition(name).dropout else mask
            for name, mask in cond["keep"].items()
        }
        return {**cond, "keep": keep}

    def null_conditions(self, n: tuple[int, ...]) -> dict[str, Array]:
        """Return the arrays [n, ...] of all conditions where nothing is known."""
        arrays: dict[str, Array] = {}
        for _, condition in self.conditions:
            arrays |= condition.null(n)
        return arrays

    def init_params(self, key: Array) -> Params:
        """Return new parameters; traceable, for `jax.eval_shape` and `Initializer`."""
        dtype = jnp.result_type(float)
        arrays = self.null_conditions((1,))
        cond = arrays | self.raw_conditions(arrays)
        encoder_key, network_key = jax.random.split(key)
        inputs, conditioning = self.conditioning_encoder.init_with_output(
            encoder_key, jnp.zeros(1, dtype), self.shape[0], cond
        )
        z = jnp.zeros((1, *self.shape), dtype)
        network = self.network.init(network_key, z, inputs)
        encoder, network = conditioning["params"], network["params"]
        return {"conditioning_encoder": encoder, "network": network}

    def init(self, key: Array) -> Params:
        """Return new parameters; `Initializer` has the numbers of a key."""
        return jax.device_put(Initializer(self.init_params).draw(key))

    def denoiser(self, params: Params, dropout_key: Array | None = None) -> Denoiser:
        """Return `denoise(z, level, cond)` with these parameters.

        Preconditioning of v outputs, after Karras et al. 2022, section 5: v is E[v | z]
        of Gaussian data with this mean and variance, plus the standard deviation of the
        residual times the network's output. The network reads z standardised.

        Frames that cond["clean"] gives are read clean, see `guidance.clean`.

        dropout_key: of the network's dropout; None switches it off.
        """
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None

        def denoise(z: Array, level: schedules.NoiseLevel, cond: Cond) -> Prediction:
            if "clean" in cond:
                own = {name: a for name, a in cond.items() if name != "clean"}
                return guidance.clean(denoise, *cond["clean"])(z, level, own)
            batch, frames = z.shape[:2]
            logsnr = jnp.asarray(level.logsnr, z.dtype)
            if logsnr.ndim == 0:
                logsnr = jnp.broadcast_to(logsnr, (batch,))
            if (packing := cond.get("packing")) is not None:
                # Levels of tokens; the network has a vector for each video or frame.
                by_frames = self.condition("clean_frames") is not None
                logsnr = packing.to_videos(logsnr, self.shape[0] * by_frames)
                frames = packing.frames.shape[1]
            inputs = self.conditioning_encoder.apply(
                {"params": params["conditioning_encoder"]}, logsnr, frames, cond
            )
            alpha, sigma = (
                append_dims(jnp.asarray(a, z.dtype), z)
                for a in (level.alpha, level.sigma)
            )
            z_variance = alpha**2 * self.variance + sigma**2
            centred = z - alpha * self.mean
            size = alpha + sigma if self.reads_flow_state else jnp.sqrt(z_variance)
            standardised = centred / size
            output: Any = self.network.apply(
                {"params": params["network"]}, standardised, inputs, train, rngs=rngs
            )
            output = output.astype(z.dtype)
            if self.prediction_type == "v":
                linear = alpha * sigma * (1 - self.variance) / z_variance * centred
                scale = jnp.sqrt(self.variance / z_variance)
                output = linear - sigma * self.mean + scale * output
            return process.PREDICTION_TYPES[self.prediction_type](output, z, level)

        return denoise

    def in_calls(self, denoiser_of: Callable[["DiffusionModel"], Denoiser]) -> Denoiser:
        """Return the denoiser of a whole video from `denoiser_of` models, guided.

        It is that of this model. A model that denoises a video in several calls joins
        those of several models; the conditions are then of both branches.
        """
        return denoiser_of(self)


def check_shapes_chain(stages: Sequence[tuple[str, DiffusionModel]]) -> None:
    """Check that each stage's input has the shape of the previous stage's output.

    stages: name and model, from the base on.

    Raises:
      UserError: shapes do not fit, two stages have one name, or the first is no base.
    """
    (name, first), *rest = stages
    if first.low_resolution is not None:
        raise UserError(
            f"the first stage, {name}, is a super-resolution stage: name it in a "
            "cascade's file after the stage that makes its input"
        )
    names = [name for name, _ in stages]
    for (previous_name, previous), (name, model) in zip(stages, rest, strict=False):
        if names.count(name) > 1:
            raise UserError(f"two stages are called {name}")
        if model.low_resolution is None:
            raise UserError(f"stage {name} is a base model, which takes no video")
        if model.low_resolution.input_shape != previous.video_shape:
            raise UserError(
                f"stage {name} takes videos of {model.low_resolution.input_shape}, and "
                f"{previous_name} before it makes {previous.video_shape}"
            )
