"""Labels: one value of each attribute, or none."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.conditions.base import Cond, Condition, Contribution, per_frame
from vdm_jax.diffusion.process import Array


@dataclasses.dataclass(frozen=True)
class Label(Condition):
    """Attributes of a video, int32 [n, attributes], -1 where one is unknown.

    vocabulary: for each attribute the names of its values.
    attribute_dropout: probability with which training makes one attribute unknown.
    null_embedding: an unknown value has an embedding, the last one of its table (DiT,
      arXiv:2212.09748); without it that is 0.
    """

    vocabulary: tuple[tuple[str, ...], ...]
    dropout: float = 0.0
    attribute_dropout: float = 0.0
    null_embedding: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "Label | None":
        """Return the condition of a config, None for a data set without labels."""
        vocabulary = tuple(tuple(names) for names in config.data.label_vocabulary or ())
        if not vocabulary:
            return None
        section = config.conditioning
        dropouts = section.label_dropout, section.attribute_dropout
        return cls(vocabulary, *dropouts, null_embedding=section.kind == "dit")

    def null(self, n: tuple[int, ...]) -> dict[str, Any]:
        """All attributes unknown."""
        return {"label": np.full((*n, len(self.vocabulary)), -1, np.int32)}

    def embed(self, name: str, cond: Cond, frames: int, dim: int) -> Contribution:
        """The sum of the values' embeddings."""
        cardinalities = tuple(len(names) for names in self.vocabulary)
        encode = LabelEncoder(cardinalities, dim, self.null_embedding, name=name)
        total = encode(cond["label"], cond["keep"][name])
        return Contribution(per_frame(total, frames))

    def augment(self, cond: Cond, key: Array) -> dict[str, Any]:
        """Make single attributes unknown."""
        label = cond["label"]
        unknown = jax.random.bernoulli(key, self.attribute_dropout, label.shape)
        return {"label": jnp.where(unknown, -1, label)}


class LabelEncoder(nn.Module):
    """Sum over attributes of the embedding of each value; 0 if unknown or dropped.

    labels: int [..., attributes], -1 for unknown. keep: bool [...]. -> [..., dim]
    null_embedding: as in `Label`.
    """

    cardinalities: tuple[int, ...]
    dim: int
    null_embedding: bool = False

    @nn.compact
    def __call__(self, labels: jax.Array, keep: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)  # float64 where x64 is enabled
        total = jnp.zeros((*labels.shape[:-1], self.dim), dtype)
        init = {"param_dtype": dtype, "embedding_init": nn.initializers.normal(1.0)}
        for i, size in enumerate(self.cardinalities):
            rows = size + self.null_embedding
            table = nn.Embed(rows, self.dim, name=f"attribute_{i}", **init)
            value = labels[..., i]
            known = keep & (value >= 0)
            if self.null_embedding:
                total += table(jnp.where(known, value, size))
            else:
                total += jnp.where(known[..., None], table(jnp.maximum(value, 0)), 0)
        return total
