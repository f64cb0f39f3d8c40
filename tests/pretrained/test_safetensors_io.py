"""Safetensors of other libraries by a name map: shards, and files that do not fit."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.networks.recorded import write_folder
from vdm_jax.errors import UserError
from vdm_jax.networks.bert import Bert, BertSpec
from vdm_jax.pretrained import name_maps, safetensors_io

ROOT = Path(__file__).parents[2]
BERT = Bert(BertSpec(48, 32, 2, 24, 40, 2, 3))
INDEX = "model.safetensors.index.json"
NAME_MAP = (
    (r"old\.(\d)\.weight", name_maps.KERNEL + r"new_\1/kernel"),
    (r"old\.(\d)\.bias", r"new_\1/bias"),
    (r"again\.(\d)\.bias", r"new_\1/bias"),
    (r"conv\.weight", name_maps.KERNEL + "conv/kernel"),
    (r"buffer", None),
)


def like():
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 4), bool)
    return jax.eval_shape(BERT.init, jax.random.key(0), ids, mask)["params"]


def read(folder, dtype=jnp.float32):
    return safetensors_io.read(
        safetensors_io.tensor_files(folder), like(), name_maps.BERT, dtype
    )


def change(path, **tensors):
    """Rewrite a file with some tensors changed, or without those that are None."""
    arrays = load_file(path) | tensors
    save_file({k: v for k, v in arrays.items() if v is not None}, path)


def test_shards_equal_one_file(tmp_path):
    write_folder(tmp_path / "one_file", "bert")
    write_folder(tmp_path / "shards", "bert", shards=3)
    assert len(safetensors_io.tensor_files(tmp_path / "shards")) == 3
    one_file, shards = read(tmp_path / "one_file"), read(tmp_path / "shards")
    assert jax.tree.structure(one_file) == jax.tree.structure(like())
    jax.tree.map(np.testing.assert_array_equal, one_file, shards)


def test_names_are_mapped_and_kernels_have_our_layout(tmp_path):
    path = tmp_path / "model.safetensors"
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    conv = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    stored = {"old.3.weight": weight, "old.3.bias": bias, "conv.weight": conv}
    save_file(stored | {"buffer": np.arange(9)}, path)
    kernel = np.empty((4, 5, 3, 2), np.float32)
    for o, i, y, x in np.ndindex(conv.shape):
        kernel[y, x, i, o] = conv[o, i, y, x]
    expected = {"new_3": {"kernel": weight.T, "bias": bias}, "conv": {"kernel": kernel}}
    params = safetensors_io.read((path,), expected, NAME_MAP, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_stored_dtype_is_cast_to_the_requested_one(tmp_path, stored, dtype):
    path = tmp_path / "model.safetensors"
    save_file({"old.0.bias": np.array([1, -2.5], stored)}, path)
    expected = {"new_0": {"bias": np.zeros(2)}}
    leaf = safetensors_io.read((path,), expected, NAME_MAP, dtype)["new_0"]["bias"]
    assert leaf.dtype == dtype
    np.testing.assert_array_equal(np.float32(leaf), [1, -2.5])


def test_two_names_of_one_tensor_must_agree(tmp_path):
    path = tmp_path / "model.safetensors"
    expected = {"new_0": {"bias": np.zeros(2)}}
    one = np.ones(2, np.float32)
    save_file({"old.0.bias": one, "again.0.bias": one}, path)
    safetensors_io.read((path,), expected, NAME_MAP, jnp.float32)
    save_file({"old.0.bias": one, "again.0.bias": 2 * one}, path)
    with pytest.raises(UserError, match="old.0.bias is a second, different new"):
        safetensors_io.read((path,), expected, NAME_MAP, jnp.float32)


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({QUERY: None}, "lacks layer_1/q/kernel$"),
        ({"encoder.layer.2.output.dense.bias": np.zeros(24, "f4")}, "have: .*r.2.o"),
        ({"adapter.weight": np.zeros(3, "f4")}, "does not have: adapter.weight$"),
        ({QUERY: np.zeros((24, 23), "f4")}, r"query.weight has .*\(23, 24\), .*, 24"),
        ({QUERY: np.full((24, 24), np.nan, "f4")}, "query.weight is not finite"),
        ({QUERY: np.full((24, 24), np.inf, "f2")}, "query.weight is not finite"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named_in_one_line(tmp_path, tensors, message):
    write_folder(tmp_path, "bert")
    change(tmp_path / "model.safetensors", **tensors)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
    write_folder(tmp_path, "bert", shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00003.*index.json names"):
        safetensors_io.tensor_files(tmp_path)


def test_a_link_whose_file_is_gone_is_named(tmp_path):
    write_folder(tmp_path, "bert", shards=3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to("../blobs/ab12")
    message = f"{shard} is a link to ../blobs/ab12, which does not exist: put"
    with pytest.raises(UserError, match=message):
        safetensors_io.tensor_files(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model.safetensors").symlink_to("../blobs/ab13")
    with pytest.raises(UserError, match="is a link to ../blobs/ab1"):
        safetensors_io.tensor_files(tmp_path)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    write_folder(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab12\nsize 9\n"
    )
    for run in (lambda: read(tmp_path), lambda: safetensors_io.count([path])):
        with pytest.raises(UserError, match=f"{path} is a git-lfs pointer .*lfs pull"):
            run()


def test_half_precision_and_diffusers_names(tmp_path):
    def names(*files):
        for name in files:
            (tmp_path / name).touch()
        return [path.name for path in safetensors_io.tensor_files(tmp_path)]

    shards = [
        f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in "12"
    ]
    weight_map = {"weight_map": dict(zip("ab", shards, strict=True))}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps(weight_map))
    assert names(*shards) == shards
    assert names(single := "model.fp16.safetensors") == [single]
    assert names(single := "model.safetensors") == [single]


def test_shards_are_read_from_the_folder_only(tmp_path):
    """An index that points to another folder is not followed."""
    write_folder(tmp_path / "inside", "bert", shards=2)
    write_folder(tmp_path, "bert")
    index = tmp_path / "inside" / INDEX
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(UserError, match="lacks model.safetensors"):
        safetensors_io.tensor_files(tmp_path / "inside")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
)
def test_an_invalid_index_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match="is not an index of shards"):
        safetensors_io.tensor_files(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(X\x06\0\0\0exit 1tR.")
    with pytest.raises(UserError, match=r"neither .*\(\.bin, \.ckpt\) are not read"):
        safetensors_io.tensor_files(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    write_folder(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read(tmp_path)


def test_two_copies_are_never_in_memory(tmp_path):
    """10 tensors of 1 MB in float32, loaded as bfloat16 one at a time."""
    path, count, size = tmp_path / "model.safetensors", 10, 1 << 20
    bias = np.zeros(size // 4, np.float32)
    save_file({f"old.{i}.bias": bias for i in range(count)}, path)
    expected = {f"new_{i}": {"bias": bias} for i in range(count)}
    tracemalloc.start()
    try:
        params = safetensors_io.read((path,), expected, NAME_MAP, jnp.bfloat16)
        jax.block_until_ready(params)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(peak / size)
    assert peak < (count / 2 + 3) * size


PEAK = r"""
import re, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from vdm_jax.pretrained import safetensors_io

NAME_MAP = ((r"old\.(\d+)", r"new_\1"),)

def peak():
    # getrusage's ru_maxrss would be that of the parent, where this is less.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024

def read(folder):
    paths = safetensors_io.tensor_files(folder)
    shape = jax.ShapeDtypeStruct((1 << 20,), np.float32)
    like = {f"new_{i}": shape for i in range(2 * len(paths))}
    params = safetensors_io.read(paths, like, NAME_MAP, jnp.bfloat16)
    return jax.block_until_ready(params)

few, many = map(Path, sys.argv[1:])
read(few)
before = peak()
params = read(many)
print(peak() - before)
"""


def test_shards_are_read_straight_to_the_wanted_type(tmp_path):
    """128 MB of float32 as 64 MB: at the peak a shard and two tensors are there, too.

    Tensors of 4 MB, two in a shard, as UMT5-XXL has some of 8 GB.
    """
    bias = np.ones(1 << 20, np.float32)
    for folder, shards in (("few", 1), ("many", 16)):
        (tmp_path / folder).mkdir()
        files = {}
        for i in range(shards):
            names = [f"old.{2 * i + k}" for k in range(2)]
            files |= dict.fromkeys(names, f"model-{i}.safetensors")
            save_file(dict.fromkeys(names, bias), tmp_path / folder / files[names[0]])
        index = {"weight_map": files}
        (tmp_path / folder / INDEX).write_text(json.dumps(index))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "few", tmp_path / "many"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    more = int(done.stdout) / 2**20
    assert 50 < more < 64 + 8 + 2 * 4 + 16
