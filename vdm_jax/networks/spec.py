"""The frozen specification of a U-Net; it is hashable, so it can be a Linen field."""

from dataclasses import dataclass

from vdm_jax.settings.sections import Level, UNet

LevelSpec = Level


@dataclass(frozen=True)
class UNetSpec(UNet):
    """A space-time U-Net with the settings of a config's network section.

    out_channels: channels of the output.
    """

    out_channels: int = 3
