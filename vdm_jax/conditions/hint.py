"""The hint of a ControlNet: a video that says where something is in each frame.

It is a video of controls in pixels, such as edges. Training makes it from the clip, by
one of the kinds that the ControlNet learns, drawn for each example. Sampling is given
one: `CONTROLS` and the silhouettes of metrics/sprite_detection.py make it from any
video.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Contribution, VideoCondition
from vdm_jax.diffusion.process import Array
from vdm_jax.errors import UserError

SILHOUETTE = "silhouette"  # made of the data's own mask of its object
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def luma(x: Array) -> Array:
    """Return the brightness of videos [..., h, w, c] in [-1, 1]: [..., h, w, 1]."""
    if x.shape[-1] == 1:
        return x
    weights = jnp.asarray(LUMA_WEIGHTS, x.dtype)
    return (x * weights.reshape((1,) * (x.ndim - 1) + (3,))).sum(-1, keepdims=True)


def edges(x: Array) -> Array:
    """Return how steep the brightness is: [..., h, w, c] in [-1, 1] -> [..., h, w, 1].

    -1 is flat, 1 is half of the step from black to white, or more. It is the magnitude
    of Sobel's operator; at the border the outer pixels are repeated.
    """
    y = luma(x)[..., 0]
    y = jnp.pad(y, ((0, 0),) * (y.ndim - 2) + ((1, 1), (1, 1)), mode="edge")
    rows = y[..., :-2, :] + 2 * y[..., 1:-1, :] + y[..., 2:, :]
    columns = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    across = rows[..., 2:] - rows[..., :-2]
    down = columns[..., 2:, :] - columns[..., :-2, :]
    # A vertical step from black, -1, to white, 1, gives 8 by the operator.
    steepness = jnp.sqrt(jnp.square(across) + jnp.square(down)) / 4
    return 2 * jnp.minimum(steepness, 1)[..., None] - 1


# What pixels alone decide: name -> videos [..., h, w, c] -> controls [..., h, w, 1].
CONTROLS: dict[str, Callable[[Array], Array]] = {"luma": luma, "edges": edges}
KINDS = (SILHOUETTE, *CONTROLS)


@dataclasses.dataclass(frozen=True)
class Hint(VideoCondition):
    """hint [b, f, h, w, c] in [0, 1], by the condition's own name.

    shape      (frames, height, width, channels) of the model's videos
    array      name of its array, which is the name of the condition
    kinds      of `KINDS`, that training draws from
    """

    shape: tuple[int, int, int, int]
    array: str = "control_0"
    kinds: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Any) -> "Hint | None":
        """Return the condition of a config with a ControlNet, None for any other."""
        if "control" not in config:
            return None
        video, kinds = config.video, tuple(config.control.kinds)
        if not kinds:
            raise UserError(f"config.control.kinds=(): some of {', '.join(KINDS)}")
        if images := config.data.joint_image_frames:
            raise UserError(
                f"config.data.joint_image_frames={images}: a ControlNet learns from "
                "clips or from pictures alone: set it to 0"
            )
        shape = video.frames, video.height, video.width, video.channels
        return cls(shape, kinds=kinds)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """That of the model's videos."""
        return self.shape

    @property
    def reads(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The mask of the object in each frame, where silhouettes are learnt."""
        if SILHOUETTE not in self.kinds:
            return {}
        return {SILHOUETTE: ((*self.shape[:3], 1), np.uint8)}

    def controls(self, x: Array, number: Array, silhouette: Array | None) -> Array:
        """Return the control of kind `number` [b] of each video, in [-1, 1], like x."""
        made = []
        for kind in self.kinds:
            if kind == SILHOUETTE:
                assert silhouette is not None
                made.append(silhouette.astype(x.dtype) / 127.5 - 1)
            else:
                made.append(CONTROLS[kind](x))
        stacked = jnp.stack(made, axis=1)  # [b, kinds, f, h, w, 1]
        at = number.reshape(-1, 1, 1, 1, 1, 1)
        chosen = jnp.take_along_axis(stacked, at, axis=1)[:, 0]
        return jnp.broadcast_to(chosen, x.shape)

    def observation(self, x: Array, silhouette: Array | None = None) -> Array:
        """Return controls of videos x; the kinds take turns."""
        return self.controls(x, jnp.arange(len(x)) % len(self.kinds), silhouette)

    def prepare_batch(
        self,
        x: Array,
        key: Array,
        codec_params: Any = None,
        silhouette: Array | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Return the clips as they are, and a control of each, of a random kind.

        silhouette: uint8 [b, f, h, w, 1], 255 = the object.
        """
        number = jax.random.randint(key, x.shape[:1], 0, len(self.kinds))
        return x, self._hint(self.controls(x, number, silhouette))

    def from_observation(
        self, video: Array, t: Array, eps: Array, codec_params: Any = None
    ) -> dict[str, Any]:
        """Return the hint of a video of controls in [-1, 1]; it gets no noise."""
        return self._hint(video)

    def _hint(self, video: Array) -> dict[str, Any]:
        return {self.array: (video + 1) / 2}

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """A black video."""
        return {self.array: np.zeros((n[0], *self.shape), jnp.result_type(float))}

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """The hint, which a ControlNet reads."""
        return Contribution(hint=cond[self.array])

    def crop(self, cond: Cond, start: Array, window: Sequence[int]) -> dict[str, Any]:
        """Raise UserError: a hint of larger videos is not cut."""
        raise UserError(
            f"a ControlNet samples videos of {self.shape[:3]} frames, height and width"
        )
