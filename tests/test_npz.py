"""Reading of npz files: vdm_jax/npz.py."""

import os
import zipfile

import numpy as np
import pytest

from vdm_jax import files, npz


def test_all_arrays_are_read(tmp_path):
    path = tmp_path / "a.npz"
    video = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
    np.savez_compressed(
        path, video=video, one=np.float32(2), f=np.asfortranarray(video)
    )
    arrays = npz.read_npz_arrays(path)
    assert sorted(arrays) == ["f", "one", "video"] and arrays["one"] == 2
    assert (arrays["video"] == video).all() and (arrays["f"] == video).all()
    arrays["video"][0] = 0  # writable
    with pytest.raises(FileNotFoundError):
        npz.read_npz_arrays(tmp_path / "b.npz")


def array_bytes(shape, content=b"", descr="'|u1'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_bytes("(1099511627776,)"), "not a whole npz"),  # a terabyte
        (array_bytes("(1099511627776,)", b"x" * 9), "not a whole npz"),
        (array_bytes("(4,)", b"abc"), "not a whole npz"),
        (array_bytes("(4,)", b"abcde"), "bytes after its array"),
        (array_bytes("(-3,)", b"abc"), "not a whole npz"),
        (array_bytes("(1,)", b"x" * 8, "'|O'"), "Object arrays cannot be loaded"),
        (array_bytes("(" * 4000), "not a whole npz"),
        (array_bytes("-" * 9000 + "1"), "not a whole npz"),
        (b"", "not a whole npz"),
        (b"nonsense", "not a whole npz"),
    ],
)
def test_an_array_must_fill_its_entry(tmp_path, content, reason):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("videos.npy", content)
    with pytest.raises(files.CorruptFile, match=reason):
        npz.read_npz_arrays(path)


def test_the_limit_holds_for_the_uncompressed_size(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1 << 20, np.uint8))
    assert path.stat().st_size < 1 << 12
    monkeypatch.setattr(npz, "memory_limit", lambda: 1 << 20)
    with pytest.raises(files.CorruptFile, match="need more than"):
        npz.read_npz_arrays(path)


@pytest.mark.parametrize("length", [0, 1, 40, 200, -1])
def test_a_truncated_or_changed_npz_is_corrupt(tmp_path, length):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(99))
    content = bytearray(path.read_bytes())
    if length == -1:
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:length] if length >= 0 else content)
    with pytest.raises(files.CorruptFile):
        npz.read_npz_arrays(path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(files.CorruptFile, match="not a regular file"):
        npz.read_npz_arrays(tmp_path / "a.npz")


def test_an_offset_before_the_start_of_the_file_is_corrupt(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(99))
    content = bytearray(path.read_bytes())
    content[-6:-2] = (1 << 20).to_bytes(4, "little")  # offset of the central directory
    path.write_bytes(content)
    with pytest.raises(files.CorruptFile):
        npz.read_npz_arrays(path)
