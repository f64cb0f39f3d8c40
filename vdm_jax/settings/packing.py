"""The section of packed buffers, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class Packing:
    """Training on clips of several sizes in buffers of tokens (NaViT).

    Every batch has data.batch_size buffers, filled by the same sizes. Few configs have
    this section.
    """

    sizes: tuple[tuple[int, ...], ...] = setting(
        (),
        "(frames, height, width, clips in a batch) of each size; the first is video's",
        1,
        2**20,
    )
    tokens: int = setting(1024, "of a buffer", 1, 2**24)
