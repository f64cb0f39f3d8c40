"""Steps that Orbax wrote, as earlier versions did."""

import gc
import json
import zlib
from pathlib import Path

import jax
import pytest
from orbax.checkpoint import v1 as ocp

from tests.checkpoint_cases import abstract, assert_good, files, flip, make, saved
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.trees import named_leaves


def saved_by_orbax(directory: Path, step: int) -> Path:
    """Save a step as earlier versions did: state/, leaves, extra and a manifest."""
    folder = directory / str(step)
    named = named_leaves(make(step))
    ocp.save(str(folder / "state"), named)
    leaves = {n: (x.shape, x.dtype.name) for n, x in named.items()}
    (folder / "leaves.json").write_text(json.dumps(leaves))
    (folder / "extra.json").write_text(json.dumps({"data": {"batches": step}}))
    contents = {str(p.relative_to(folder)): p.read_bytes() for p in files(folder)}
    manifest = {name: [len(c), zlib.crc32(c)] for name, c in contents.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_old_step_is_restored_and_the_run_goes_on(tmp_path):
    saved_by_orbax(tmp_path, 1)
    assert_good(tmp_path, 1)
    part, _ = Checkpoints(tmp_path).restore(1, {"ema": abstract(make(0).ema)})
    assert jax.tree.structure(part["ema"]) == jax.tree.structure(make(1).ema)
    saved(tmp_path, 2).close()
    assert_good(tmp_path, 2)
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_an_old_step_that_is_damaged_is_set_aside(tmp_path):
    saved_by_orbax(tmp_path, 1)
    folder = saved_by_orbax(tmp_path, 2)
    flip(max(files(folder), key=lambda path: path.stat().st_size))
    assert_good(tmp_path, 1)
    assert (tmp_path / "bad-2").is_dir()


def test_devices_that_are_not_here_do_not_matter(tmp_path):
    """A step of a GPU or a TPU opens here: arrays go where restoring places them."""
    folder = saved_by_orbax(tmp_path, 1) / "state"
    (stored,) = [path for path in files(folder) if path.name == "_sharding"]
    here = stored.read_bytes()
    assert b"cpu:0" in here
    stored.write_bytes(here.replace(b"cpu:0", b"cuda:7"))
    arrays = Checkpoints(tmp_path, read_only=True).arrays(1)
    assert {next(iter(x.devices())).platform for x in arrays.values()} == {"cpu"}


# Other readers of Orbax find their event loop closed; nothing waits for them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_of_tensorstore_in_reading_is_one_line(tmp_path, caplog):
    for path in files(saved_by_orbax(tmp_path, 1)):
        if path.parent.name == "d":  # the data
            path.unlink()
            path.mkdir()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="1/state cannot be read .*NOT_FOUND"):
        checkpoints.restore(1, abstract(make(0)))
    gc.collect()
    assert not caplog.records
