"""The conditioning inputs of a network.

A network knows no label, no text, no fps and no camera. Each condition (conditions/)
turns its data into one of these arrays, so that a new condition needs no new argument.
An absent input is None, which is a constant of the compiled program. A condition that
is dropped for classifier-free guidance is therefore a null value or a false mask in its
array, never a None.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Packing:
    """Where the tokens of packed buffers belong; each token is a frame of z.

    segments   int [b, n]: the video of each token, from 1; 0 is padding
    positions  int [b, n, 3]: its frame, row and column in that video
    frames     int [b, s]: of each video, 0 for none
    """

    segments: jax.Array
    positions: jax.Array
    frames: jax.Array

    def to_tokens(self, values: jax.Array, per_frame: bool = False) -> jax.Array:
        """Return the value of each token's video: [b, s, ...] -> [b, n, ...].

        per_frame: values are [b, s, f, ...], and each token has that of its frame. The
        padding has some video's.
        """
        index = jnp.maximum(self.segments - 1, 0)
        if per_frame:
            index = index * values.shape[2] + self.positions[..., 0]
            values = values.reshape(len(values), -1, *values.shape[3:])
        return jax.vmap(lambda rows, i: rows[i])(values, index)

    def to_videos(self, values: jax.Array, frames: int = 0) -> jax.Array:
        """Return the value that the tokens of each video have: [b, n] -> [b, s].

        frames: where it is not 0, that of each frame's tokens: [b, s, frames]. Videos
        and frames that are not there have 0.
        """
        shape = (*self.frames.shape, frames) if frames else self.frames.shape
        places, index = math.prod(shape[1:]), self.segments - 1
        if frames:
            index = index * frames + self.positions[..., 0]
        index = jnp.where(self.segments > 0, index, places)  # that is dropped
        empty = jnp.zeros((len(values), places), values.dtype)
        fill = jax.vmap(lambda row, i, own: row.at[i].set(own, mode="drop"))
        return fill(empty, index, values).reshape(shape)


@struct.dataclass
class Inputs:
    """Conditioning inputs of a network, in addition to z [b, f, h, w, c].

    vector      [b, d] or [b, f, d]: scale and shift after group norms
    noise_level [b, d'] or [b, f, d']: features of the noise level, which vector is made
                of: a ControlNet has layers of its own for them
    tokens      [b, l, d]: keys and values of cross-attention; [b, 1 + k, l, d] if the k
                independent images behind a video's frames have tokens of their own
    token_mask  bool, the shape of tokens without d: True = attend; None = all
    concat      [b, f, h, w, k]: channels concatenated with z's (known frames, a
                low-resolution video)
    frame_mask  bool [b, f]: True = a frame of the video, False = an independent image;
                None = all frames belong to one video
    residuals   one array per skip connection, in the order of the skips, then one for
                the output of the middle (ControlNet, arXiv:2302.05543 section 3.2)
    hints       one video [b, f, h', w', c] in [0, 1] per ControlNet, in pixels
    packing     of a buffer with the tokens of s videos; then vector is [b, s, d] or
                [b, s, f, d], tokens [b, s, l, d], token_mask [b, s, l]
    control_scales  [k] or [b, k]: what the residuals of each ControlNet are multiplied
                by; None = 1
    """

    vector: jax.Array | None = None
    noise_level: jax.Array | None = None
    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    concat: jax.Array | None = None
    frame_mask: jax.Array | None = None
    residuals: tuple[jax.Array, ...] | None = None
    hints: tuple[jax.Array, ...] = ()
    packing: Packing | None = None
    control_scales: jax.Array | None = None
