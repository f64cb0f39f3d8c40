"""What is known of a sample besides its frames: captions, a label, scores."""

import dataclasses
from typing import Any

from vdm_jax.files import CorruptFile, why_invalid_text

CAPTION_KEYS = ("caption", "captions", "text")


@dataclasses.dataclass(frozen=True)
class Fields:
    """captions; the name of the label, None = unknown; scores by name."""

    captions: tuple[str, ...] = ()
    label: str | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)


def parse_fields(row: Any) -> Fields:
    """Return the fields of a JSON object; others in it are left out.

    It is {"captions": ["..."], "label": "cat", "scores": {"aesthetic": 5.1}}.

    Raises CorruptFile.
    """
    if not isinstance(row, dict):
        raise CorruptFile("not a JSON object")
    values = [row[key] for key in CAPTION_KEYS if row.get(key) is not None]
    texts = [t for v in values for t in (v if isinstance(v, list) else [v])]
    label, scores = row.get("label"), row.get("scores") or {}
    if not all(isinstance(text, str) for text in texts):
        raise CorruptFile("captions are texts")
    if not isinstance(label, str | int | None) or label == "":
        raise CorruptFile("a label is a text or a whole number")
    is_number = isinstance(scores, dict) and all(
        isinstance(value, int | float) for value in scores.values()
    )
    if not is_number:
        raise CorruptFile('scores are numbers: {"aesthetic": 5.1}')
    if reasons := [r for t in [*texts, str(label)] if (r := why_invalid_text(t))]:
        raise CorruptFile(f"a text {reasons[0]}")
    captions = tuple(text.strip() for text in texts if text.strip())
    return Fields(captions, None if label is None else str(label).strip(), scores)
