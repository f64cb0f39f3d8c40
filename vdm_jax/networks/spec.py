"""The frozen specification of a U-Net; it is hashable, so it can be a Linen field."""

from dataclasses import dataclass
from typing import Any

from vdm_jax.errors import UserError
from vdm_jax.settings import check, settings_of
from vdm_jax.settings.sections import Level, UNet

LevelSpec = Level


@dataclass(frozen=True)
class UNetSpec(UNet):
    """A space-time U-Net with the settings of a config's network section.

    out_channels: channels of the output.
    """

    out_channels: int = 3


def check_section(cls: Any, section: dict[str, Any], kind: str) -> None:
    """Raise UserError for fields of a network section that are not settings of cls."""
    settings = settings_of(cls)
    if unknown := section.keys() - settings.keys():
        raise UserError(
            f"config.network.{min(unknown)}: kind {kind!r} has no such setting"
        )
    check(settings, section, "config.network.")
