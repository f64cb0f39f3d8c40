"""The small ControlNets that record_controlnet.py records and tests repeat."""

from tests.parity.drawn import normal
from tests.parity.sd_cases import UNETS

# As config.json of a folder of diffusers, for the U-Nets of UNETS of the same names.
# "sd1" is for an autoencoder of factor 4, "sd2" for one of factor 8.
CONTROLS = {
    name: {
        **{
            option: value
            for option, value in UNETS[name].items()
            if option not in ("up_block_types", "sample_size")
        },
        "conditioning_embedding_out_channels": widths,
    }
    for name, widths in {"sd1": (4, 6, 8), "sd2": (4, 4, 6, 8)}.items()
}
NAMES = ("first", "second")  # of the two ControlNets, by which weights are drawn
SCALES = (0.75, 1.5)


def hint_stride(name: str) -> int:
    """Return the pixels of a hint to a pixel of z."""
    return 2 ** (len(CONTROLS[name]["conditioning_embedding_out_channels"]) - 1)


def hints(name: str) -> list:
    """Return hints [2, 3, h, w] in torch's order, one for each ControlNet."""
    side = 8 * hint_stride(name)
    return [
        abs(normal(f"{name}/input/hint_{which}", (2, 3, side, side))) / 3
        for which in NAMES
    ]
