"""Round trips of parameters in safetensors, and damaged or malicious files."""

import json
import os
import stat
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vdm_jax.errors import UserError
from vdm_jax.pretrained import params


def tree():
    return {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.ones(4)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip(tmp_path, dtype):
    path = tmp_path / "p.safetensors"
    params.write(path, tree(), dtype)
    back = params.read(path, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree())))
    for a, b in zip(jax.tree.leaves(tree()), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)  # small integers are exact in all of them
    assert list(tmp_path.iterdir()) == [path]


def test_non_contiguous_arrays_keep_their_values(tmp_path):
    path = tmp_path / "p.safetensors"
    transposed = {"a": np.arange(6.0).reshape(2, 3).T}
    params.write(path, transposed, np.float32)
    np.testing.assert_array_equal(params.read(path, transposed)["a"], transposed["a"])


def test_an_exported_file_has_the_permissions_of_the_umask(tmp_path):
    (tmp_path / "p.safetensors.part").symlink_to(tmp_path / "victim")
    before = os.umask(0o077)
    try:
        params.write(tmp_path / "p.safetensors", tree())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "p.safetensors").stat().st_mode) == 0o600
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("I64", 8), ("BOOL", 1)],
)
def test_weights_that_are_not_floats_are_refused_by_name(tmp_path, dtype, size):
    """They need scales, which the file does not have."""
    entry = {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * size]}
    path = tmp_path / "p.safetensors"
    path.write_bytes(raw(json.dumps({"b": entry}).encode(), bytes(4 * size)))
    with pytest.raises(UserError, match=f"b is {dtype}: give weights in F64, F32"):
        params.read(path, {"b": np.ones(4, np.float32)})


def raw(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SECOND = {**ENTRY, "data_offsets": [4, 8]}
DUPLICATE = f'{{"b": {json.dumps(ENTRY)}, "b": {json.dumps(SECOND)}}}'
OVERLAP = json.dumps({"a": ENTRY, "b": ENTRY})
UNKNOWN = json.dumps({"b": {**ENTRY, "dtype": "Q9"}})
OVERFLOW = json.dumps({"b": {**ENTRY, "shape": [2**62, 2**62]}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 200 << 20) + b"{}",
        raw(json.dumps({"b": ENTRY}).encode(), b"123"),
        raw(json.dumps({"b": ENTRY}).encode(), b"12345678"),
        raw(b"{not json"),
        raw(b"[" * 100_000),
        raw(b"[]"),
        raw(b'{"b": 1}'),
        raw(b'{"b": {}}'),
        raw(OVERLAP.encode(), b"1234"),
        raw(UNKNOWN.encode(), b"1234"),
        raw(OVERFLOW.encode(), b"1234"),
        raw(DUPLICATE.encode(), b"12345678"),
    ],
    ids=[
        "empty",
        "seven bytes",
        "huge header",
        "large header",
        "truncated",
        "trailing bytes",
        "not json",
        "deep",
        "a list",
        "no entry",
        "no type",
        "overlap",
        "unknown dtype",
        "shape overflow",
        "duplicate name",
    ],
)
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, content):
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.safetensors") as error:
        params.read(path, {"b": np.zeros(1)})
    assert "\n" not in str(error.value)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "p.ckpt"
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match="safetensors"):
        params.read(path, tree())
    with pytest.raises(UserError, match="does not exist"):
        params.read(tmp_path / "absent.safetensors", tree())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"b": np.ones(4)}, "lacks a/kernel"),
        ({"a/kernel": np.ones((2, 3)), "b": np.ones(4), "c": np.ones(1)}, "c"),
        (
            {"a/kernel": np.ones((3, 2)), "b": np.ones(4)},
            r"a/kernel has shape \(3, 2\)",
        ),
        ({"a/kernel": np.full((2, 3), np.nan), "b": np.ones(4)}, "not finite"),
    ],
)
def test_parameters_that_do_not_match_are_named(tmp_path, arrays, message):
    path = tmp_path / "p.safetensors"
    save_file(arrays, path)
    with pytest.raises(UserError, match=message):
        params.read(path, tree())


def test_an_overflow_of_half_precision_is_refused(tmp_path):
    with pytest.raises(UserError, match="b is not finite as float16"):
        params.write(tmp_path / "p.safetensors", {"b": np.array([1e6])})
