"""Record the token ids of transformers' CLIPTokenizer, for tests of ours.

    pip install transformers==5.24.0
    python -m tests.parity.record_clip_tokens BPE_FILE

BPE_FILE is open_clip/bpe_simple_vocab_16e6.txt.gz of the package open-clip-torch 3.3.0.
Writes tests/parity/clip_tokens.json: 200 strings, then some with exclamation marks, and
the ids of each without padding, for both of Stable Diffusion's padding tokens.
"""

import json
import sys
import tempfile
from pathlib import Path

import transformers  # pyright: ignore[reportMissingImports]

from tests.parity.clip_vocabulary import (
    END,
    START,
    write_padding,
    write_real_vocabulary,
)

FILE = Path(__file__).parent / "clip_tokens.json"
SUBJECTS = (
    "a photo of a cat", "a PHOTO of A Cat", "A red fox jumping over the lazy dog",
    "café au lait", "cafe\u0301 au lait", "naïve façade, Ångström", "Straße İstanbul",
    "a 🐱 on a 🚀", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "日本の猫 和 中文", "قطة و كلب",
    "кот и собака",
    "it's the dog's, they'll we've I'm you'd won't", "don’t “quote” — dash…",
    "3 cats, 42 dogs and 1000.50 birds", "e-mail: a_b@c.de #tag $5 50%",
    "supercalifragilisticexpialidocious", "(masterpiece:1.2), [blurry]", "x² + ½ = ﬁ",
    "a &amp; b <b>bold</b>",
)  # fmt: skip
STYLES = (
    "{}", "  {}  ", "{}  with  double   blanks", "\t{}\nin two lines", "{}, 4k, HDR",
    "oil painting of {} by Van Gogh", "{}?", "{} -- AND MORE", "{}...",
)  # fmt: skip
OTHERS = (
    "", " ", "?", "???", "a?b", "A ?", "hello??? world", "word " * 100,
    "Many different words " * 25, "a" * 300, "🐱" * 80,
    f"{START} a cat", f"a cat {END} a dog", f"a{END}b", "\u00a0non\u2003breaking",
    "zero\u200bwidth", "ＦＵＬＬ width", "Ǆ ǅ ǆ ß ẞ ΣΑΣ", "0123456789", "a\u0327\u0301",
)  # fmt: skip
# The second padding token makes "!" a special token for transformers.
EXCLAMATIONS = (
    "!", "!!!", "a!b", "A !", "hello!!! world", "a photo of a cat!", "wow! a cat",
    "Many different words! " * 25,
)  # fmt: skip


def main() -> None:
    """Record all ids."""
    strings = [s.format(subject) for s in STYLES for subject in SUBJECTS] + [*OTHERS]
    assert len(strings) == len(set(strings)) == 200
    strings += EXCLAMATIONS
    recorded = {"strings": strings, "transformers": transformers.__version__}
    for version, pad in (("1", END), ("2", "!")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_real_vocabulary(folder, Path(sys.argv[1]))
            write_padding(folder, pad)
            config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            tokenizer = transformers.CLIPTokenizer.from_pretrained(name)
            encoded = tokenizer(strings, truncation=True, max_length=77)
            padded = tokenizer(strings, padding="max_length", max_length=77)
            print(version, tokenizer.pad_token, padded["input_ids"][0][-3:])
            print(encoded["input_ids"][0], type(tokenizer))
        recorded[f"pad_{version}"] = tokenizer.pad_token_id
        recorded[f"ids_{version}"] = encoded["input_ids"]
    FILE.write_text(json.dumps(recorded, separators=(",", ":")))
    print(FILE, FILE.stat().st_size, "bytes")
    pairs = zip(recorded["ids_1"], recorded["ids_2"], strings, strict=True)
    other = [text for one, two, text in pairs if one != two]
    print(len(other), "differ between both:", *map(repr, other[:50]))


if __name__ == "__main__":
    main()
