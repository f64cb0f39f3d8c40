"""Folders of small text encoders."""

import json

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from tests.parity.clip_vocabulary import write_padding, write_vocabulary
from tests.parity.recorded import drawn_weights, load, write_weights

LEFT, RIGHT = "a red square moves left", "a red square moves right"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "square",
    "move",
    "##s",
    "left",
]


def write_wordpiece(folder):
    """Write BERT's tokenizer with ten words. Like MiniLM's it truncates and pads."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(5)
    made.enable_padding(length=5)
    made.save(str(folder / "tokenizer.json"))


def write_unigram(folder):
    """Write a tokenizer like T5's, with few pieces."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁red", -1.0),
        ("▁", -2.0),
    ]
    letters = [(letter, -3.0) for letter in "adeloqrstu"]
    made = tokenizers.Tokenizer(models.Unigram(pieces + letters, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))


def write_clip(folder, prefix=""):
    """Write a small CLIP text encoder, text_encoder/ next to tokenizer/.

    It has 16 positions and 48 token ids. prefix: of the names of its tensors.
    """
    recorded = load("clip_text")
    config = json.loads(str(recorded["gelu/config"]))
    config |= dict(vocab_size=520, max_position_embeddings=16)
    shapes = json.loads(str(recorded["gelu/shapes"]))
    shapes["embeddings.token_embedding.weight"][0] = 520
    tensors = {
        prefix + name: array
        for name, array in drawn_weights("clip_text/gelu", shapes).items()
    }
    if prefix:
        tensors[f"{prefix}embeddings.position_ids"] = np.arange(16)[None]
    encoder = folder / "text_encoder"
    write_weights(encoder, tensors, "model", "fp16", shards=2)
    (encoder / "config.json").write_text(json.dumps(config))
    write_vocabulary(folder / "tokenizer", ["c a", "ca t</w>"])
    write_padding(folder / "tokenizer", "!")
    return encoder


def configure(folder, **values):
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
