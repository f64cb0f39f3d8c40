"""Text of captions for training batches."""

from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import text
from vdm_jax.checkpoint import on_first_process
from vdm_jax.data import pipeline
from vdm_jax.data.embeddings import INDEX, EmbeddingStore
from vdm_jax.data.source import Source
from vdm_jax.errors import UserError


class CaptionEmbeddings(EmbeddingStore):
    """Embeddings of the captions of batches, padded to the longest of a folder."""

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple]:
        """Return (shape, dtype) of the arrays for captions of this shape, by name."""
        return {
            "text": ((*shape, self.max_tokens, self.dim), np.float32),
            "text_mask": ((*shape, self.max_tokens), np.bool_),
        }

    def __call__(self, captions: Any) -> dict[str, np.ndarray]:
        """Return text [..., max_tokens, dim] and text_mask [..., max_tokens].

        captions: strings [...].
        """
        captions = np.asarray(captions)
        arrays = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in self.shapes(captions.shape).items()
        }
        for at, caption in np.ndenumerate(captions):
            tokens = self[str(caption)]
            arrays["text"][at][: len(tokens)] = tokens
            arrays["text_mask"][at][: len(tokens)] = True
        return arrays


def open_caption_embeddings(config: Any, source: Source) -> CaptionEmbeddings | None:
    """Open the folder config.data.text_embeddings_dir; None if it is "".

    The text encoder of the embeddings is filled in. If the folder has none and the
    source knows all of its captions, their embeddings are computed first.

    Raises:
      UserError: embeddings and no model that is conditioned on text, the reverse, or
        embeddings of another dimension.
    """
    folder = config.data.text_embeddings_dir
    dim = config.conditioning.text_dim
    if not folder and dim:
        raise UserError(
            f"config.conditioning.text_dim={dim} and no "
            "config.data.text_embeddings_dir: set it to the folder of embeddings that "
            "python -m vdm_jax.text wrote for the captions"
        )
    if not folder:
        return None
    on_first_process(lambda: _embed(source, folder))
    captions = CaptionEmbeddings(folder)
    if dim != captions.dim:
        raise UserError(
            f"config.conditioning.text_dim={dim}: the embeddings in {folder} have "
            f"dimension {captions.dim}; set it to that"
        )
    config.conditioning.text_encoder = captions.metadata["encoder"]
    config.conditioning.text_encoder_sha256 = captions.metadata.get("weights", "")
    return captions


def _embed(source: Source, folder: str) -> None:
    """Write embeddings of the captions of a source that lists them, if none exist."""
    captions = getattr(source, "captions", None)
    if captions is None or (Path(folder) / INDEX).is_file():
        return
    print(f"embedding {len(captions):,} captions in {folder}", flush=True)
    text.write_embeddings(folder, captions, text.load_encoder())


def add_text(
    batch: pipeline.Batch, captions: CaptionEmbeddings | None
) -> pipeline.Batch:
    """Return a batch with the text of its captions; unchanged without embeddings."""
    return batch if captions is None else batch | captions(batch["caption"])
