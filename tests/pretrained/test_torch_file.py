"""Files that torch wrote, malicious ones, and truncated or altered ones."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from tests.pretrained.record_torch_files import DATA, FORMATS, expected
from vdm_jax.data.assets import EFFICIENTNET, install_command
from vdm_jax.errors import UserError
from vdm_jax.pretrained import torch_file


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_torch_are_read(name):
    tensors = torch_file.read(DATA / name)
    assert list(tensors) == list(expected())
    for key, array in expected().items():
        assert tensors[key].dtype == array.dtype and tensors[key].shape == array.shape
        np.testing.assert_array_equal(tensors[key], array)
        assert not tensors[key].flags.writeable
    assert tensors["turned"].strides == (4, 48, 16)
    assert np.shares_memory(tensors["turned"], tensors["base"])


def test_the_weights_of_a_package_are_read():
    path = EFFICIENTNET.find()
    if path is None:
        pytest.skip(f"missing weights; run: {install_command([EFFICIENTNET])}")
    tensors = torch_file.read(path)
    assert len(tensors) == 296 and sum(x.size for x in tensors.values()) == 4_694_073
    assert all(x.min() >= 0 for n, x in tensors.items() if n.endswith("running_var"))


# --- files made by hand -----------------------------------------------------------


def plain(value) -> bytes:
    """The opcodes that push a value of builtin types."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key="0", kind="FloatStorage", count=6, offset=0, shape=(2, 3), strides=None):
    """The opcodes that push a tensor."""
    strides = (3, 1) if strides is None else strides
    pid = plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key)
    pid = b"(" + pid + plain("cpu") + plain(count) + b"tQ"
    view = plain(offset) + plain(shape) + plain(strides) + plain(False)
    rest = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + view + rest + b"tR"


def state(**entries: bytes) -> bytes:
    items = b"".join(plain(name) + push for name, push in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


VALUES = np.arange(6, dtype="<f4")


def zipped(path, description, method=zipfile.ZIP_STORED, more=()):
    entries = {"data.pkl": description, "data/0": VALUES.tobytes(), "version": b"3\n"}
    entries = {f"model/{name}": content for name, content in entries.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (entries | dict(more)).items():
            archive.writestr(name, content)
    return path


def legacy(path, description, magic=torch_file.LEGACY_MAGIC[0], little=True):
    start = [magic, torch_file.LEGACY_MAGIC[1], {"little_endian": little}]
    values = struct.pack("<q", 6) + VALUES.tobytes()
    parts = [pickle.dumps(x, 2) for x in start] + [description, pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(parts) + values)
    return path


MAKE = pytest.mark.parametrize("make", [zipped, legacy])


@MAKE
def test_files_made_by_hand_are_read(make, tmp_path):
    tensors = torch_file.read(make(tmp_path / "w.pth", state(a=tensor(), b=tensor())))
    np.testing.assert_array_equal(tensors["a"], VALUES.reshape(2, 3))


@MAKE
@pytest.mark.parametrize(
    "shape, strides, offset",
    [((3, 2), (1, 3), 0), ((2,), (5,), 0), ((2, 2), (1, 1), 2), ((), (), 5)],
)
def test_views_of_a_storage(make, tmp_path, shape, strides, offset):
    push = tensor(shape=shape, strides=strides, offset=offset)
    tensors = torch_file.read(make(tmp_path / "w.pth", state(a=push)))["a"]
    for place in np.ndindex(shape):
        at = offset + sum(i * s for i, s in zip(place, strides, strict=True))
        assert tensors[place] == VALUES[at]


@MAKE
@pytest.mark.parametrize(
    "change",
    [
        {"offset": 1},
        {"offset": 7},
        {"strides": (4, 1)},
        {"shape": (3, 3)},
        {"shape": (6, 6), "strides": (0, 0)},
        {"shape": (7,), "strides": (0,)},
        {"shape": (2**39, 2**39), "strides": (0, 0)},
        {"offset": -1},
        {"strides": (-3, 1)},
        {"shape": (-2, -3)},
        {"shape": (2.0, 3)},
        {"shape": (True, 3)},
        {"shape": (2**70, 3)},
        {"shape": (2, 3, 1)},
        {"count": 7},
        {"count": 5},
        {"key": "1"},
        {"kind": "DoubleStorage"},
    ],
)
def test_no_view_leaves_its_storage(make, tmp_path, change):
    with pytest.raises(UserError, match="w.pth (lacks values of|is not a complete)"):
        torch_file.read(make(tmp_path / "w.pth", state(a=tensor(**change))))


# --- malicious files --------------------------------------------------------------

MALICIOUS = {
    "global": b"\x80\x02cposix\nsystem\n(" + plain("touch /tmp/x") + b"tR.",
    "stack": b"\x80\x04" + plain("posix") + plain("system") + b"\x93.",
    "instance": b"(" + plain("touch /tmp/x") + b"iposix\nsystem\n.",
    "object": b"\x80\x02(cposix\nsystem\n" + plain("touch /tmp/x") + b"o.",
    "builtin": b"\x80\x02c__builtin__\neval\n(" + plain("1") + b"tR.",
    "dotted": b"\x80\x04" + plain("collections") + plain("OrderedDict.pop") + b"\x93.",
    "module": b"\x80\x02ctorch.nn\nLinear\n.",
    "storage": b"\x80\x02ctorch\nBFloat16Storage\n.",
    "inside": state(a=b"cnumpy\nndarray\n"),
}


@MAKE
@pytest.mark.parametrize("name", MALICIOUS)
def test_other_globals_are_named_and_not_imported(make, tmp_path, name):
    with pytest.raises(UserError, match=r"w.pth names '\w.*', which no state dict"):
        torch_file.read(make(tmp_path / "w.pth", MALICIOUS[name]))


def test_malicious_pickles_at_other_positions_of_a_legacy_file(tmp_path):
    path = tmp_path / "w.pth"
    whole = legacy(path, state(a=tensor())).read_bytes()
    for place in (b"", whole[: whole.index(b"ccollections") - 2]):
        path.write_bytes(place + MALICIOUS["global"] + whole)
        with pytest.raises(UserError, match="names 'posix.system'"):
            torch_file.read(path)


@MAKE
def test_a_pickle_cannot_alter_existing_objects(make, tmp_path):
    """BUILD sets attributes of the object before it; ours have none."""
    fields = plain({"shape": (9, 9)})
    for push in (tensor() + fields + b"b", tensor() + b"N" + fields + b"\x86b"):
        with pytest.raises(UserError, match="is not a complete torch file"):
            torch_file.read(make(tmp_path / "w.pth", state(a=push)))
    defaults = plain({"__defaults__": (1,), "__kwdefaults__": {"a": 1}})
    function = b"ctorch._utils\n_rebuild_tensor_v2\nN" + defaults + b"\x86b0"
    made = make(tmp_path / "w.pth", state(a=function + tensor()))
    assert list(torch_file.read(made)) == ["a"]
    assert torch_file._tensor.__defaults__ is None


@MAKE
def test_other_objects_than_a_state_dict_are_named(make, tmp_path):
    cases = {
        "has a int, not a state dict": b"\x80\x02K\x07.",
        "has 'epoch', a int: give a state dict": state(a=tensor(), epoch=b"K\x07"),
        "has 'model', a dict: give a": state(model=b"}"),
        "has 7, a _Tensor": b"\x80\x02}K\x07" + tensor() + b"s.",
    }
    for message, description in cases.items():
        with pytest.raises(UserError, match=message):
            torch_file.read(make(tmp_path / "w.pth", description))


@MAKE
def test_a_small_pickle_cannot_allocate_a_large_memo(make, tmp_path):
    push = b"K\x07r" + struct.pack("<I", 2**31)  # 7, stored in slot 2^31 of the memo
    with pytest.raises(UserError, match="memo slot 2147483648"):
        torch_file.read(make(tmp_path / "w.pth", state(a=push)))


# --- damaged files ----------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_truncation_is_an_error(name, tmp_path):
    whole, path = (DATA / name).read_bytes(), tmp_path / "w.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="w.pth"):
            torch_file.read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_altered_bytes_give_arrays_or_an_error(name, tmp_path):
    whole, path = (DATA / name).read_bytes(), tmp_path / "w.pth"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            tensors = torch_file.read(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path))
        else:
            assert all(np.isreal(x).all() for x in tensors.values())  # all can be read
    assert refused > 0


def test_archives_that_torch_does_not_write(tmp_path):
    path, good = tmp_path / "w.pth", state(a=tensor())
    cases = {
        "compressed": {"method": zipfile.ZIP_DEFLATED},
        "without one NAME/data.pkl": {"more": {"other/data.pkl": good}},
        "the other byte order": {"more": {"model/byteorder": b"big"}},
        "truncated": {"more": {"model/data/0": VALUES.tobytes()[:-4]}},
    }
    for message, change in cases.items():
        with pytest.raises(UserError, match=message):
            torch_file.read(zipped(path, good, **change))
    encrypted = bytearray(zipped(path, good).read_bytes())
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(UserError, match="encrypted"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(UserError, match="without one NAME/data.pkl"):
        torch_file.read(path)


def test_legacy_files_that_torch_does_not_write(tmp_path):
    path, good = tmp_path / "w.pth", state(a=tensor())
    with pytest.raises(UserError, match="does not start with the magic number"):
        torch_file.read(legacy(path, good, magic=5))
    with pytest.raises(UserError, match="the other byte order"):
        torch_file.read(legacy(path, good, little=False))
    path.write_bytes(legacy(path, good).read_bytes() + b"\0")
    with pytest.raises(UserError, match="its length is not that"):
        torch_file.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.pth does not exist"):
        torch_file.read(tmp_path / "none.pth")
