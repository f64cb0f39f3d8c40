"""A super-resolution stage of a cascade: what it makes, from what, told how.

After Imagen Video (Ho et al. 2022, arXiv:2210.02303, section 2). A stage has more
frames than the video it is given (temporal super-resolution, TSR) or larger ones
(spatial, SSR). Training brings its clips down to what the stage is given and sampling
has that from the stage before; from there on both go one way: up to the stage's own
frames and size, then noise, then channels beside z.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.diffusion import process, schedules
from vdm_jax.diffusion.process import Array

STAGE_KINDS = ("tsr", "ssr")
TEMPORAL_FILLS = ("repeat", "blank")
AUGMENTATION_SCHEDULE = (
    schedules.Cosine()
)  # of the noise on what is given; without shift, +-20


@dataclasses.dataclass(frozen=True)
class LowResolution:
    """factor: frames (tsr), or height and width (ssr), over those of what is given.

    shape: (frames, height, width, channels) of what is made. fill: what stands between
    the given frames of a TSR stage, the last of them again or nothing. noise: the
    lowest and the highest time t of the cosine schedule from which training draws the
    noise that it adds to what is given. crop: (height, width) that training cuts out
    of larger clips, for networks without attention over the frame; () for none.
    """

    kind: str
    factor: int
    shape: tuple[int, int, int, int]
    temporal_fill: str = "repeat"
    augmentation_time: tuple[float, float] = (0.0, 1.0)
    train_crop: tuple[int, int] | tuple[()] = ()

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of what is given."""
        f, h, w, c = self.shape
        if self.kind == "tsr":
            return f // self.factor, h, w, c
        return f, h // self.factor, w // self.factor, c

    @property
    def cond_channels(self) -> int:
        """Of what the network sees beside z: a video, and of TSR the frames' mask."""
        return self.shape[3] + (self.kind == "tsr")

    def downsample(self, x: Array) -> Array:
        """Clips as the stage makes them -> what it would have been given.

        x: [b, frames + k, h, w, c], the last k frames independent images. TSR keeps
        every factor-th frame of the video and no image, SSR brings all frames down by
        anti-aliased bilinear resizing.
        """
        if self.kind == "tsr":
            return x[:, : self.shape[0] : self.factor]
        b, f, h, w, c = x.shape
        return resize(x, h // self.factor, w // self.factor)

    def upsample(self, low: Array, images: int = 0) -> tuple[Array, Array]:
        """What is given -> (the same with the stage's frames and size, mask).

        low: as `down` leaves it. mask: bool [1, frames + images, 1, 1, 1], true where
        the frame was given. Frame `factor i` of TSR is frame i of `low`; an independent
        image is given nothing. SSR is bilinear.
        """
        b, f, h, w, c = low.shape
        if self.kind == "ssr":
            factor = self.factor
            return resize(low, h * factor, w * factor), jnp.ones((1, f, 1, 1, 1), bool)
        video = jnp.repeat(low, self.factor, axis=1)
        none = jnp.zeros((b, images, h, w, c), low.dtype)
        place = jnp.arange(f * self.factor + images)
        mask = (place % self.factor == 0) & (place < f * self.factor)
        return jnp.concatenate([video, none], axis=1), mask.reshape(1, -1, 1, 1, 1)

    def augmented_cond(
        self, low: Array, t: Array, eps: Array, images: int = 0
    ) -> dict[str, Array]:
        """What the network is told of the given video: channels, and their noise level.

        Noise conditioning augmentation: alpha u + sigma eps of the upsampled video u,
        at one time t [b] of the cosine schedule a video. eps: of the shape of u. Where
        nothing is given (images, and blank frames) there is no noise either.
        """
        up, mask = self.upsample(low, images)
        step = schedules.noise_level(AUGMENTATION_SCHEDULE, t)
        noisy = process.diffuse(up, eps, step)
        if self.kind == "tsr":
            frames = jnp.arange(up.shape[1]) < self.shape[0]
            told = mask if self.temporal_fill == "blank" else frames.reshape(mask.shape)
            shown = jnp.broadcast_to(mask, (*up.shape[:4], 1)).astype(up.dtype)
            noisy = jnp.concatenate([jnp.where(told, noisy, 0), shown], axis=-1)
        return {"low": noisy, "low_logsnr": step.logsnr}

    def prepare_batch(self, x: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """Training's clips, cropped if so set, and what is told of them."""
        crop_key, time_key, noise_key = jax.random.split(key, 3)
        if self.train_crop:
            x = random_crop(x, self.train_crop, self.factor, crop_key)
        low_t, high_t = self.augmentation_time
        spread = jax.random.uniform(time_key, x.shape[:1], x.dtype)
        t = low_t + (high_t - low_t) * spread
        images = x.shape[1] - self.shape[0]
        eps = jax.random.normal(noise_key, x.shape, x.dtype)
        cond = self.augmented_cond(self.downsample(x), t, eps, images)
        return x, cond

    def zero_cond(self, dtype: Any) -> dict[str, Array]:
        """Conditions of one video of which nothing is known, for shapes."""
        shape = (1, *self.shape[:3], self.cond_channels)
        return {"low": jnp.zeros(shape, dtype), "low_logsnr": jnp.zeros(1, dtype)}


def resize(x: Array, height: int, width: int) -> Array:
    """[b, f, h, w, c] -> [b, f, height, width, c], bilinear; down: anti-aliased."""
    shape = (*x.shape[:2], height, width, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=True)


def random_crop(x: Array, size: tuple[int, int], grid: int, key: Array) -> Array:
    """One random cut-out of height and width `size`, on a grid, for each video."""
    h, w = size
    rooms = ((n - m) // grid + 1 for n, m in zip(x.shape[2:4], size, strict=True))
    keys = jax.random.split(key, 2)
    row, column = (
        grid * jax.random.randint(k, x.shape[:1], 0, room)
        for k, room in zip(keys, rooms, strict=True)
    )

    def cut(video, row, column):
        place = (0, row, column, 0)
        return jax.lax.dynamic_slice(
            video, place, (video.shape[0], h, w, video.shape[-1])
        )

    return jax.vmap(cut)(x, row, column)


def time_from_snr(snr: float) -> float:
    """The time of that schedule at which alpha^2 / sigma^2 is `snr`; inf is t = 0."""
    clear, noise = (
        AUGMENTATION_SCHEDULE.angle(np.zeros(1)).item(),
        AUGMENTATION_SCHEDULE.angle(np.ones(1)).item(),
    )
    angle = math.atan(snr**-0.5) if snr > 0 else noise
    return min(max((angle - clear) / (noise - clear), 0.0), 1.0)
