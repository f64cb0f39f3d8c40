"""Pickled weights are read unchanged; no code of any other pickle is run."""

import builtins
import copyreg
import os
import pickle
import struct

import numpy as np
import pytest

from tests.pretrained.record_torch_files import FILE, expected
from vdm_jax.data.assets import EFFICIENTNET, install_command
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
        "numbers": {"bool": np.array([True, False]), "half": np.ones(3, np.float16)},
        "other end": np.arange(4, dtype=">i4"),
    }


@pytest.mark.parametrize(
    "protocol", [3, 4]
)  # protocol 2 writes bytes as a call of a codec
def test_arrays_round_trip(tmp_path, protocol):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(trees(), protocol))

    def check(a, b):
        assert type(a) is type(b)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                check(a[key], b[key])
        else:
            np.testing.assert_array_equal(a, b, strict=True)
            assert a.dtype.str == b.dtype.str

    check(trees(), pickled.read(path))


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
    named = rf"names '[^']+\.{call[0].__name__}', which is not allowed"
    for read in (pickled.read, pickled.read_state_dict):
        with pytest.raises(UserError, match=named) as caught:
            read(path)
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


REFUSED = {
    "object dtype": array(dtype(b"O8")),
    "object dtype by its order": array(
        dtype(b"O", b"(K\x03X\x03\0\0\0f4,NNNJ\xff\xff\xff\xff")
    ),
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
    "negative sizes": array(dtype(b"f4"), b"(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft"),
    "sizes that overflow": array(dtype(b"f4"), b"(" + b"J\0\0\0\x40" * 3 + b"t"),
    "a list for bytes": array(dtype(b"f4"), data=b"(NNl"),
    "text for bytes": array(dtype(b"f4"), data=b"X\x08\0\0\0" + b"a" * 8),
    "bytes for a dtype": array(b"C\x02f4"),
    "bytes for a shape": array(dtype(b"f4"), b"C\x02ab"),
    "no arguments": b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n)\x81K\x07b.",
    "a dtype": b"\x80\x04" + dtype(b"f4") + b".",
    "ndarray called": b"\x80\x04cnumpy\nndarray\n(K\x02tR.",
    "reconstruct built": build(b"cnumpy._core.multiarray\n_reconstruct\n", b"}"),
    "integer": pickle.dumps({"a": 1}, 4),
    "string": pickle.dumps({"a": "b"}, 4),
    "set": pickle.dumps({"a"}, 4),
    "persistent": b"\x80\x04K\x01Q.",
    "extension": b"\x80\x04\x82\x01.",
    "text file": b"hello\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pickles_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "a.pickle"
    path.write_bytes(REFUSED[name])
    for read in (pickled.read, pickled.read_state_dict):
        with pytest.raises(UserError, match=r"a\.pickle is not a complete") as caught:
            read(path)
        assert "\n" not in str(caught.value)


SMALL = pickle.dumps({"a": np.arange(3.0), "b": {"c": np.ones((2, 2))}}, 4)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.pickle"
    for end in range(len(SMALL)):
        path.write_bytes(SMALL[:end])
        with pytest.raises(UserError, match="not a complete pickle"):
            pickled.read(path)


# --- state dicts of torch ---------------------------------------------------------


def test_a_file_of_torch_is_read():
    tensors = pickled.read_state_dict(FILE)
    assert list(tensors) == list(expected())
    for key, array in expected().items():
        np.testing.assert_array_equal(tensors[key], array, strict=True)
    assert tensors["turned"].strides == (4, 48, 16)
    assert np.shares_memory(tensors["turned"], tensors["base"])


def test_the_weights_of_a_package_are_read():
    path = EFFICIENTNET.find()
    if path is None:
        pytest.skip(f"missing weights; run: {install_command([EFFICIENTNET])}")
    tensors = pickled.read_state_dict(path)
    assert len(tensors) == 296 and sum(x.size for x in tensors.values()) == 4_694_073
    assert all(x.min() >= 0 for n, x in tensors.items() if n.endswith("running_var"))


def plain(value) -> bytes:
    """The opcodes that push a value of builtin types."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    kind=b"ctorch\nFloatStorage\n", count=6, offset=0, shape=(2, 3), strides=(3, 1)
):
    """The opcodes that push a tensor."""
    pid = plain("storage") + kind + plain("0") + plain("cpu") + plain(count) + b"N"
    view = plain(offset) + plain(shape) + plain(strides) + plain(False)
    rest = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + pid + b"tQ" + view + rest + b"tR"


def state(**entries: bytes) -> bytes:
    items = b"".join(plain(name) + push for name, push in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


VALUES = np.arange(6, dtype="<f4")


def torch_file(path, description, magic=pickled.TORCH_MAGIC[0], little=True):
    start = [magic, pickled.TORCH_MAGIC[1], {"little_endian": little}]
    values = struct.pack("<q", 6) + VALUES.tobytes()
    parts = [pickle.dumps(x, 2) for x in start] + [description, pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(parts) + values)
    return path


@pytest.mark.parametrize(
    "shape, strides, offset",
    [
        ((2, 3), (3, 1), 0), ((3, 2), (1, 3), 0), ((2,), (5,), 0), ((2, 2), (1, 1), 2),
        ((), (), 5),
    ],
)  # fmt: skip
def test_views_of_a_storage(tmp_path, shape, strides, offset):
    push = tensor(shape=shape, strides=strides, offset=offset)
    path = torch_file(tmp_path / "w.pth", state(a=push, b=push))
    tensors = pickled.read_state_dict(path)
    for place in np.ndindex(shape):
        at = offset + sum(i * s for i, s in zip(place, strides, strict=True))
        assert tensors["a"][place] == tensors["b"][place] == VALUES[at]


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": 7},
        {"offset": -1},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"shape": (3, 3)},
        {"shape": (2**39, 2**39), "strides": (0, 0)},
        {"shape": (-2, -3)},
        {"shape": (2.0, 3)},
        {"shape": (2**70, 3)},
        {"shape": (2, 3, 1)},
        {"count": 7},
        {"count": 5},
        {"count": 2**60},
        {"count": "6"},
        {"kind": b"ctorch\nDoubleStorage\n"},
        {"kind": plain("O")},
    ],
)
def test_no_view_leaves_its_storage(tmp_path, change):
    path = torch_file(tmp_path / "w.pth", state(a=tensor(**change)))
    with pytest.raises(UserError, match="w.pth is not a complete state dict"):
        pickled.read_state_dict(path)


OTHER_GLOBALS = {
    "global": b"\x80\x02cposix\nsystem\n(" + plain("touch /tmp/x") + b"tR.",
    "stack": b"\x80\x04" + plain("posix") + plain("system") + b"\x93.",
    "instance": b"(" + plain("touch /tmp/x") + b"iposix\nsystem\n.",
    "object": b"\x80\x02(cposix\nsystem\n" + plain("touch /tmp/x") + b"o.",
    "builtin": b"\x80\x02c__builtin__\neval\n(" + plain("1") + b"tR.",
    "dotted": b"\x80\x04" + plain("collections") + plain("OrderedDict.pop") + b"\x93.",
    "module": b"\x80\x02ctorch.nn\nLinear\n.",
    "storage": b"\x80\x02ctorch\nBFloat16Storage\n.",
    "inside": state(a=b"cnumpy\nload\n"),
}


@pytest.mark.parametrize("name", OTHER_GLOBALS)
def test_other_globals_are_named_and_not_imported(tmp_path, name):
    path = torch_file(tmp_path / "w.pth", OTHER_GLOBALS[name])
    with pytest.raises(UserError, match=r"w.pth .* names '\w.*', which is not allowed"):
        pickled.read_state_dict(path)


def test_a_pickle_cannot_alter_existing_objects(tmp_path):
    """BUILD sets attributes of the object before it."""
    defaults = plain({"__defaults__": (1,), "__kwdefaults__": {"a": 1}})
    function = b"ctorch._utils\n_rebuild_tensor_v2\nN" + defaults + b"\x86b0"
    path = torch_file(tmp_path / "w.pth", state(a=function + tensor()))
    assert list(pickled.read_state_dict(path)) == ["a"]
    assert pickled._tensor.__defaults__ is None


@pytest.mark.parametrize(
    "description", [b"\x80\x02K\x07.", state(a=tensor(), epoch=b"K\x07"), state(m=b"}")]
)
def test_other_objects_than_a_state_dict_are_refused(tmp_path, description):
    with pytest.raises(UserError, match="w.pth is not a complete state dict"):
        pickled.read_state_dict(torch_file(tmp_path / "w.pth", description))


def test_every_truncation_of_a_torch_file_is_refused(tmp_path):
    whole, path = FILE.read_bytes(), tmp_path / "w.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="w.pth"):
            pickled.read_state_dict(path)


@pytest.mark.parametrize("change", [{"magic": 5}, {"little": False}])
def test_torch_files_of_another_kind(tmp_path, change):
    path = torch_file(tmp_path / "w.pth", state(a=tensor()), **change)
    with pytest.raises(UserError, match="does not start with the magic number"):
        pickled.read_state_dict(path)
