"""Frozen text encoders: strings to embeddings of their tokens.

    encoder = text.load_encoder()        # MiniLM, from an installed package
    encoder = text.load_encoder("DIR")   # a T5, BERT or CLIP encoder, Hugging Face's
    tokens, mask, pooled = encoder(["a red square moves left", ""])

Write the embeddings of all captions of a data set once, before training:

    python -m vdm_jax.text --captions=MY_VIDEOS --out=DIR [--text_encoder=DIR]
"""

from vdm_jax.text.encoder import TextEmbedding, TextEncoder, same_text_encoder
from vdm_jax.text.loading import clip_modules, load_encoder, tokenizer_folder
from vdm_jax.text.writing import write_embeddings

__all__ = [
    "TextEmbedding",
    "TextEncoder",
    "clip_modules",
    "load_encoder",
    "same_text_encoder",
    "tokenizer_folder",
    "write_embeddings",
]
