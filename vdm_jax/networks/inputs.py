"""The doors by which anything enters a network.

A network knows no label, no text, no fps and no camera: small encoders turn each of
them into one of these arrays (conditions/encoder.py), so that a new condition needs a
new encoder and no new argument. An absent door is None; it is a constant of the compiled
program, so dropping a condition for classifier-free guidance is a masked or null value
in the array, never a None.
"""

import jax
from flax import struct


@struct.dataclass
class Inputs:
    """What a network sees beside z [b, f, h, w, c].

    vector      [b, d] or [b, f, d]: enters by scale and shift after group norms
    tokens      [b, l, d]: read by the cross-attention parts; [b, 1 + k, l, d] where the
                k independent images behind a video's frames have their own
    token_mask  bool, as tokens but for d: True = attend; None = all
    concat      [b, f, h, w, k]: channels beside z's (known frames, a low-res video)
    frame_mask  bool [b, f]: True = a frame of the video, False = an independent image;
                None = all frames are of one video
    residuals   one array for each skip connection in the order they are made, then one
                for the middle's output (ControlNet, arXiv:2302.05543 section 3.2)
    """

    vector: jax.Array | None = None
    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    concat: jax.Array | None = None
    frame_mask: jax.Array | None = None
    residuals: tuple[jax.Array, ...] | None = None
