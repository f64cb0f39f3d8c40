"""Checkpoints that are damaged, or that cannot be read."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.checkpoint_cases import (
    assert_good,
    files,
    flip,
    largest,
    make,
    saved,
)
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError


def truncate(directory: Path):
    path = largest(directory)
    os.truncate(path, path.stat().st_size // 2)


def delete_half(directory: Path):
    for path in files(directory)[::2]:
        path.unlink()


def empty_directory(directory: Path):
    shutil.rmtree(directory)
    directory.mkdir()


def pipe_instead(directory: Path):
    path = largest(directory)
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a pipe": pipe_instead,
    "truncated": truncate,
    "emptied file": lambda d: os.truncate(largest(d), 0),
    "emptied": empty_directory,
    "half deleted": delete_half,
    "byte flipped": lambda d: flip(largest(d)),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_newest_is_set_aside_and_the_one_before_used(tmp_path, damage, capfd):
    saved(tmp_path, 1, 2).close()
    damage(tmp_path / "2")
    assert_good(tmp_path, 1)
    assert (tmp_path / "bad-2").is_dir() and not (tmp_path / "2").exists()
    error = capfd.readouterr().err
    assert str(tmp_path / "2") in error and "bad-2" in error
    saved(tmp_path, 2).close()  # the run makes that step again
    assert_good(tmp_path, 2)
    damage(tmp_path / "2")
    assert_good(tmp_path, 1)
    assert (tmp_path / "bad-2.2").is_dir()


def test_one_flipped_bit_in_any_file_is_noticed(tmp_path):
    saved(tmp_path / "a", 1, 2).close()
    for path in files(tmp_path / "a" / "2"):
        copy = tmp_path / "b"
        shutil.copytree(tmp_path / "a", copy)
        if path.stat().st_size:
            flip(copy / path.relative_to(tmp_path / "a"), random.Random(0).random())
        else:
            (copy / path.relative_to(tmp_path / "a")).write_bytes(b"x")
        assert Checkpoints(copy).newest_intact() == 1, path
        shutil.rmtree(copy)


def test_nothing_usable_left_is_never_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path).newest_intact() is None
    saved(tmp_path, 1, 2).close()
    for step in (1, 2):
        flip(largest(tmp_path / str(step)))
    for _ in range(2):  # the second start finds only what the first has set aside
        with pytest.raises(UserError) as caught:
            Checkpoints(tmp_path).newest_intact()
        assert caught.value.status == 4


def test_reading_changes_nothing(tmp_path):
    saved(tmp_path, 1, 2).close()
    flip(largest(tmp_path / "2"))
    (tmp_path / "saving-3").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.newest_intact() == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert Checkpoints(tmp_path / "none", read_only=True).newest_intact() is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"leaves.json": 1}',
     b'{"leaves.json":[1,2],"extra.json":[1,2],"state/\\u0000":[1,2]}',
     b'{"leaves.json":[1,2],"extra.json":[1,2],"state/' + b"x" * 300 + b'":[1,2]}'],
)  # fmt: skip
def test_a_manifest_that_is_not_what_was_written_is_damage(tmp_path, content):
    saved(tmp_path, 1, 2).close()
    (tmp_path / "2" / "manifest.json").write_bytes(content)
    assert_good(tmp_path, 1)
    assert (tmp_path / "bad-2").is_dir()


@pytest.mark.parametrize(
    "code",
    [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE],
    ids=os.strerror,
)
@pytest.mark.parametrize("what", ["manifest.json", "leaves.json", "state-", "/2"])
def test_what_cannot_be_read_for_a_moment_is_not_damaged(
    tmp_path, monkeypatch, code, what
):
    saved(tmp_path, 1, 2).close()
    (tmp_path / "saving-3").mkdir()
    before = sorted(tmp_path.rglob("*"))
    real = open

    def failing(path, *args, **kwargs):
        if what in str(path):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    checkpoints = Checkpoints(tmp_path, read_only=True)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        patch.setattr(Path, "open", failing)
        with pytest.raises(UserError, match=os.strerror(code).lower()) as caught:
            checkpoints.newest_intact()
    assert caught.value.status == 2 and "nothing is changed" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert_good(tmp_path, 2)


def test_a_directory_that_cannot_be_listed_is_never_a_fresh_start(
    tmp_path, monkeypatch
):
    checkpoints = saved(tmp_path, 1)

    def failing(path):
        raise PermissionError(errno.EACCES, "x")

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match="cannot be read .permission denied"):
        checkpoints.newest_intact()


def test_what_a_kill_has_left_may_be_a_link(tmp_path):
    """Nothing that it points to is removed or written."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("")
    place = tmp_path / "checkpoints"
    place.mkdir()
    (place / "saving-1").symlink_to(target)
    checkpoints = saved(place, 1)
    assert os.listdir(target) == ["file"]
    (place / "saving-2").symlink_to(target)
    with pytest.raises(UserError, match="saving-2 could not be written .file exists"):
        checkpoints.save(2, make(2), {})
    assert os.listdir(target) == ["file"]
    assert_good(place, 1)
