"""Embeddings on disk: found by the caption, whole or not at all, resumed."""

import json
import os
import resource

import numpy as np
import pytest

from vdm_jax.data import embeddings, layout
from vdm_jax.data.embeddings import EmbeddingStore
from vdm_jax.errors import UserError

ABOUT = {"encoder": "letters", "weights": "0", "width": 3}


class Letters:
    """One token a letter and one more, of width 3; counts what it was asked."""

    def __init__(self, stop=None):
        self.asked, self.stop = [], stop

    def __call__(self, texts):
        if self.stop is not None and len(self.asked) + len(texts) > self.stop:
            raise KeyboardInterrupt
        self.asked += texts
        return [
            np.float32([[0.1, 1, 2], *([ord(c), 0, 0.5] for c in t)]) for t in texts
        ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(embeddings, "RECORDS", 4)


CAPTIONS = [f"caption {i} {'x' * i}" for i in range(10)]


def test_every_caption_is_found_by_itself(tmp_path, small_shards):
    encode, counts = Letters(), []
    made = embeddings.write(
        tmp_path, [*CAPTIONS, *CAPTIONS], encode, ABOUT, batch=3, done=counts.append
    )
    assert sorted(encode.asked) == sorted(["", *CAPTIONS])  # each once
    assert sum(counts) == len(made) == 11
    for found in (made, EmbeddingStore(tmp_path)):
        for caption in ("", *CAPTIONS):
            tokens = found[caption]
            assert tokens.shape == (len(caption) + 1, 3) and tokens.dtype == np.float32
            np.testing.assert_allclose(tokens, Letters()([caption])[0], rtol=1e-3)
            assert caption in found
    assert len(names(tmp_path)) == 5  # three shards, keys, the index
    about = json.loads((tmp_path / "embeddings.json").read_text())
    assert about["encoder"] == "letters" and about["weights"] == "0"
    assert (about["width"], about["captions"]) == (3, 11)
    assert about["longest"] == made.longest == max(map(len, CAPTIONS)) + 1


@pytest.mark.parametrize("caption", ["", "caption 3", "Caption 3 xxx", "zz", "\ud800"])
def test_a_caption_that_was_not_there_is_named(tmp_path, caption):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    if caption:
        assert caption not in made
        with pytest.raises(UserError, match="has no embedding of ") as caught:
            made[caption]
        assert "\n" not in str(caught.value) and repr(caption) in str(caught.value)
    else:  # stands for no caption, and is always there
        assert len(made[""]) == 1


def test_a_command_that_was_stopped_goes_on(tmp_path, small_shards):
    stopped = Letters(stop=9)
    with pytest.raises(KeyboardInterrupt):
        embeddings.write(tmp_path, CAPTIONS, stopped, ABOUT, batch=2)
    assert len(names(tmp_path)) == 2  # two whole shards and no half one
    with pytest.raises(UserError, match="has no embeddings.json"):
        EmbeddingStore(tmp_path)
    rest = Letters()
    mark = names(tmp_path)[0].split("-")[0]
    (tmp_path / f".{mark}-00002-of-00003.array_record.1.tmp").write_bytes(b"killed")
    made = embeddings.write(tmp_path, CAPTIONS, rest, ABOUT, batch=2)
    assert len(names(tmp_path)) == 5
    assert len(rest.asked) == 3 and not set(rest.asked) & set(stopped.asked[:8])
    assert made.longest == 1 + max(map(len, CAPTIONS))
    again = Letters()
    embeddings.write(tmp_path, CAPTIONS, again, ABOUT)
    assert again.asked == []


def test_other_captions_or_weights_replace_all_at_the_end(tmp_path, small_shards):
    embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    (tmp_path / "notes.txt").write_text("not ours")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        embeddings.write(tmp_path, ["new"], Letters(stop=0), ABOUT)
    assert names(tmp_path) == before and "caption 0 " in EmbeddingStore(tmp_path)
    made = embeddings.write(tmp_path, ["new"], Letters(), ABOUT)
    assert "new" in made and "caption 0 " not in made
    assert len(names(tmp_path)) == 4 and "notes.txt" in names(tmp_path)
    encode = Letters()
    embeddings.write(tmp_path, ["new"], encode, ABOUT | {"weights": "1"})
    assert sorted(encode.asked) == ["", "new"]


def test_a_shard_that_is_damaged_is_told_and_made_again(tmp_path, small_shards):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    for name in made.metadata["shards"]:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name} cannot be read: write it"):
            EmbeddingStore(tmp_path)
        encode = Letters()
        made = embeddings.write(tmp_path, CAPTIONS, encode, ABOUT)
        assert 0 < len(encode.asked) <= 4
        assert (tmp_path / name).stat().st_size == len(whole)
    np.testing.assert_allclose(made[""], [[0.1, 1, 2]], rtol=1e-3)


def test_a_flipped_byte_is_no_embedding(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    (name,) = made.metadata["shards"]
    content = bytearray((tmp_path / name).read_bytes())
    place = (
        content.index(embeddings.caption_key("caption 3 xxx"))
        + embeddings.KEY_BYTES
        + 4
    )
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        EmbeddingStore(tmp_path)["caption 3 xxx"]
    encode = Letters()
    embeddings.write(tmp_path, CAPTIONS, encode, ABOUT)
    assert len(encode.asked) == 11


@pytest.mark.parametrize("lost", ["embeddings.json", "keys", "shards"])
def test_what_is_missing_is_told_with_the_command(tmp_path, lost):
    about = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT).metadata
    name = {"keys": about["keys"], "shards": about["shards"][0]}.get(lost, lost)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="write it by python -m vdm_jax.text") as caught:
        EmbeddingStore(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"width": 3}'])
def test_an_index_that_is_none_is_told(tmp_path, content):
    (tmp_path / "embeddings.json").write_text(content)
    with pytest.raises(UserError, match="embeddings.json cannot be read: write it by"):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, outside: about.update(keys=str(outside / about["keys"])),
        lambda about, outside: about.update(shards=[f"../out/{about['shards'][0]}"]),
        lambda about, outside: about.update(width=0),
        lambda about, outside: about.update(width="3"),
        lambda about, outside: about.update(keys=3),
        lambda about, outside: about.update(keys=""),
        lambda about, outside: about.update(shards=[]),
        lambda about, outside: about.update(shards=["a\0"]),
        lambda about, outside: about.update(width=1),
        lambda about, outside: about.update(longest=None),
        lambda about, outside: about.update(longest="x"),
        lambda about, outside: about.update(longest=-1),
        lambda about, outside: about.update(longest=10**12),
        lambda about, outside: about.update(longest=1),
        lambda about, outside: about.update(encoder=3),
    ],
)
def test_an_index_names_files_of_its_own_folder(tmp_path, change):
    """And says what `write` said: a width that divides others is no other width."""
    for folder in ("out", "in"):
        embeddings.write(tmp_path / folder, ["a"], Letters(), ABOUT)
    path = tmp_path / "in" / "embeddings.json"
    about = json.loads(path.read_text())
    change(about, tmp_path / "out")
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="embeddings.json cannot be read"):
        EmbeddingStore(tmp_path / "in")


def test_keys_take_what_their_file_holds(tmp_path):
    embeddings.write(tmp_path, ["a"], Letters(), ABOUT)
    (path,) = tmp_path.glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(2,), }      ", b"(1<<40,), }".ljust(13)))
    with pytest.raises(UserError, match="npy cannot be read: write it by"):
        EmbeddingStore(tmp_path)
    path.write_bytes(content.replace(b"(2,), }            ", b"(2199023255552,), }"))
    with pytest.raises(UserError, match="npy cannot be read: write it by"):
        EmbeddingStore(tmp_path)
    np.save(path, np.zeros(2))
    with pytest.raises(UserError, match="keys float64"):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "half", "folder"])
def test_a_shard_that_is_none_is_named(tmp_path, damage):
    (name,) = embeddings.write(tmp_path, ["a"], Letters(), ABOUT).metadata["shards"]
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with pytest.raises(UserError, match=f"{name} cannot be read: write it by"):
        EmbeddingStore(tmp_path)


def test_a_record_longer_than_the_longest_is_told(tmp_path):
    """Where the index has no digest, as an earlier version wrote it."""
    about = embeddings.write(tmp_path, ["abc"], Letters(), ABOUT).metadata
    del about["digest"]
    path = tmp_path / "embeddings.json"
    path.write_text(json.dumps(about))
    assert len(EmbeddingStore(tmp_path)["abc"]) == 4
    path.write_text(json.dumps(about | {"longest": 2}))
    with pytest.raises(UserError, match="longest=2, a record has 4 tokens"):
        EmbeddingStore(tmp_path)["abc"]


def test_keys_of_other_records_are_told(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    np.save(tmp_path / made.metadata["keys"], made.keys[:-1])
    with pytest.raises(UserError, match="11 records of 10: write it by"):
        EmbeddingStore(tmp_path)


def test_a_record_of_another_caption_is_not_taken(tmp_path):
    made = embeddings.write(tmp_path, CAPTIONS, Letters(), ABOUT)
    others = sorted(embeddings.caption_key(f"other {i}") for i in range(len(made)))
    np.save(tmp_path / made.metadata["keys"], np.array(others))
    with pytest.raises(UserError, match="is damaged: a record is not the one of its"):
        EmbeddingStore(tmp_path)["other 3"]


def test_what_float16_does_not_hold_is_not_written(tmp_path):
    with pytest.raises(UserError, match="embedding of '.*' is no float16"):
        embeddings.write(tmp_path, [], lambda t: [np.full((1, 3), 1e6)] * len(t), ABOUT)
    assert names(tmp_path) == []


# --- captions of files and folders -----------------------------------------------


def test_captions_of_a_folder_are_those_that_its_videos_have(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text(" one \n\ntwo\n")
    (tmp_path / "sub/b.txt").write_bytes(b"\xff")
    (tmp_path / "lonely.txt").write_text("of no video")
    (tmp_path / "captions.jsonl").write_text('{"file": "c.mp4", "caption": "three"}\n')
    texts, dropped = layout.read_all_captions(tmp_path)
    assert sorted(texts) == ["one", "three", "two"]
    assert dropped == [("sub/b.mp4", "caption b.txt: not UTF-8 text")]
    assert layout.read_all_captions(tmp_path / "captions.jsonl") == (["three"], [])
    assert layout.read_all_captions(tmp_path / "a.txt") == (["one", "two"], [])


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", b"\n", "has no captions: give a folder of videos"),
        ("a.jsonl", b"", "has no captions: give a folder of videos"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.txt", b"\xff", "a.txt: not UTF-8 text: give a folder"),
        ("a.txt", None, "a.txt: No such file or directory: give a folder"),
        ("a.jsonl", None, "a.jsonl: No such file or directory"),
        ("b/c.mp4", b"", "b has no captions: give a folder of videos"),
    ],
)
def test_where_no_caption_is_one_line_says_so(tmp_path, name, content, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        layout.read_all_captions(path.parent if name == "b/c.mp4" else path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
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
