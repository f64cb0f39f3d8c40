"""Folders of small text encoders."""

import json

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

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


def configure(folder, **values):
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
