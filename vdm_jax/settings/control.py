"""The section of a ControlNet, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class Control:
    """A ControlNet for the frozen model init_from. Few configs have this section."""

    kinds: tuple[str, ...] = setting(
        ("silhouette", "luma", "edges"),
        "controls it learns, one drawn for each clip; silhouettes are of sprites",
        choices="conditions.hint.KINDS",
    )
    hint_channels: tuple[int, ...] = setting(
        (16, 32, 96, 256),
        "widths of the hint encoder; each after the first halves height and width",
        1,
        2**16,
    )
