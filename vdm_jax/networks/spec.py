"""The frozen specification of a U-Net; it is hashable, so it can be a Linen field."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LevelSpec:
    """One resolution of the U-Net.

    channels  width of every residual block of the level
    blocks    number of residual blocks on the way down
    layers    names of layers (blocks.LAYERS) that follow each residual block, in order
    layers_after_last_block_only
              True: the layers follow the last block only, both down and up
    """

    channels: int
    blocks: int
    layers: tuple[str, ...] = ()
    layers_after_last_block_only: bool = False

    def layers_after(self, block: int, blocks: int) -> tuple[str, ...]:
        """Return the names of the layers after block number `block` of `blocks`."""
        return (
            ()
            if self.layers_after_last_block_only and block + 1 < blocks
            else self.layers
        )


@dataclass(frozen=True)
class UNetSpec:
    """A space-time U-Net. Each level halves height and width, never the frames.

    levels             from full resolution down
    mid_layers         names of layers between the two residual blocks of the middle, at
                       the lowest resolution
    head_dim           width of an attention head; num_heads = channels / head_dim
    patch_size         side of the patches that space-to-depth folds into channels in
                       front of the first convolution; 1 = none
    skip_downsamples   True (VDM): the outputs of conv_in and of each downsampling are
                       skips too, and a level has one more block up than down. False:
                       as many blocks up as down, and only their outputs are skips
    relative_position  "shaw" or "bias", in temporal attention
                       (attention.RELATIVE_POSITIONS)
    dropout            rate, before the second convolution of a residual block
    remat              "none", or the policy by which blocks are recomputed in the
                       backward pass: "full" saves nothing, "dots" saves the products
    dtype              of convolutions and matrix products: "float32" or "bfloat16"
    out_channels       channels of the output
    """

    levels: tuple[LevelSpec, ...]
    mid_layers: tuple[str, ...] = ()
    head_dim: int = 64
    patch_size: int = 1
    skip_downsamples: bool = True
    relative_position: str = "shaw"
    dropout: float = 0.0
    remat: str = "none"
    dtype: str = "float32"
    out_channels: int = 3
