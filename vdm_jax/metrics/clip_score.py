"""How well images agree with texts, by embeddings of length 1 (image_text.py)."""

from collections.abc import Mapping

import numpy as np

from vdm_jax.metrics.tables import Row

COLUMNS = {"clip_score": ("CLIP score", ".2f"), "clip_score_error": ("±", ".2f")}
NOTE = (
    "100 max(cosine, 0) of a video's and its prompt's embeddings by the model of "
    "--image_text; ± is the standard error of the mean. Read it between 'held-out "
    "real' and 'held-out real, prompts of others'."
)


def clip_scores(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return 100 max(cosine, 0) of each pair (Hessel et al. 2021, arXiv:2104.08718).

    image, text: [n, d]. The factor is that of torchmetrics; the paper's is 2.5.
    """
    return 100 * np.maximum(np.einsum("nd,nd->n", image, text), 0)


def retrieval(
    image: np.ndarray, text: np.ndarray, group: np.ndarray, k: int = 0, seed: int = 0
) -> np.ndarray:
    """Return whether each image is nearest to a text of its own, bool [n].

    Args:
      image, text: [n, d], in pairs.
      group: int [n]; texts of one group describe the same.
      k: texts among which an image chooses: its own, and k - 1 of other groups, drawn
        by the seed. 0 for all.
    """
    cosine = image @ text.T
    same = group[:, None] == group[None]
    if not k:
        return same[np.arange(len(image)), cosine.argmax(1)]
    rng, found = np.random.default_rng(seed), []
    for i, row in enumerate(cosine):
        others = rng.choice(np.flatnonzero(~same[i]), k - 1, replace=False)
        found.append(row[i] > row[others].max())
    return np.array(found)


def score_rows(images: Mapping[str, np.ndarray], text: np.ndarray) -> list[Row]:
    """Return the mean score of each set of images, with its standard error.

    images: embeddings [n, d] by row name; text: those of their texts [n, d].
    """
    rows = []
    for name, image in images.items():
        scores = clip_scores(image, text)
        error = float(scores.std(ddof=1)) / len(scores) ** 0.5
        row = {"row": name, "clips": len(scores), "clip_score": float(scores.mean())}
        rows.append(row | {"clip_score_error": error})
    return rows
