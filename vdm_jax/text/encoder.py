"""The text encoder: tokenize, pad, and run a frozen network."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import files
from vdm_jax.errors import UserError

BATCH = 64  # texts per call of the network
MIN_PADDED_TOKENS = 8  # texts are padded to at least this many tokens

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class TextEmbedding(NamedTuple):
    """Embeddings of n texts with at most l tokens, in float32.

    tokens: [n, l, dim], 0 for padding.
    mask: bool [n, l], True for a token, special tokens included, and for CLIP padding.
    pooled: [n, dim], the mean over the tokens.
    """

    tokens: jax.Array
    mask: jax.Array
    pooled: jax.Array


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Maps strings to embeddings.

    Texts are padded to a power of two, in tokens and in number, so that the network is
    compiled for few shapes and not for every prompt.

    Attributes:
      name: as a user knows it.
      max_tokens: of a text, special tokens included.
      dim: of a token's embedding.
      tokenize: texts to the ids that the network reads, special tokens included. CLIP
        reads padding, and its texts are padded and cut there.
      network: (ids int [n, l], mask bool [n, l]) -> [n, l, dim].
      weights: the files of the parameters.
    """

    name: str
    max_tokens: int
    dim: int
    tokenize: Tokenize
    network: nn.Module
    params: Any
    weights: tuple[Path, ...] = ()

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """Embed n texts; "" is valid.

        Raises:
          UserError: an invalid text, or an embedding that is not finite.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError("pass a list of one text or more")
        for text in texts:
            if reason := files.why_invalid_text(text):
                raise UserError(f"the text {text[:40]!r} {reason}")
        ids = self.tokenize(texts)
        for text, row in zip(texts, ids, strict=True):
            if len(row) > self.max_tokens:
                raise UserError(
                    f"a text of {len(row)} tokens, {self.name} takes {self.max_tokens} "
                    f"(special tokens included): {text[:40]!r}..."
                )
        longest = max(map(len, ids))
        length = min(_power_of_two(longest, MIN_PADDED_TOKENS), self.max_tokens)
        batches = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
        parts = [self._encode(batch, length) for batch in batches]
        embedding = TextEmbedding(*map(jnp.concatenate, zip(*parts, strict=True)))
        finite = np.asarray(jnp.isfinite(embedding.tokens).all((1, 2)))
        if not finite.all():
            raise UserError(
                f"{self.name} gives values that are not finite for the text "
                f"{texts[int(finite.argmin())][:40]!r}: compute in float32, or check "
                "its weights and LoRAs"
            )
        return embedding

    def _encode(self, ids: list[list[int]], length: int) -> TextEmbedding:
        shape = _power_of_two(len(ids)), length
        padded, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = True
        tokens, pooled = _run(self.network, self.params, padded, mask)
        n = len(ids)
        return TextEmbedding(tokens[:n], jnp.asarray(mask[:n]), pooled[:n])

    @property
    def clip_skip(self) -> int:
        """The number of CLIP's last layers that are not read."""
        return getattr(self.network, "clip_skip", 0)

    def sha256(self) -> str:
        """Return the sha256 of the weights."""
        return weights_sha256(self.weights)


def weights_sha256(paths: Iterable[Path]) -> str:
    """Return the sha256 of files of weights, all in sequence."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@functools.partial(jax.jit, static_argnums=0)
def _run(network: nn.Module, params, ids: jax.Array, mask: jax.Array):
    """Return tokens [n, l, dim] and their mean [n, dim]."""
    tokens: Any = network.apply({"params": params}, ids, mask)
    tokens = jnp.where(mask[..., None], tokens.astype(jnp.float32), 0)
    # Rows that pad the batch have no tokens.
    return tokens, tokens.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]


def _power_of_two(number: int, least: int = 1) -> int:
    return max(least, 1 << (number - 1).bit_length())


def same_text_encoder(encoders: Sequence[Mapping[str, str]]) -> bool:
    """Return whether embeddings were made by one text encoder.

    encoders: for each embedding "text_encoder", a name, "text_encoder_sha256", of the
    weights ("" if unknown), and "clip_skip". Weights are compared if they are known,
    else names.
    """
    if len({encoder.get("clip_skip", 0) for encoder in encoders}) > 1:
        return False
    names, weights = (
        {encoder[key] for encoder in encoders}
        for key in ("text_encoder", "text_encoder_sha256")
    )
    known = weights - {""}
    return len(known) < 2 and (weights == known or len(names) == 1)
