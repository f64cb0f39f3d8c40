"""The frozen description of a U-Net: hashable, so it is a Linen field as it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LevelSpec:
    """One resolution of the U-Net.

    channels  width of every residual block of the level
    blocks    residual blocks on the way down
    mixing    parts applied in this order after each residual block (blocks.PARTS)
    once      True: after the last block only, on the way down and on the way up
    """

    channels: int
    blocks: int
    mixing: tuple[str, ...] = ()
    once: bool = False

    def after(self, block: int, blocks: int) -> tuple[str, ...]:
        """The parts after a block, of so many on this way."""
        return () if self.once and block + 1 < blocks else self.mixing


@dataclass(frozen=True)
class UNetSpec:
    """A space-time U-Net; each level halves height and width, never the frames.

    levels             from full resolution down
    middle             parts between the two residual blocks at the lowest resolution
    head_dim           width of an attention head; heads = channels / head_dim
    patch              side of the space-to-depth stem; 1 = a plain 3x3 convolution
    extra_up_block     True (VDM): the stem's and each downsampling's output are skips
                       too, and a level has one block more on the way up than down.
                       False: as many blocks up as down, and only theirs are skips
    relative_position  "shaw" or "bias", in temporal attention (attention.POSITIONS)
    dropout            before the second convolution of a residual block
    remat              "none", or a policy by which blocks are recomputed in the
                       backward pass: "full" keeps nothing, "dots" the products
    dtype              of convolutions and matrix products: "float32" or "bfloat16"
    out_channels       channels of the output
    """

    levels: tuple[LevelSpec, ...]
    middle: tuple[str, ...] = ()
    head_dim: int = 64
    patch: int = 1
    extra_up_block: bool = True
    relative_position: str = "shaw"
    dropout: float = 0.0
    remat: str = "none"
    dtype: str = "float32"
    out_channels: int = 3
