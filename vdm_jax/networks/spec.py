"""Frozen specifications of networks; they are hashable, so they can be Linen fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdm_jax.errors import UserError, check_multiple
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


def transformer_spec(
    cls: Any,
    section: dict[str, Any],
    kind: str,
    channels: int,
    sizes: Sequence[tuple[int, int]],
) -> Any:
    """Return the spec of a transformer, a `cls` with a patch_size, of its section.

    Raises:
      UserError: a field that is no setting of cls, or z of a size that the patch does
        not divide; it names the nearest valid value.
    """
    check_section(cls, section, kind)
    spec = cls(**section, out_channels=channels)
    for size in sizes:
        for field, pixels in zip(("height", "width"), size, strict=True):
            check_multiple(f"video.{field}", pixels, spec.patch_size, "patch_size")
    return spec
