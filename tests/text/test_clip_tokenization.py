"""CLIP's tokenizer: parity with transformers, padding, files, errors."""

import json

import numpy as np
import pytest

from tests.parity.clip_vocabulary import (
    END,
    START,
    write_padding,
    write_real_vocabulary,
    write_vocabulary,
)
from tests.parity.recorded import FOLDER
from vdm_jax.data.assets import Asset, install_command
from vdm_jax.errors import UserError
from vdm_jax.text.tokenization import load_clip_tokenizer

# CLIP's merges as OpenAI published them. MIT.
MERGES = Asset(
    "open-clip-torch", "3.3.0", "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e5440",
)  # fmt: skip
NUM_STRINGS = 200  # of the recorded ones, without exclamation marks
FEW_MERGES = ["c a", "ca t</w>", "a b", "d o", "do g</w>"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return a folder with the published vocabulary."""
    if (path := MERGES.find()) is None or not MERGES.is_intact(path):
        package = f"{MERGES.package}=={MERGES.version}"
        pytest.skip(f"missing {package}; run: {install_command([MERGES])}")
    folder = tmp_path_factory.mktemp("clip")
    write_real_vocabulary(folder, path)
    return folder


@pytest.fixture(scope="module")
def recorded():
    return json.loads((FOLDER / "clip_tokens.json").read_text())


@pytest.fixture
def small(tmp_path):
    """Return a folder with five merges: "cat" and "dog" are words."""
    write_vocabulary(tmp_path, FEW_MERGES)
    return tmp_path


def vocabulary(folder):
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version, pad", [("1", END), ("2", "!")])
def test_ids_equal_transformers(real, recorded, version, pad):
    write_padding(real, pad)
    tokenize, num_ids = load_clip_tokenizer(real, 77)
    assert num_ids == 49408
    strings = recorded["strings"]
    expected = list(recorded[f"ids_{version}"][:NUM_STRINGS])
    # For transformers "!" is padding in texts, too, where it is the padding token.
    expected += recorded["ids_1"][NUM_STRINGS:]
    assert len(strings) > NUM_STRINGS == len(set(strings[:NUM_STRINGS]))
    found = tokenize(strings)
    fill = recorded[f"pad_{version}"]
    for text, row, ids in zip(strings, found, expected, strict=True):
        assert row == ids + [fill] * (77 - len(ids)), text


def test_a_known_text(real):
    write_padding(real, END)
    (ids,) = load_clip_tokenizer(real, 77)[0](["a photo of a cat"])
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:]) == {49407}


@pytest.mark.parametrize("pad, fill", [(END, END), ("!", "!")])
def test_padding_is_not_the_word_of_that_name(small, pad, fill):
    write_padding(small, pad)
    ids = vocabulary(small)
    (found,) = load_clip_tokenizer(small, 8)[0](["A !"])
    words = [START, "a</w>", "!</w>", END]
    assert found == [ids[word] for word in words] + [ids[fill]] * 4
    assert ids["!"] == 0 and ids["!</w>"] == 256


def test_words_end_and_are_lower_case(small):
    ids = vocabulary(small)
    found = load_clip_tokenizer(small, 9)[0](["CAT  catdog", "Dog\n1 2"])
    words = (
        [START, "cat</w>", "ca", "t", "do", "g", END],
        [START, "dog</w>", "1</w>", "2</w>", END],
    )
    # "catdog" has no "cat</w>" in it, and "dog</w>" at its end.
    words[0][4:6] = ["dog</w>"]
    for row, names in zip(found, words, strict=True):
        assert row[: len(names)] == [ids[name] for name in names]


def test_a_long_text_is_cut_with_one_line(small, capsys):
    tokenize, _ = load_clip_tokenizer(small, 8)
    ids = vocabulary(small)
    found = tokenize(["cat " * 6, "cat " * 7])
    assert found[0] == found[1] == [ids[START], *[ids["cat</w>"]] * 6, ids[END]]
    assert capsys.readouterr().err == (
        "a text of 9 tokens is cut to 8: 'cat cat cat cat cat cat cat '...\n"
    )


def test_a_folder_with_tokenizer_json_alone_is_read(small):
    """transformers 5 writes no vocab.json and no special_tokens_map.json."""
    expected = load_clip_tokenizer(small, 8)[0](["a cat, a dog"])
    model = {"vocab": vocabulary(small), "type": "BPE"}
    merges = [merge.split(" ") for merge in FEW_MERGES]
    for written in (merges, FEW_MERGES):  # before 2024 a merge was one string
        text = json.dumps({"model": model | {"merges": written}})
        (small / "tokenizer.json").write_text(text)
        (small / "merges.txt").unlink(missing_ok=True)
        assert load_clip_tokenizer(small, 8)[0](["a cat, a dog"]) == expected
    (small / "tokenizer_config.json").write_text('{"pad_token": "!"}')
    assert load_clip_tokenizer(small, 8)[0](["a cat"])[0][-1] == 0
    write_padding(small, END)  # special_tokens_map.json decides
    found = load_clip_tokenizer(small, 8)[0](["a cat"])
    assert found[0][-1] == vocabulary(small)[END]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("merges.txt", None, "has no vocab.json with merges.txt, no tokenizer.json"),
        ("merges.txt", "#version: 0.2\nx yy\n", "is not a tokenizer: "),
        ("vocab.json", "[]", "is not a tokenizer: "),
        ("vocab.json", '{"a": 0}', "has no "),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "has no <pad>"),
        ("special_tokens_map.json", "[", "special_tokens_map.json cannot be read"),
    ],
)
def test_bad_files_are_answered_in_one_line(small, name, text, message):
    if text is None:
        (small / name).unlink()
    else:
        (small / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_clip_tokenizer(small, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "first, message",
    [
        (-1, "ids of its tokens are no integers from 0"),
        ("0", "ids of its tokens are no integers from 0"),
        (0.5, "ids of its tokens are no integers from 0"),
        (True, "ids of its tokens are no integers from 0"),
        ([0], "ids of its tokens are no integers from 0"),
        (1 << 33, "ids of its tokens are no integers from 0"),
        (1, "several of its tokens have one id"),
        (None, "ids of its tokens are no integers from 0"),
    ],
)
@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_the_ids_of_a_vocabulary(small, first, message, file):
    words = vocabulary(small)
    words[next(iter(words))] = first
    written = words
    if file == "tokenizer.json":
        written = {"model": {"vocab": words, "merges": FEW_MERGES}}
        (small / "merges.txt").unlink()
    (small / file).write_text(json.dumps(written))
    own = "is not a tokenizer: |" if file == "vocab.json" else ""  # of the package
    with pytest.raises(UserError, match=own + message) as caught:
        load_clip_tokenizer(small, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("merges", [[[1, 2]], [["a"]], [1], None, ["a b c"]])
def test_merges_are_of_two_tokens(small, merges):
    model = {"vocab": vocabulary(small), "merges": merges}
    (small / "tokenizer.json").write_text(json.dumps({"model": model}))
    (small / "merges.txt").unlink()
    with pytest.raises(UserError, match="json is not a tokenizer of byte pairs$"):
        load_clip_tokenizer(small, 8)


def test_every_byte_has_a_token(real):
    """Unknown characters are bytes, and no text has an unknown token."""
    write_padding(real, END)
    tokenize, _ = load_clip_tokenizer(real, 77)
    texts = [chr(c) for c in np.random.default_rng(0).integers(0x4E00, 0x9FFF, 50)]
    for row in tokenize(texts):
        assert 49407 not in row[1 : row.index(49407)]
        assert len(row) == 77
