"""Checkpoints of several processes: who writes what, other meshes, failures of one."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax import shards
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.storage import OWNER

ROOT = Path(__file__).parents[1]
LIMIT = 200

PROGRAM = textwrap.dedent("""
    import sys
    import jax, numpy as np
    address, count, rank, directory, what = sys.argv[1:]
    count, rank = int(count), int(rank)
    if count > 1:
        jax.distributed.initialize(address, count, rank)
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from vdm_jax.checkpoint import Checkpoints
    from vdm_jax.errors import UserError
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)
    specs = {"rows": P("fsdp"), "columns": P(None, "fsdp"), "both": P("data", "fsdp"),
             "whole": P(), "number": P()}
    values = {name: np.random.default_rng(i).normal(size=(8, 12)).astype(np.float32)
              for i, name in enumerate(specs)}
    values["number"] = np.float32(7)
    placed = {n: NamedSharding(mesh, s) for n, s in specs.items()}
    like = {n: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=placed[n])
            for n, v in values.items()}
    try:
        checkpoints = Checkpoints(directory)
        if what != "save":
            step = checkpoints.newest_intact()
            state, extra = checkpoints.restore(step, like)
            assert extra == {"saved by": int(what)}, extra
            for n, x in state.items():
                assert x.sharding == placed[n]
                for shard in x.addressable_shards:
                    np.testing.assert_array_equal(shard.data, values[n][shard.index])
        state = {n: jax.make_array_from_callback(v.shape, placed[n], v.__getitem__)
                 for n, v in values.items()}
        number = len(checkpoints.steps()) + 1
        checkpoints.save(number, state, {"saved by": count})
        checkpoints.wait()
        checkpoints.close()
    except UserError as error:
        print(f"error: {error}")
        sys.stdout.flush()
        import os, time
        time.sleep(2 * (rank == 0))
        os._exit(error.status)
    print("done", checkpoints.steps())
""")


def run(count: int, directories: list[Path], what: str = "save") -> list[str]:
    """What each process printed, all of which end with the status of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(count), str(rank),
             str(directories[rank % len(directories)]), what],
            cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    statuses = {process.returncode for process in processes}
    assert statuses == {2 if "error: " in outputs[0] else 0}, outputs
    return outputs


def test_a_state_goes_from_one_process_to_two_and_back(tmp_path):
    """1 x 8 devices, 2 processes x 4, 1 x 8; then on the one device of this process."""
    run(1, [tmp_path])
    run(2, [tmp_path], "1")
    names = {path.name for path in (tmp_path / "2").iterdir()}
    files = {shards.file_name(rank, 2) for rank in range(2)}
    assert names == {
        *files, "leaves.json", "extra.json", "manifest.json", "commit.json"
    }  # fmt: skip
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    assert manifest.keys() == {*files, "leaves.json", "extra.json"}
    sizes = [manifest[name][0] for name in sorted(files)]
    assert max(sizes) < 1.5 * min(sizes)  # each wrote its part, of what is whole too
    run(1, [tmp_path], "2")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_intact() == 3
    arrays = Checkpoints(tmp_path).arrays(2)
    for i, name in enumerate(("rows", "columns", "both", "whole")):
        expected = np.random.default_rng(i).normal(size=(8, 12)).astype(np.float32)
        np.testing.assert_array_equal(arrays[name], expected)
    assert arrays["number"] == 7


def test_hosts_with_disks_of_their_own_are_named(tmp_path):
    outputs = run(2, [tmp_path / "a", tmp_path / "b"])
    for output in outputs:
        assert f"is not seen by process 1 on {socket.gethostname()}: give" in output
        assert "a bucket" in output


def test_the_failure_of_one_process_is_raised_on_all_and_costs_no_older_step(tmp_path):
    run(2, [tmp_path])
    # A link of another tree, in which this process finds a file in its way.
    other = tmp_path.parent / f"{tmp_path.name}-mounted"
    other.mkdir()
    for entry in tmp_path.iterdir():
        (other / entry.name).symlink_to(entry)
    outputs = run(2, [tmp_path, other], "2")  # it does not see saving-2, which is new
    for output in outputs:
        assert "process 1 on " in output and "could not be written" in output
        assert "steps [1] are unchanged" in output
    shutil.rmtree(other)
    assert {path.name for path in tmp_path.iterdir()} == {OWNER, "1"}
    assert Checkpoints(tmp_path).newest_intact() == 1


def fake_array(shape, spec, processes):
    """An array's sharding on 8 devices of some processes, as `_layout` sees it."""

    class Device:
        def __init__(self, rank):
            self.process_index = rank

    class Sharding:
        def devices_indices_map(self, shape):
            whole = (slice(None),) * len(shape)
            split = shape[0] // 8
            return {
                Device(rank): (slice(i * split, (i + 1) * split), *whole[1:])
                if spec else whole
                for i, rank in enumerate(processes)
            }  # fmt: skip

    return Sharding()


def test_every_piece_has_one_writer_and_replicas_share_the_work():
    processes = (0, 0, 1, 1, 2, 2, 3, 3)
    split = shards._layout(fake_array((16, 3), True, processes), (16, 3))
    assert [corner for corner, _, _ in split] == [(2 * i, 0) for i in range(8)]
    assert [holders for _, _, holders in split] == [(rank,) for rank in processes]
    whole = shards._layout(fake_array((16, 3), False, processes), (16, 3))
    assert whole == [((0, 0), (16, 3), (0, 1, 2, 3))]


@pytest.mark.parametrize("dtype", sorted(shards.DTYPES))
def test_a_file_is_the_one_that_the_safetensors_library_writes(dtype):
    from safetensors.numpy import load, save

    values = np.arange(6).astype(shards.DTYPES[dtype]).reshape(2, 3)
    arrays = {"a/b": values, "one": np.array(values[0, 0]), "none": values[:0]}
    content = b"".join(bytes(part) for part in shards.encode(arrays))
    if dtype.startswith(("F8", "BF")):
        assert f'"dtype":"{dtype}"'.encode() in content  # it writes none from numpy
        return
    found = load(content)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert content == save(arrays)


def test_values_that_are_in_no_file_are_an_error(tmp_path):
    """Such as those of a process whose file is not listed."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    x = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, P()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": x}, {})
    checkpoints.wait()
    path = tmp_path / "1" / shards.file_name(0, 1)
    half = {"x@2,0": np.ones((2, 2), np.float32)}
    path.write_bytes(b"".join(bytes(part) for part in shards.encode(half)))
    with pytest.raises(UserError, match="4 values of x are in no file"):
        checkpoints.restore(1, {"x": x})
