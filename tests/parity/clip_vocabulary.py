"""CLIP's vocabulary, in the two files of a tokenizer's folder.

OpenAI published the merges. The vocabulary follows from them: the 256 bytes, the same
at the end of a word, the merged pairs, and the two special tokens.
"""

import gzip
import json
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
NUM_MERGES = 49152 - 256 - 2  # the published file has more, which CLIP does not use


def byte_letters() -> list[str]:
    """Return a printable letter for each byte, printable bytes first (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - 188)]


def write_vocabulary(folder: Path, merges: list[str]) -> None:
    """Write vocab.json and merges.txt of merges, each "a b"."""
    letters = byte_letters()
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges])
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")


def write_real_vocabulary(folder: Path, published: Path) -> None:
    """Write them from bpe_simple_vocab_16e6.txt.gz."""
    lines = gzip.decompress(published.read_bytes()).decode().split("\n")
    write_vocabulary(folder, lines[1 : NUM_MERGES + 1])


def write_padding(folder: Path, pad: str) -> None:
    """Write special_tokens_map.json as Stable Diffusion's folders have it.

    pad: END in version 1, "!" in version 2.
    """
    special = {
        name: {"content": token, "lstrip": False, "normalized": True}
        for name, token in (("bos_token", START), ("eos_token", END))
    }
    special |= {"unk_token": {"content": END}, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
