"""Embed captions and write the embeddings to disk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vdm_jax.data import embeddings
from vdm_jax.text.encoder import TextEncoder


def write_embeddings(
    out: str | Path, captions: Iterable[str], encoder: TextEncoder, **metadata: str
) -> embeddings.EmbeddingStore:
    """Write the embeddings of captions; see `data.embeddings.write`.

    metadata: further entries of embeddings.json.
    """
    entries = metadata | {
        "encoder": encoder.name,
        "weights": encoder.sha256(),
        "width": encoder.dim,
        "clip_skip": encoder.clip_skip,
    }

    def encode(texts: list[str]) -> list[np.ndarray]:
        embedding = encoder(texts)
        tokens, mask = np.asarray(embedding.tokens), np.asarray(embedding.mask)
        return [row[keep] for row, keep in zip(tokens, mask, strict=True)]

    return embeddings.write(out, captions, encode, entries)
