"""Caption embeddings on disk: vdm_jax/data/embeddings.py."""

import json
import os
import resource

import numpy as np
import pytest

from vdm_jax.data import embeddings, layout
from vdm_jax.data.embeddings import EmbeddingStore
from vdm_jax.errors import UserError

METADATA = {"encoder": "letters", "weights": "0", "width": 3}


class Letters:
    """Encodes a caption as one token plus one per letter; records its captions."""

    def __init__(self, stop=None):
        self.encoded, self.stop = [], stop

    def __call__(self, texts):
        if self.stop is not None and len(self.encoded) + len(texts) > self.stop:
            raise KeyboardInterrupt
        self.encoded += texts
        return [
            np.float32([[0.1, 1, 2], *([ord(c), 0, 0.5] for c in t)]) for t in texts
        ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD_RECORDS", 4)
    monkeypatch.setattr(embeddings, "BATCH", 2)


CAPTIONS = [f"caption {i} {'x' * i}" for i in range(10)]


def test_every_caption_has_its_own_embedding(tmp_path, small_shards):
    encode = Letters()
    made = embeddings.write(tmp_path, [*CAPTIONS, *CAPTIONS], encode, METADATA)
    assert sorted(encode.encoded) == sorted(["", *CAPTIONS])  # each once
    assert len(made) == 11
    for found in (made, EmbeddingStore(tmp_path)):
        for caption in ("", *CAPTIONS):
            tokens = found[caption]
            assert tokens.shape == (len(caption) + 1, 3) and tokens.dtype == np.float32
            np.testing.assert_allclose(tokens, Letters()([caption])[0], rtol=1e-3)
    assert len(names(tmp_path)) == 5  # three shards, keys, the index
    metadata = json.loads((tmp_path / "embeddings.json").read_text())
    assert metadata["encoder"] == "letters" and metadata["weights"] == "0"
    assert (metadata["width"], metadata["captions"]) == (3, 11)
    assert metadata["max_tokens"] == made.max_tokens == max(map(len, CAPTIONS)) + 1


@pytest.mark.parametrize("caption", ["", "caption 3", "Caption 3 xxx", "zz", "\ud800"])
def test_an_unknown_caption_is_an_error(tmp_path, caption):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    if caption:
        with pytest.raises(UserError, match="has no embedding of ") as caught:
            made[caption]
        assert "\n" not in str(caught.value) and repr(caption) in str(caught.value)
    else:  # the missing caption, always stored
        assert len(made[""]) == 1


def test_a_stopped_command_resumes(tmp_path, small_shards):
    stopped = Letters(stop=9)
    with pytest.raises(KeyboardInterrupt):
        embeddings.write(tmp_path, CAPTIONS, stopped, METADATA)
    assert len(names(tmp_path)) == 2  # two complete shards
    with pytest.raises(UserError, match="embeddings.json cannot be read: write it"):
        EmbeddingStore(tmp_path)
    rest = Letters()
    made = embeddings.write(tmp_path, CAPTIONS, rest, METADATA)
    assert len(names(tmp_path)) == 5
    assert len(rest.encoded) == 3 and not set(rest.encoded) & set(stopped.encoded[:8])
    assert made.max_tokens == 1 + max(map(len, CAPTIONS))
    again = Letters()
    embeddings.write(tmp_path, CAPTIONS, again, METADATA)
    assert again.encoded == []


def test_other_captions_or_weights_replace_the_old_at_the_end(tmp_path, small_shards):
    embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    (tmp_path / "notes.txt").write_text("not ours")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        embeddings.write(tmp_path, ["new"], Letters(stop=0), METADATA)
    assert names(tmp_path) == before and len(EmbeddingStore(tmp_path)["caption 0 "])
    made = embeddings.write(tmp_path, ["new"], Letters(), METADATA)
    assert len(made) == 2 and len(made["new"]) == 4
    assert len(names(tmp_path)) == 4 and "notes.txt" in names(tmp_path)
    encode = Letters()
    embeddings.write(tmp_path, ["new"], encode, METADATA | {"weights": "1"})
    assert sorted(encode.encoded) == ["", "new"]


def test_a_corrupt_shard_is_reported_and_written_again(tmp_path, small_shards):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    for name in made.metadata["shards"]:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name} cannot be read: write it"):
            EmbeddingStore(tmp_path)
        encode = Letters()
        made = embeddings.write(tmp_path, CAPTIONS, encode, METADATA)
        assert 0 < len(encode.encoded) <= 4
        assert (tmp_path / name).stat().st_size == len(whole)
    np.testing.assert_allclose(made[""], [[0.1, 1, 2]], rtol=1e-3)


def test_a_flipped_byte_is_an_error(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    (name,) = made.metadata["shards"]
    content = bytearray((tmp_path / name).read_bytes())
    place = (
        content.index(embeddings.caption_key("caption 3 xxx"))
        + embeddings.KEY_BYTES
        + 4
    )
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is corrupt"):
        EmbeddingStore(tmp_path)["caption 3 xxx"]
    encode = Letters()
    embeddings.write(tmp_path, CAPTIONS, encode, METADATA)
    assert len(encode.encoded) == 11


@pytest.mark.parametrize("missing", ["embeddings.json", "keys", "shards"])
def test_a_missing_file_is_reported_with_the_command(tmp_path, missing):
    metadata = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA).metadata
    name = {"keys": metadata["keys"], "shards": metadata["shards"][0]}.get(
        missing, missing
    )
    (tmp_path / name).unlink()
    with pytest.raises(
        UserError, match="write it with python -m vdm_jax.text"
    ) as caught:
        EmbeddingStore(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"width": 3}'])
def test_an_invalid_index_is_reported(tmp_path, content):
    (tmp_path / "embeddings.json").write_text(content)
    with pytest.raises(
        UserError, match="embeddings.json cannot be read: write it with"
    ):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda index, outside: index.update(keys=str(outside / index["keys"])),
        lambda index, outside: index.update(shards=[f"../out/{index['shards'][0]}"]),
        lambda index, outside: index.update(width=0),
        lambda index, outside: index.update(width="3"),
        lambda index, outside: index.update(keys=3),
        lambda index, outside: index.update(keys=""),
        lambda index, outside: index.update(shards=[]),
        lambda index, outside: index.update(shards=["a\0"]),
        lambda index, outside: index.update(width=1),
        lambda index, outside: index.update(max_tokens=None),
        lambda index, outside: index.update(max_tokens="x"),
        lambda index, outside: index.update(max_tokens=-1),
        lambda index, outside: index.update(max_tokens=10**12),
        lambda index, outside: index.update(max_tokens=1),
        lambda index, outside: index.update(encoder=3),
    ],
)
def test_a_changed_index_is_rejected(tmp_path, change):
    """It must name files of its own folder and the values that `write` wrote."""
    for folder in ("out", "in"):
        embeddings.write(tmp_path / folder, ["a"], Letters(), METADATA)
    path = tmp_path / "in" / "embeddings.json"
    metadata = json.loads(path.read_text())
    change(metadata, tmp_path / "out")
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="embeddings.json cannot be read"):
        EmbeddingStore(tmp_path / "in")


def test_keys_that_do_not_fill_their_file_are_rejected(tmp_path):
    embeddings.write(tmp_path, ["a"], Letters(), METADATA)
    (path,) = tmp_path.glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(2,), }      ", b"(1<<40,), }".ljust(13)))
    with pytest.raises(UserError, match="npy cannot be read: write it with"):
        EmbeddingStore(tmp_path)
    path.write_bytes(content.replace(b"(2,), }            ", b"(2199023255552,), }"))
    with pytest.raises(UserError, match="npy cannot be read: write it with"):
        EmbeddingStore(tmp_path)
    np.save(path, np.zeros(2))
    with pytest.raises(UserError, match="npy cannot be read: write it with"):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "half", "folder"])
def test_an_invalid_shard_is_reported(tmp_path, damage):
    (name,) = embeddings.write(tmp_path, ["a"], Letters(), METADATA).metadata["shards"]
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(UserError, match=f"{name} cannot be read: write it with"):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize("change", [{}, {"width": 1}])
def test_an_index_without_a_digest_is_written_again(tmp_path, change):
    """The first versions wrote none. The shards are kept."""
    metadata = embeddings.write(tmp_path, ["abc"], Letters(), METADATA).metadata
    del metadata["digest"]
    path = tmp_path / "embeddings.json"
    path.write_text(json.dumps(metadata | change))
    with pytest.raises(UserError, match="embeddings.json cannot be read: write it"):
        EmbeddingStore(tmp_path)
    encode = Letters()
    assert len(embeddings.write(tmp_path, ["abc"], encode, METADATA)["abc"]) == 4
    assert not encode.encoded


def test_a_wrong_number_of_keys_is_reported(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    np.save(tmp_path / made.metadata["keys"], made.keys[:-1])
    with pytest.raises(UserError, match="npy cannot be read: write it with"):
        EmbeddingStore(tmp_path)


def test_a_record_of_another_caption_is_an_error(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), METADATA)
    others = sorted(embeddings.caption_key(f"other {i}") for i in range(len(made)))
    np.save(tmp_path / made.metadata["keys"], np.array(others))
    with pytest.raises(UserError, match="is corrupt .a record does not match its key"):
        EmbeddingStore(tmp_path)["other 3"]


def test_values_that_overflow_float16_are_an_error(tmp_path):
    with pytest.raises(UserError, match="embedding of '.*' overflows float16"):
        embeddings.write(
            tmp_path, [], lambda t: [np.full((1, 3), 1e6)] * len(t), METADATA
        )
    assert names(tmp_path) == []


# --- captions of files and folders -----------------------------------------------


def test_the_captions_of_a_folder_are_those_of_its_videos(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text(" one \n\ntwo\n")
    (tmp_path / "sub/b.txt").write_bytes(b"\xff")
    (tmp_path / "lonely.txt").write_text("of no video")
    (tmp_path / "captions.jsonl").write_text('{"file": "c.mp4", "caption": "three"}\n')
    texts, skipped = layout.read_all_captions(tmp_path)
    assert sorted(texts) == ["one", "three", "two"]
    assert skipped == (("sub/b.mp4", "b.txt: not UTF-8 text"),)
    assert layout.read_all_captions(tmp_path / "captions.jsonl") == (["three"], ())
    assert layout.read_all_captions(tmp_path / "a.txt") == (["one", "two"], ())


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"\n", "has no captions: pass a folder of videos"),
        ("a.jsonl", b"", "has no captions: pass a folder of videos"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.txt", b"\xff", "a.txt: not UTF-8 text: pass a folder"),
        ("a.txt", None, "a.txt: No such file or directory: pass a folder"),
        ("a.jsonl", None, "a.jsonl: No such file or directory"),
        ("b/c.mp4", b"", "b has no captions: pass a folder of videos"),
    ],
)
def test_a_file_without_captions_is_reported_in_one_line(
    tmp_path, name, content, message
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        layout.read_all_captions(path.parent if name == "b/c.mp4" else path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_reported_in_one_line_and_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    noise = np.random.default_rng(0).normal(size=(8, 64))
    try:
        with pytest.raises(UserError, match="could not be written .file too large"):
            embeddings.write(
                tmp_path,
                map(str, range(400)),
                lambda texts: [noise] * len(texts),
                {"encoder": "x", "width": 64},
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)
