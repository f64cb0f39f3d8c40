"""Pickles of arrays are read unchanged; no code of any other pickle is run."""

import builtins
import copyreg
import os
import pickle
import struct
import sys
import time

import numpy as np
import pytest

from vdm_jax.errors import UserError
from vdm_jax.pretrained import pickled


def trees():
    """Arrays of every supported kind and memory order."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, 3, 4)).astype(np.float32)
    return {
        "kernel": array,
        "turned": array.T,
        "part": array[:, 1:, ::2],
        "inside": {"point": np.array(2.5), "none": np.zeros((0, 3))},
        "pair": (np.arange(5), [np.array([True, False]), "name", ()]),
        "other end": np.arange(4, dtype=">i4"),
        "half": np.ones(3, np.float16),
    }


@pytest.mark.parametrize(
    "protocol", [3, 4]
)  # protocol 2 writes bytes as a call of a codec
def test_arrays_round_trip(tmp_path, protocol):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(trees(), protocol))
    tree = pickled.read(path)

    def same(a, b):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, strict=True)
            assert a.dtype.str == b.dtype.str
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for key in a:
                same(a[key], b[key])
        elif isinstance(a, str):
            assert a == b
        else:
            for x, y in zip(a, b, strict=True):
                same(x, y)

    same(trees(), tree)


def test_the_global_of_numpy_1_is_allowed(tmp_path):
    path = tmp_path / "a.pickle"
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    content = pickle.dumps(np.arange(3.0), 3)
    assert content.count(new) == 1
    path.write_bytes(content.replace(new, old))
    np.testing.assert_array_equal(pickled.read(path), np.arange(3.0))


class Calls:
    """An object whose pickle is a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


RAN = []


def run(*args):
    """Record a call, which must never happen."""
    RAN.append(args)


CALLS = [
    (os.system, "exit 1"),
    (builtins.eval, "1 + 1"),
    (builtins.getattr, "np", "load"),
    (np.load, "a.npy"),
    (np.array, [1.0]),
    (np.float32, 1.0),
    (copyreg._reconstructor, dict, dict, {}),
    (bytearray, b"x"),
    (run, 1),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_any_other_global_is_named_and_not_called(tmp_path, protocol, call):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps({"a": Calls(*call)}, protocol))
    named = rf"names '[^']+\.{call[0].__name__}', which is not an array"
    with pytest.raises(UserError, match=named) as caught:
        pickled.read(path)
    assert "\n" not in str(caught.value)
    assert RAN == []


def build(obj: bytes, state: bytes) -> bytes:
    return b"\x80\x04" + obj + state + b"b."


ARRAY = (
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"  # empty
)


def dtype(code: bytes, state: bytes = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xff"):
    made = b"cnumpy\ndtype\n(X" + len(code).to_bytes(4, "little") + code + b"\x89\x88tR"
    return made + state + b"J\xff\xff\xff\xffK\x00tb"


def array(kind: bytes, shape: bytes = b"(K\x02t", data: bytes = b"C\x08" + bytes(8)):
    return build(ARRAY, b"(K\x01" + shape + kind + b"\x89" + data + b"t")


def test_the_pickle_made_by_hand_is_an_array(tmp_path):
    path = tmp_path / "a.pickle"
    path.write_bytes(array(dtype(b"f4")))
    np.testing.assert_array_equal(pickled.read(path), np.zeros(2, np.float32))


LAUGHS = []
for _ in range(12):
    LAUGHS = [LAUGHS] * 8  # 8^12 lists in 300 bytes, no deeper than others


def nested(memoize: bytes, levels: int, before: bytes, after: bytes) -> bytes:
    """Nested pairs of one tuple, repeated by memo slot or by DUP."""
    tree = b"\x80\x04" + before + b")" + memoize
    for level in range(levels):
        again = b"h" + bytes([level]) if memoize else b"2"
        tree += again + b"\x86" + memoize
    return tree + after


REFUSED = {
    "object dtype": array(dtype(b"O8")),
    "object array": pickle.dumps(np.array([{}, run], object), 4),
    "record dtype": pickle.dumps(np.zeros(2, "f4,f4"), 4),
    "complex": pickle.dumps(np.array([1j]), 4),
    "void": pickle.dumps(np.zeros(2, "V8"), 4),
    "text": pickle.dumps(np.array(["a"]), 4),
    "time": pickle.dumps(np.zeros(2, "M8[s]"), 4),
    "scalar": pickle.dumps(np.float64(1.0), 4),
    "protocol 5": pickle.dumps(np.zeros(2), 5),  # another global: _frombuffer
    "array class": pickle.dumps(np.zeros(2).view(np.recarray), 4),
    "too few bytes": array(dtype(b"f4"), b"(K\x03t"),
    "too many bytes": array(dtype(b"f4"), b"(K\x01t"),
    "negative sizes": array(dtype(b"f4"), b"(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft"),
    "sizes that overflow": array(dtype(b"f4"), b"(" + b"J\0\0\0\x40" * 3 + b"t"),
    "boolean sizes": array(dtype(b"f8"), b"(\x88t"),
    "a list for bytes": array(dtype(b"f4"), data=b"(NNl"),
    "a list as long": array(dtype(b"f4"), data=b"(" + b"N" * 8 + b"l"),
    "text for bytes": array(dtype(b"f4"), data=b"X\x08\0\0\0" + b"a" * 8),
    "bytes for a dtype": array(b"C\x02f4"),
    "bytes for a shape": array(dtype(b"f4"), b"C\x02ab"),
    "fields": array(dtype(b"f4", b"(K\x03X\x01\0\0\0<N(N}J\xff\xff\xff\xff")),
    "subarray": array(dtype(b"f4", b"(K\x03X\x01\0\0\0<(NNtNNJ\xff\xff\xff\xff")),
    "no state": b"\x80\x04" + ARRAY + b".",
    "no arguments": b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n)\x81.",
    "a dtype": b"\x80\x04" + dtype(b"f4") + b".",
    "ndarray": b"\x80\x04cnumpy\nndarray\n.",
    "ndarray called": b"\x80\x04cnumpy\nndarray\n(K\x02tR.",
    "ndarray built": build(b"cnumpy\nndarray\n", b"(NX\x01\0\0\0a}t"),
    "reconstruct built": build(b"cnumpy._core.multiarray\n_reconstruct\n", b"}"),
    "text for a size": array(dtype(b"f4"), b"(X\x01\0\0\0aJ\0\xca\x9a\x3bt"),
    "a tuple of tuples for a type": nested(b"\x94", 26, b"cnumpy\ndtype\n", b"\x85R."),
    "a tuple of tuples for a key": nested(b"\x94", 31, b"}", b"K\x01s."),
    "the same by copies": nested(b"", 31, b"}", b"K\x01s."),
    "integer": pickle.dumps({"a": 1}, 4),
    "bytes": pickle.dumps({"a": b"1"}, 4),
    "set": pickle.dumps({"a"}, 4),
    "key that is no string": pickle.dumps({1: "a"}, 4),
    "persistent": b"\x80\x04K\x01Q.",
    "extension": b"\x80\x04\x82\x01.",
    "contains itself": b"\x80\x04]q\x00h\x00a.",
    "deep": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "laughs": pickle.dumps(LAUGHS, 4),
    "bytes after the end": pickle.dumps(np.arange(2.0), 4) + b"cos\nsystem\n.",
    "text file": b"hello\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pickles_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "a.pickle"
    path.write_bytes(REFUSED[name])
    with pytest.raises(
        UserError, match=r"a\.pickle is not a complete pickle"
    ) as caught:
        pickled.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text for a size", "shape is not integers"),
        ("a tuple of tuples for a type", "uses an object twice"),
        ("a tuple of tuples for a key", "uses an object twice"),
        ("the same by copies", "uses an object twice"),
    ],
)
def test_exponential_pickles_are_refused_before_they_are_loaded(tmp_path, name, reason):
    """A later refusal would take gigabytes or minutes."""
    path = tmp_path / "a.pickle"
    path.write_bytes(REFUSED[name])
    with pytest.raises(UserError, match=reason):
        pickled.read(path)


SMALL = pickle.dumps({"a": np.arange(3.0), "b": ("c", np.ones((2, 2)))}, 4)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.pickle"
    for end in range(len(SMALL)):
        path.write_bytes(SMALL[:end])
        with pytest.raises(UserError, match="not a complete pickle"):
            pickled.read(path)


def test_a_changed_byte_gives_arrays_or_an_error(tmp_path):
    """With any one byte changed the file is refused or is a tree of arrays."""
    path = tmp_path / "a.pickle"
    rng = np.random.default_rng(0)

    def plain(value):
        if isinstance(value, dict):
            return all(plain(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return all(plain(item) for item in value)
        return isinstance(value, (str, np.ndarray))

    refused = 0
    for place in range(len(SMALL)):
        changed = bytearray(SMALL)
        changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert plain(pickled.read(path))
        except UserError:
            refused += 1
    assert refused > len(SMALL) // 10


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pickle does not exist"):
        pickled.read(tmp_path / "none.pickle")


def test_a_small_pickle_cannot_allocate_a_large_memo(tmp_path):
    path = tmp_path / "five"
    path.write_bytes(b"\x80\x02K\x07r" + struct.pack("<I", 2**31) + b".")
    with pytest.raises(UserError, match="memo slot 2147483648"):
        pickled.read(path)


def integers(count):
    """Opcodes of integers that have the same hash."""
    for number in range(1, count):
        content = (number * sys.hash_info.modulus).to_bytes(10, "little")
        yield b"\x8a" + bytes([len(content)]) + content


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}(" + b"".join(n + b"N" for n in integers(30_000)) + b"u.",
        b"\x80\x04}" + b"".join(n + b"Ns" for n in integers(30_000)) + b".",
        b"\x80\x04\x8f(" + b"".join(integers(30_000)) + b"\x90.",
        b"\x80\x04(" + b"".join(integers(30_000)) + b"\x91.",
        b"(" + b"".join(b"I%d\n" % (n << 61) for n in range(30_000)) + b"d.",
    ],
)
def test_keys_of_one_hash_are_refused_before_they_are_compared(tmp_path, content):
    path = tmp_path / "same"
    path.write_bytes(content)
    before = time.process_time()
    with pytest.raises(UserError, match="integers of more|a set"):
        pickled.read(path)
    assert time.process_time() - before < 2  # they took half a minute
