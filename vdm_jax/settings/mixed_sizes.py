"""The section of training on clips of several sizes, which few configs have."""

from dataclasses import dataclass

from vdm_jax.settings.declaration import setting


@dataclass(frozen=True)
class MixedSizes:
    """Training on clips of several sizes.

    They are packed into buffers of tokens (NaViT), or each batch has one of the sizes.

    Few configs have this section.
    """

    rows: tuple[tuple[int, ...], ...] = setting(
        (),
        "(frames, height, width, clips in a batch) of each size; the first is video's",
        1,
        2**20,
    )
    buffer_tokens: int = setting(
        1024,
        "of a packed buffer, of which a batch has data.batch_size; 0: batches of one "
        "row each, in turn, the largest of data.batch_size clips",
        0,
        2**24,
    )
