"""What a condition is: data that a network is conditioned on, and how it enters.

A condition is one frozen dataclass in a file of its own, and a row of CONDITIONS. It
says which arrays it reads from a batch, what they are where nothing is known, and which
of the network's inputs it contributes to. Arrays are [n, ...] with n = (b,), one per
video, or in joint training (b, 1 + k): one for the video, then one for each of the k
independent images behind its frames, or (b, s) in a buffer of s packed videos. Dropping
a condition for classifier-free guidance flips its keep mask, bool [n], so the pytree
never changes and nothing recompiles.
"""

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.diffusion.process import Array

# A condition's random key is decided by its name. These had numbers before, which they
# keep, so that runs of that time resume bit for bit.
KEY_NUMBERS = {"label": 0, "text": 1, "low_resolution": 2}

# Arrays by name; "keep": masks by condition; "frame_mask"; "packing" of packed buffers.
Cond = dict[str, Any]


class Contribution(NamedTuple):
    """What a condition adds to the inputs of a network; None adds nothing.

    features: [b, dim] or [b, f, dim], summed with the noise level's before the MLP.
    tokens: [n, l, d] for cross-attention, with token_mask bool [n, l].
    concat: [b, f, h, w, k], channels concatenated with z.
    hint: [b, f, h', w', c] in [0, 1], what one ControlNet reads.
    """

    features: Array | None = None
    tokens: Array | None = None
    token_mask: Array | None = None
    concat: Array | None = None
    hint: Array | None = None


class Condition:
    """Interface of a condition; its subclasses are frozen dataclasses.

    dropout: probability with which training drops it. At 0 it is never dropped, so
      guidance keeps it in both branches.
    in_batch: whether its arrays come from the data set.
    """

    dropout: float = 0.0
    in_batch: ClassVar[bool] = True

    @property
    def required(self) -> tuple[str, ...]:
        """Names of arrays that it needs where it is dropped; sampling must give them.

        Of the others the first says what is known. Without that one it is dropped.
        """
        return ()

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """Return its arrays [n, ...] where nothing is known."""
        raise NotImplementedError

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """Return its contribution. Runs in the encoder's compact method.

        Flax modules that it makes are named after `name`. Where cond["keep"][name],
        bool [n], is false the contribution is that of a dropped condition.
        """
        raise NotImplementedError

    def augment(self, cond: Cond, key: Array) -> dict[str, Any]:
        """Return arrays that training changes at random; default none."""
        del cond, key
        return {}

    def keep_shape(self, cond: Cond) -> tuple[int, ...]:
        """Return n, read from the shape of its first array."""
        (name, one), *_ = self.null((1,)).items()
        return cond[name].shape[: cond[name].ndim - one.ndim + 1]


class VideoCondition(Condition):
    """A condition made of a video: of the clip in training, of a given one in sampling.

    Both go through `from_observation`, so that they are degraded alike.
    """

    in_batch: ClassVar[bool] = False

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(frames, height, width, channels) of the video that sampling is given."""
        raise NotImplementedError

    @property
    def reads(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Return shape, without the batch axis, and dtype of what it reads of a clip.

        By name, and apart from the video; default nothing. `observation` and
        `prepare_batch` take these arrays as arguments of their names.
        """
        return {}

    def observation(self, x: Array) -> Array:
        """Return what would have been given of the model's own videos x."""
        raise NotImplementedError

    def prepare_batch(
        self, x: Array, key: Array, codec_params: Any = None
    ) -> tuple[Array, dict[str, Any]]:
        """Return training's clips x [b, f, h, w, c], cropped or not, and its arrays.

        codec_params: of the model's codec, for a condition that encodes.
        """
        raise NotImplementedError

    def from_observation(
        self, video: Array, t: Array, eps: Array, codec_params: Any = None
    ) -> dict[str, Any]:
        """Return its arrays for given videos.

        t: time [b] of the noise that is added to them. eps: standard normal noise, like
        z. codec_params: as for `prepare_batch`.
        """
        raise NotImplementedError

    def crop(self, cond: Cond, start: Array, window: Sequence[int]) -> dict[str, Any]:
        """Return its arrays for a window of z.

        start: int [5], as of a slice of z. window: (frames, height, width).
        """
        raise NotImplementedError


def per_frame(emb: Array, frames: int) -> Array:
    """[b, 1 + k, d], for a video and k images, -> [b, frames, d]; [b, d] as it is."""
    if emb.ndim == 2:
        return emb
    images = emb.shape[1] - 1
    video = jnp.repeat(emb[:, :1], frames - images, axis=1)
    return jnp.concatenate([video, emb[:, 1:]], axis=1)


def add_features(vector: Array, features: Array) -> Array:
    """Sum of two embeddings, each [..., d] or [..., f, d]."""
    axes = max(vector.ndim, features.ndim)
    a, b = (x if x.ndim == axes else x[..., None, :] for x in (vector, features))
    return a + b


def condition_key(key: jax.Array, name: str) -> jax.Array:
    """Return a condition's own key: that of one does not depend on the others there."""
    number = KEY_NUMBERS.get(name, zlib.crc32(name.encode()))
    return jax.random.fold_in(key, number)
