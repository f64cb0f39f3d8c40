"""The low-resolution condition of a super-resolution stage of a cascade.

After Imagen Video (Ho et al. 2022, arXiv:2210.02303, section 2). The output of a stage
has more frames than its input (temporal super-resolution, TSR) or larger ones (spatial
super-resolution, SSR). Training downsamples its clips to the input; sampling takes the
output of the previous stage. Both then upsample it to the stage's own frames and size,
add noise (noise conditioning augmentation) and concatenate it with z.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import codec as codecs
from vdm_jax.codec import Codec
from vdm_jax.conditions.base import Cond, Contribution, VideoCondition
from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array
from vdm_jax.errors import UserError, check_multiple
from vdm_jax.networks.layers import dense, noise_level_embedding
from vdm_jax.settings.sections import Stage

AUGMENTATION_SCHEDULE = schedules.Cosine()  # without shift: logsnr within +-20


@dataclasses.dataclass(frozen=True)
class LowResolution(Stage, VideoCondition):
    """A low-resolution video as a condition, with the settings of a config's stage.

    shape              (frames, height, width, channels) of the stage's own videos
    codec              encodes the upsampled input, before noise is added to it
    """

    shape: tuple[int, int, int, int] = dataclasses.field(kw_only=True)
    codec: Codec = Codec()

    @classmethod
    def from_config(cls, config: Any) -> "LowResolution | None":
        """Return the low-resolution condition of a stage, None for a base model."""
        if "stage" not in config:
            return None
        stage, video = config.stage, config.video
        if stage.kind == "ssr" and stage.temporal_fill != "repeat":
            raise UserError(
                f"stage.temporal_fill={stage.temporal_fill!r} needs stage.kind='tsr'"
            )
        lowest, highest = map(float, stage.augmentation_time)
        if lowest > highest:
            raise UserError(
                f"stage.augmentation_time={(lowest, highest)}: the lower time first"
            )
        for name in ("frames",) if stage.kind == "tsr" else ("height", "width"):
            check_multiple(f"video.{name}", video[name], stage.factor, "stage.factor")
        crop = tuple(stage.train_crop)
        for side, name in zip(crop, ("height", "width"), strict=False):
            if side % stage.factor or side > video[name]:
                raise UserError(
                    f"stage.train_crop={crop}: a {name} of at most {video[name]} that "
                    f"is a multiple of stage.factor={stage.factor}"
                )
        pairs = {"augmentation_time": (lowest, highest), "train_crop": crop}
        return cls(
            **stage.to_dict() | pairs,
            shape=(video.frames, video.height, video.width, video.channels),
            codec=codecs.from_config(config),
        )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of the input, the video to enlarge."""
        f, h, w, c = self.shape
        if self.kind == "tsr":
            return f // self.factor, h, w, c
        return f, h // self.factor, w // self.factor, c

    def observation(self, x: Array) -> Array:
        """Return what the stage's input would be for its own videos x.

        x: [b, frames + k, h, w, c], the last k frames independent images. TSR keeps
        every factor-th frame of the video and no image. SSR resizes all frames,
        bilinear with anti-aliasing.
        """
        if self.kind == "tsr":
            return x[:, : self.shape[0] : self.factor]
        b, f, h, w, c = x.shape
        return resize(x, h // self.factor, w // self.factor)

    def upsample(self, low_res: Array, images: int = 0) -> tuple[Array, Array]:
        """Return the input at the stage's frames and size, and a mask of input frames.

        low_res: as `observation` returns it. The mask is bool [1, frames + images, 1,
        1, 1]. In TSR frame `factor i` is frame i of `low_res`, and an independent image
        has no input. SSR is bilinear, and every frame has an input.
        """
        b, f, h, w, c = low_res.shape
        if self.kind == "ssr":
            resized = resize(low_res, h * self.factor, w * self.factor)
            return resized, jnp.ones((1, f, 1, 1, 1), bool)
        video = jnp.repeat(low_res, self.factor, axis=1)
        no_input = jnp.zeros((b, images, h, w, c), low_res.dtype)
        frame = jnp.arange(f * self.factor + images)
        mask = (frame % self.factor == 0) & (frame < f * self.factor)
        return jnp.concatenate([video, no_input], axis=1), mask.reshape(1, -1, 1, 1, 1)

    def from_observation(
        self, video: Array, t: Array, eps: Array, codec_params: Any = None
    ) -> dict[str, Any]:
        """Return the channels to concatenate with z, and the logsnr of their noise.

        Noise conditioning augmentation: alpha u + sigma eps of the upsampled input u,
        with one time t [b] of the cosine schedule per video. eps has the shape of u.
        Frames without input (images, and blank frames) get no noise.
        """
        images = eps.shape[1] - self.shape[0]
        upsampled, mask = self.upsample(video, images)
        level = schedules.noise_level(AUGMENTATION_SCHEDULE, t)
        encoded = self.codec.encode(upsampled, codec_params)
        noisy = process.diffuse(encoded, eps, level)
        if self.kind == "tsr":
            in_video = jnp.arange(encoded.shape[1]) < self.shape[0]
            shown = (
                mask if self.temporal_fill == "blank" else in_video.reshape(mask.shape)
            )
            channel = jnp.broadcast_to(mask, (*encoded.shape[:4], 1))
            channel = channel.astype(encoded.dtype)
            noisy = jnp.concatenate([jnp.where(shown, noisy, 0), channel], axis=-1)
        return {"low_res": noisy, "low_res_logsnr": level.logsnr}

    def prepare_batch(
        self, x: Array, key: Array, codec_params: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the clips of training, cropped to train_crop, and their cond."""
        crop_key, time_key, noise_key = jax.random.split(key, 3)
        if self.train_crop:
            x = random_crop(x, self.train_crop, self.factor, crop_key)
        lowest, highest = self.augmentation_time
        uniform = jax.random.uniform(time_key, x.shape[:1], x.dtype)
        t = lowest + (highest - lowest) * uniform
        z_shape = self.codec.z_shape(x.shape[1:])
        eps = jax.random.normal(noise_key, (len(x), *z_shape), x.dtype)
        return x, self.from_observation(self.observation(x), t, eps, codec_params)

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """Black videos; in TSR their last channel is a mask of frames."""
        *size, channels = self.codec.z_shape(self.shape)
        channels += self.kind == "tsr"
        dtype = jnp.result_type(float)
        return {
            "low_res": np.zeros((n[0], *size, channels), dtype),
            "low_res_logsnr": np.zeros(n[0], dtype),
        }

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """The channels, and a projection of their noise level's features."""
        features = noise_level_embedding(cond["low_res_logsnr"], dim)
        return Contribution(dense(features, dim, name), concat=cond["low_res"])

    def crop(self, cond: Cond, start: Array, window: Sequence[int]) -> dict[str, Any]:
        """The channels of the window; the noise level is that of the whole."""
        low_res = cond["low_res"]
        size = (low_res.shape[0], *window, low_res.shape[-1])
        return {"low_res": jax.lax.dynamic_slice(low_res, start, size)}


def resize(x: Array, height: int, width: int) -> Array:
    """Resize [b, f, h, w, c], bilinear; a smaller size is anti-aliased."""
    shape = (*x.shape[:2], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=True)


def random_crop(x: Array, size: tuple[int, int], grid: int, key: Array) -> Array:
    """Crop height and width `size` out of each video, at a random multiple of grid."""
    h, w = size
    counts = ((n - m) // grid + 1 for n, m in zip(x.shape[2:4], size, strict=True))
    keys = jax.random.split(key, 2)
    row, column = (
        grid * jax.random.randint(k, x.shape[:1], 0, count)
        for k, count in zip(keys, counts, strict=True)
    )

    def crop(video, row, column):
        start, shape = (0, row, column, 0), (video.shape[0], h, w, video.shape[-1])
        return jax.lax.dynamic_slice(video, start, shape)

    return jax.vmap(crop)(x, row, column)


def time_from_snr(snr: float) -> float:
    """Return the time of AUGMENTATION_SCHEDULE with alpha^2 / sigma^2 = snr.

    inf is t = 0. Beyond the schedule's range the nearest end is returned.
    """
    start, end = (AUGMENTATION_SCHEDULE.angle(np.array([t])).item() for t in (0.0, 1.0))
    angle = math.atan(snr**-0.5) if snr > 0 else end
    return min(max((angle - start) / (end - start), 0.0), 1.0)
