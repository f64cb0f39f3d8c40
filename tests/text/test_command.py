"""``python -m vdm_jax.text``: vdm_jax/text/__main__.py."""

import pickle

import numpy as np
import pytest

from vdm_jax import text
from vdm_jax.data.embeddings import EmbeddingStore
from vdm_jax.errors import UserError
from vdm_jax.text import __main__ as command


def test_the_command_writes_embeddings_for_training(bert, tmp_path, capsys):
    captions, out = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("a red square\n\nleft\na red square\n")
    arguments = [f"--captions={captions}", f"--out={out}", f"--text_encoder={bert}"]
    command.main(arguments)
    assert capsys.readouterr().out == f"3 captions of up to 5 tokens in {out}\n"
    found = pickle.loads(pickle.dumps(EmbeddingStore(out)))
    encoder = text.load_encoder(bert)
    for caption, length in (("a red square", 5), ("left", 3), ("", 2)):
        expected = encoder([caption]).tokens[0, :length]
        assert found[caption].dtype == np.float32
        np.testing.assert_allclose(found[caption], expected, atol=2e-3)
    assert found.metadata["weights"] == encoder.sha256()
    assert found.metadata["encoder"] == str(bert)
    assert (found.dim, found.max_tokens, len(found)) == (24, 5, 3)


@pytest.mark.parametrize(
    "content, encoder, message",
    [
        ("left", "clip", "no text encoder 'clip': minilm, or"),
        ("\n", "", "has no captions"),
        ("red " * 31, "", "a text of 33 tokens, "),
        (None, "", "/captions.txt: No such file or directory: pass a folder of videos"),
    ],
)
def test_the_command_fails_in_one_line(bert, tmp_path, content, encoder, message):
    captions = tmp_path / "captions.txt"
    if content is not None:
        captions.write_text(content)
    out = tmp_path / "out"
    arguments = [f"--captions={captions}", f"--out={out}"]
    with pytest.raises(UserError) as caught:
        command.main([*arguments, f"--text_encoder={encoder or bert}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match="embeddings.json cannot be read: write it with"
    ):
        EmbeddingStore(out)


def test_a_retired_flag_is_answered_with_the_new_one(tmp_path):
    arguments = [f"--captions={tmp_path}", f"--out={tmp_path}", "--encoder=minilm"]
    with pytest.raises(UserError, match="^--encoder is --text_encoder now$"):
        command.main(arguments)
