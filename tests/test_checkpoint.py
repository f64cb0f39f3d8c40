"""Saving and restoring, also with a kill at every moment of a save."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.checkpoint_cases import (
    abstract,
    assert_good,
    assert_same,
    files,
    make,
    saved,
)
from vdm_jax import storage
from vdm_jax.checkpoint import Checkpoints
from vdm_jax.errors import UserError
from vdm_jax.storage import LocalSteps


def test_restores_every_bit(tmp_path):
    saved(tmp_path, 3).close()
    assert_good(tmp_path, 3)


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    # Large: still being written, if not copied, when the buffer is used again.
    x = jnp.arange(4_000_000, dtype=jnp.float32)
    checkpoints.save(1, {"x": x}, {})
    y = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(x)
    jax.block_until_ready(y)
    checkpoints.wait()
    state, _ = checkpoints.restore(1, {"x": y})
    np.testing.assert_array_equal(state["x"], np.arange(4_000_000, dtype=np.float32))


def test_an_array_of_numpy_may_be_changed_as_soon_as_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    x = np.ones(4_000_000, np.float32)
    checkpoints.save(1, {"x": x}, {})
    x[:] = 2
    checkpoints.wait()
    assert (np.asarray(checkpoints.arrays(1)["x"]) == 1).all()


def test_parts_of_a_state_can_be_restored(tmp_path):
    checkpoints = saved(tmp_path, 1)
    part, _ = checkpoints.restore(1, {"ema": abstract(make(0).ema)})
    assert_same(part, {"ema": make(1).ema})
    shapes = {n: (x.shape, x.dtype) for n, x in checkpoints.leaves(1).items()}
    assert shapes["ema/in/out/half"] == ((8,), jnp.bfloat16)
    assert len(shapes) == len(jax.tree.leaves(make(1)))


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (make(0, width=4), ["ema/in/out/kernel: here float32[3, 4], there float32[3,"]),
        (make(0, ema=False), ["ema/in/out/kernel: here absent, there float32[3, 8]"]),
        (make(0).replace(opt_state=()), ["opt_state/0/mu/in/out/kernel: here absent"]),
        (
            make(0).replace(step=jnp.float32(0)),  # Orbax alone would cast it
            ["step: here float32[], there int32[]"],
        ),
        ({"ema": {"more": jnp.zeros(2)}}, ["ema/more: here float32[2], there absent"]),
    ],
    ids=["shape", "no ema", "no optimiser", "dtype", "name"],
)  # fmt: skip
def test_another_tree_is_refused_by_name(tmp_path, other, names):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(1, abstract(other))
    message = str(caught.value)
    assert all(name in message for name in names)
    assert caught.value.status == 2 and "\n" not in message
    assert message.count("; ") <= 5


def test_a_step_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of step 7.*\[1, 2\]"):
        saved(tmp_path, 1, 2).restore(7, abstract(make(0)))


def test_keeps_the_newest(tmp_path):
    assert saved(tmp_path, 1, 2, 10, keep=2).steps() == [2, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "2"]
    with pytest.raises(UserError, match="gs://bucket"):
        Checkpoints("gs://bucket/run")
    with pytest.raises(ValueError, match="already saved"):
        saved(tmp_path, 10)


class Kill(BaseException):
    """Represents kill -9: no handler of the library catches it."""


class Clock:
    """Allows a number of calls, then raises Kill."""

    def __init__(self, left: int):
        self.left = left

    def ticking(self, function):
        def call(*args, **kwargs):
            if not self.left:
                raise Kill
            self.left -= 1
            return function(*args, **kwargs)

        return call

    def half_written(self, write):
        def call(steps, folder, name, content):
            if not self.left:
                whole = content if isinstance(content, bytes) else b"".join(content)
                write(steps, folder, name, whole[: len(whole) // 2])
                raise Kill
            return write(steps, folder, name, content)

        return call

    def halfway(self, remove):
        def call(directory):
            files(directory)[0].unlink()
            if not self.left:
                raise Kill
            remove(directory)

        return call


def test_a_kill_at_any_moment_costs_at_most_that_step(tmp_path, monkeypatch):
    """Each call of a commit that changes the disk is the last one in some run."""
    saved(tmp_path / "a", 1, 2).close()
    moments = 0
    while True:
        directory = tmp_path / str(moments)
        shutil.copytree(tmp_path / "a", directory)
        checkpoints = Checkpoints(directory)
        with monkeypatch.context() as patch:
            clock = Clock(moments)
            write = clock.ticking(clock.half_written(LocalSteps.write))
            patch.setattr(LocalSteps, "write", write)
            patch.setattr(storage, "fsync", clock.ticking(storage.fsync))
            patch.setattr(Path, "rename", clock.ticking(Path.rename))
            patch.setattr(shutil, "rmtree", clock.ticking(clock.halfway(shutil.rmtree)))
            try:
                checkpoints.save(3, make(3), {"data": {"batches": 3}})
                checkpoints.wait()
                killed = False
            except Kill:
                killed = True
        renamed = (directory / "3").exists()
        assert_good(directory, 3 if renamed else 2)
        # Only a step has the name of a step.
        assert {p.name for p in directory.iterdir()} <= {"1", "2", "3"}
        for step in reversed(Checkpoints(directory).steps()):
            assert_good(directory, step)
            shutil.rmtree(directory / str(step))
        if not killed:
            break
        moments += 1
    assert moments > 8
    assert renamed


SAVER = """
import sys
import jax.numpy as jnp
from vdm_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = checkpoints.newest_intact() or 0
if step:
    state, _ = checkpoints.restore(step, {"x": jnp.zeros(1_000_000)})
    assert (state["x"] == step).all()
while True:
    step += 1
    checkpoints.save(step, {"x": jnp.full(1_000_000, float(step))}, {})
    print(step, flush=True)
"""


def test_kill_9_while_saving(tmp_path):
    moments = random.Random(0)
    before = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout
            for _ in range(3):
                reached = int(child.stdout.readline())
            try:
                child.wait(moments.uniform(0, 0.2))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
        checkpoints = Checkpoints(tmp_path)
        step = checkpoints.newest_intact()
        assert step and step >= max(reached - 1, before)
        state, _ = checkpoints.restore(step, {"x": jnp.zeros(1_000_000)})
        np.testing.assert_array_equal(state["x"], np.full(1_000_000, float(step)))
        assert not any(tmp_path.glob("bad-*"))
        before = step


def test_disk_full_leaves_the_old_steps_and_one_line(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"x": jax.random.normal(jax.random.key(0), (1_000_000,))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(UserError) as caught:
            checkpoints.save(3, big, {})
            while True:  # raised as soon as it is known, not at the next save
                checkpoints.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "saving-3" in message and "4.0 MB needed" in message and "[1, 2]" in message
    assert not caplog.records  # no pages of traceback around the line
    checkpoints.close()
    assert not (tmp_path / "saving-3").exists()
    assert_good(tmp_path, 2)


MESHES = """
import itertools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vdm_jax.checkpoint import Checkpoints
def shaped(data, fsdp, spec):
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), (AxisType.Auto,) * 2,
                         devices=jax.devices()[: data * fsdp])
    return NamedSharding(mesh, spec)
layouts = [shaped(1, 8, P("fsdp")), shaped(8, 1, P("fsdp")), shaped(4, 2, P("fsdp")),
           shaped(1, 4, P(None, "fsdp")), shaped(2, 4, P("fsdp", "data")),
           shaped(1, 1, P())]
x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
checkpoints = Checkpoints(sys.argv[1], keep=len(layouts))
for step, layout in enumerate(layouts):
    checkpoints.save(step, {"x": jax.device_put(x, layout)}, {})
checkpoints.wait()
for step, layout in itertools.product(range(len(layouts)), layouts):
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
    y = checkpoints.restore(step, {"x": spec})[0]["x"]
    assert y.sharding == layout and (np.asarray(y) == x).all(), (step, layout)
"""


def test_onto_other_meshes(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", MESHES, tmp_path],
        env=environment, check=True,
    )  # fmt: skip


def test_the_requested_sharding_is_used(tmp_path):
    checkpoints = saved(tmp_path, 1)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = NamedSharding(mesh, PartitionSpec())
    expected = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec), make(0)
    )
    state, _ = checkpoints.restore(1, expected)
    assert all(x.sharding == spec for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "name",
    [
        "a {b}]%41 #:\n'\"&$~@|\t!",
        "-r/é/.x",
        "n" * 255,
        "link/../up",
        "l/",
        "a[b]",
        "**",
        "a?b",
        "a\\b",
        os.fsdecode(b"caf\xe9"),
    ],
)
def test_any_path_restores(tmp_path, name):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "l").symlink_to(tmp_path / "elsewhere")
    path = f"{tmp_path}/{name}"
    saved(path, 1).close()
    assert_good(path, 1)
    if ".." in name:  # as the system resolves it, not by its text
        assert (tmp_path / "elsewhere" / "up" / "1").is_dir()


def test_a_path_of_every_character_restores(tmp_path):
    names = [chr(c) for c in range(1, 127) if chr(c) != "/"]
    place = tmp_path / "".join(names)
    saved(place, 1).close()
    assert_good(place, 1)
