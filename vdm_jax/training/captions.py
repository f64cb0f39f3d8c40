"""Text of captions for training batches."""

from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax import data, text
from vdm_jax.checkpoint import on_first_process
from vdm_jax.conditions.text import NULL_TEXT
from vdm_jax.data import pipeline
from vdm_jax.data.embeddings import INDEX, EmbeddingStore
from vdm_jax.data.source import Source
from vdm_jax.data.stored_latents import StoredLatents
from vdm_jax.errors import UserError


class CaptionEmbeddings(EmbeddingStore):
    """Embeddings of the captions of batches, padded to the longest of a folder.

    pooling: that of the text condition. Without it batches have the tokens of "" too.
    """

    def __init__(self, folder: str | Path, pooling: bool = True):
        super().__init__(folder)
        self.pooling = pooling

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple]:
        """Return (shape, dtype) of the arrays for captions of this shape, by name."""
        text = (*shape, self.max_tokens, self.dim), np.float32
        mask = (*shape, self.max_tokens), np.bool_
        shapes = {"text": text, "text_mask": mask}
        if not self.pooling:
            shapes |= zip(NULL_TEXT, (text, mask), strict=True)
        return shapes

    def __call__(self, captions: Any) -> dict[str, np.ndarray]:
        """Return text [..., max_tokens, dim] and text_mask [..., max_tokens].

        captions: strings [...]. null_text and null_text_mask have the same shapes.
        """
        captions = np.asarray(captions)
        shapes = self.shapes(captions.shape)
        arrays = {
            name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()
        }
        for at, caption in np.ndenumerate(captions):
            tokens = self[str(caption)]
            arrays["text"][at][: len(tokens)] = tokens
            arrays["text_mask"][at][: len(tokens)] = True
        if not self.pooling:
            tokens, (null_text, null_text_mask) = self[""], NULL_TEXT
            arrays[null_text][..., : len(tokens), :] = tokens
            arrays[null_text_mask][..., : len(tokens)] = True
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
    encoder = config.conditioning.text_encoder or "minilm"
    on_first_process(lambda: _embed(config, source, folder, encoder))
    captions = CaptionEmbeddings(folder, config.conditioning.text_pooling)
    if dim != captions.dim:
        raise UserError(
            f"config.conditioning.text_dim={dim}: the embeddings in {folder} have "
            f"dimension {captions.dim}; set it to that"
        )
    config.conditioning.text_encoder = captions.metadata["encoder"]
    config.conditioning.text_encoder_sha256 = captions.metadata.get("weights", "")
    config.conditioning.clip_skip = captions.metadata.get("clip_skip", 0)
    return captions


def _embed(config: Any, source: Source, folder: str, encoder: str) -> None:
    """Write embeddings of the captions of a source that lists them, if none exist."""
    if (Path(folder) / INDEX).is_file():
        return
    if isinstance(source, StoredLatents):
        source = data.open_videos(config)
    if (captions := getattr(source, "captions", None)) is None:
        return
    print(f"embedding {len(captions):,} captions in {folder}", flush=True)
    clip_skip = config.conditioning.clip_skip
    loaded = text.load_encoder(encoder, clip_skip=clip_skip)
    text.write_embeddings(folder, captions, loaded)


def add_text(
    batch: pipeline.Batch, captions: CaptionEmbeddings | None
) -> pipeline.Batch:
    """Return a batch with the text of its captions; unchanged without embeddings."""
    return batch if captions is None else batch | captions(batch["caption"])
