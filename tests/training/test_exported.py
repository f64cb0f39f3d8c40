"""Exported training steps: the same numbers, and no file is trusted unread."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import runtime
from vdm_jax.training import exported
from vdm_jax.training.exported import compile_step

pytest.importorskip("flatbuffers")
IDENTITY = {"rate": 0.1}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_exported_dir", tmp_path / "exported")
    return tmp_path / "exported"


class Step:
    """A step with random numbers, which counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, state, aux_params, batch, key):
        self.traces += 1
        noise = jax.random.normal(jax.random.fold_in(key, state["step"]), (4,))
        w = state["w"] - 0.1 * jnp.tanh(batch["x"].sum() + noise + aux_params["b"])
        return {"step": state["step"] + 1, "w": w}, {"norm": jnp.sqrt((w**2).sum())}


def arguments():
    state = {"step": jnp.zeros((), jnp.int32), "w": jnp.arange(4.0)}
    batch = {"x": np.full((3, 2), 0.3, np.float32)}
    return state, {"b": jnp.float32(0.5)}, batch, jax.random.key(1)


def run(step, identity: object = IDENTITY):
    """Return the results of two steps, and how often the step was traced."""
    state, *others = arguments()
    before = step.traces
    compiled = compile_step(step, state, *others, identity=identity)
    traces = step.traces - before
    first = state
    for _ in range(2):
        state, scalars = compiled(state, *others)
    assert first["w"].is_deleted()
    return jax.device_get((state, scalars)), traces


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_later_process_reads_the_step_and_has_the_same_numbers(folder):
    plain, traces = run(Step(), identity=None)
    assert traces == 1 and not folder.exists()
    stored, traces = run(Step())
    assert traces == 1 and len([*folder.iterdir()]) == 1
    read, traces = run(Step())
    assert traces == 0
    assert_equal(plain, stored)
    assert_equal(plain, read)


def test_a_process_without_the_settings_of_a_command_stores_nothing(
    folder, monkeypatch
):
    monkeypatch.setattr(runtime, "_exported_dir", None)
    assert run(Step())[1] == 1 and not folder.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    ],
    ids=["empty", "short", "truncated", "longer", "altered"],
)
def test_a_damaged_file_is_replaced(folder, damage):
    expected, _ = run(Step())
    [path] = folder.iterdir()
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    again, traces = run(Step())
    assert traces == 1 and [*folder.iterdir()] == [path]
    assert run(Step())[1] == 0
    assert_equal(expected, again)


def test_a_stale_file_is_not_read(folder, monkeypatch, tmp_path):
    run(Step())
    assert run(Step(), {"rate": 0.2})[1] == 1
    source = tmp_path / "source.py"
    monkeypatch.setattr(exported, "_sources", lambda: [source])
    for text, traces in (("a = 1", 1), ("a = 1", 0), ("a = 2", 1)):
        source.write_text(text)
        assert run(Step())[1] == traces
    monkeypatch.setattr(exported.importlib.metadata, "version", lambda name: "0")
    assert run(Step())[1] == 1
    monkeypatch.setattr(runtime, "jax_setting", lambda name: "another")
    assert run(Step())[1] == 1


def test_sources_are_those_of_the_library_and_of_the_user():
    names = {path.name for path in exported._sources()}
    assert {"exported.py", "unet3d.py", "test_exported.py"} <= names
    assert not any("site-packages" in str(path) for path in exported._sources())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_costs_nothing_but_time(folder):
    folder.mkdir(mode=0o500)
    assert run(Step())[1] == run(Step())[1] == 1


def test_a_folder_that_is_a_file_costs_nothing_but_time(folder):
    folder.write_text("")
    assert run(Step())[1] == run(Step())[1] == 1


def test_a_step_that_cannot_be_exported_is_compiled(folder):
    class WithCallback(Step):
        def __call__(self, state, aux_params, batch, key):
            b = aux_params["b"]
            b = jax.pure_callback(lambda b: b, jax.ShapeDtypeStruct((), b.dtype), b)
            return super().__call__(state, {"b": b}, batch, key)

    result, _ = run(WithCallback())
    assert not folder.exists()
    assert_equal(result, run(Step(), identity=None)[0])


def test_old_files_are_removed(folder, monkeypatch):
    monkeypatch.setattr(exported, "MAX_FILES", 2)
    for rate in range(4):
        run(Step(), {"rate": rate})
    assert len([*folder.iterdir()]) == 2
    assert run(Step(), {"rate": 3})[1] == 0
