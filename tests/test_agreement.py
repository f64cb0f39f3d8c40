"""The processes of a run compare what they depend on: vdm_jax/agreement.py."""

import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import shapes
from vdm_jax import agreement, runs, sharding
from vdm_jax.data import pipeline
from vdm_jax.errors import UserError


class Service:
    """The key-value store that the processes of a run share, in one process."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        deadline = time.monotonic() + milliseconds / 1000
        while key not in self.values:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.values[key]


class SlowService(Service):
    """Values come after two waits in vain."""

    def __init__(self, values, error="DEADLINE_EXCEEDED: GetKeyValue() timed out"):
        self.values, self.error, self.waits = values, error, []

    def blocking_key_value_get(self, key, milliseconds):
        self.waits.append(milliseconds)
        if len(self.waits) < 3:
            raise jax.errors.JaxRuntimeError(self.error)
        return self.values[key.rpartition("/")[2]]


@pytest.mark.parametrize(
    ("rank", "values"), [(0, {"1": '{"value": 7}'}), (1, {"answer": '{"value": 7}'})]
)
def test_what_takes_hours_is_waited_for_and_named(monkeypatch, capfd, rank, values):
    service = SlowService(values)
    state = SimpleNamespace(client=service)
    monkeypatch.setattr(agreement.distributed, "global_state", state)
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.jax, "process_index", lambda: rank)
    assert agreement.together(lambda: 1, lambda results: results[1]) == 7
    assert service.waits == [1000 * agreement.WAITING_INTERVAL] * 3
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        f"process {rank} has waited for process {1 - rank} for {minutes} minutes"
        for minutes in (5, 10)
    ]
    service = SlowService(values, "UNAVAILABLE: the coordinator is gone")
    state.client = service
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        agreement.together(lambda: 1, lambda results: results[1])


def outcomes(monkeypatch, *facts):
    """Return what `check` raises in each process; threads stand in for processes."""
    service, raised = Service(), ["nothing"] * len(facts)
    rank = threading.local()
    state = SimpleNamespace(client=service, num_processes=len(facts))
    monkeypatch.setattr(agreement.distributed, "global_state", state)
    monkeypatch.setattr(agreement.jax, "process_index", lambda: rank.number)
    monkeypatch.setattr(agreement, "_comparison_numbers", iter([0] * len(facts)))

    def run_process(number):
        rank.number = number
        try:
            agreement.check(facts[number], timeout=10)
        except UserError as error:
            raised[number] = f"{error.status}: {error}"

    threads = [
        threading.Thread(target=run_process, args=(n,)) for n in range(len(facts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_an_error_of_one_process_is_raised_on_all(monkeypatch):
    facts = {"command": "train"}
    for failing in range(3):
        processes = [facts] * 3
        processes[failing] = {agreement.ERROR: "no such folder"}
        expected = f"2: process {failing} of this run cannot begin: no such folder"
        assert outcomes(monkeypatch, *processes) == [expected] * 3


def test_an_error_is_broadcast_until_training_starts(monkeypatch):
    sent = []
    monkeypatch.setattr(agreement, "check", lambda facts, timeout: sent.append(facts))
    monkeypatch.setattr(agreement, "_comparing", True)
    agreement.broadcast_error(UserError("no such folder"))
    assert sent == [{agreement.ERROR: "no such folder"}]
    agreement.broadcast_error(agreement.ProcessMismatch("all know it"))
    agreement.stop_comparing()
    agreement.broadcast_error(UserError("the disk is full"))
    assert len(sent) == 1


def test_equal_facts_pass(monkeypatch):
    facts = {"config": {"a": (1, 2), "b": {"c": None}}, "jax": "1"}
    assert outcomes(monkeypatch, facts, dict(facts), dict(facts)) == ["nothing"] * 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": {"b": 2}}, "a.b is 1 in process 0 and 2 in process 2"),
        ({"a": {"b": 1, "c": 0}}, "a.c is 'absent' in process 0 and 0 in process 2"),
        ({"a": {}}, "a.b is 1 in process 0 and 'absent' in process 2"),
    ],
)
def test_all_processes_raise_the_difference_of_one(monkeypatch, other, words):
    same = {"a": {"b": 1}}
    raised = outcomes(monkeypatch, same, same, other)
    assert len(set(raised)) == 1 and raised[0].startswith("2: ") and words in raised[0]


def test_a_single_process_compares_with_nobody():
    agreement.check({"anything": object()})


def test_the_environment_holds_what_changes_results(monkeypatch):
    before = agreement.environment()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=/a")
    after = agreement.environment()
    assert after["XLA_FLAGS"] == ["--xla_cpu_enable_fast_math=true"]
    assert {n for n in after if after[n] != before[n]} == {"XLA_FLAGS"}
    assert before["jax_enable_x64"] == "False" and before["jaxlib"]


def test_one_bit_of_an_array_changes_its_checksum():
    arrays = {"a": jnp.arange(4.0), "b": jnp.zeros((2, 3), jnp.bfloat16)}
    other = arrays | {"a": arrays["a"].at[2].add(2.0**-22)}
    assert agreement.arrays_checksum(arrays) == agreement.arrays_checksum(dict(arrays))
    assert agreement.arrays_checksum(arrays) != agreement.arrays_checksum(other)


def test_data_that_differ_in_one_clip_are_refused(monkeypatch):
    """Compared as a run does: the fingerprint of the data, and the config."""

    class Clips:
        name, names = "folder", ["a", "b"]

        def __init__(self, sizes):
            self.sizes = sizes

        def __len__(self):
            return 2

    config = shapes.get_config("smoke")
    raised = outcomes(
        monkeypatch,
        *(
            {"data": pipeline.fingerprint(config, Clips(sizes))}
            | runs.config_without_paths(config)
            for sizes in ([1, 2], [1, 3])
        ),
    )
    assert len(set(raised)) == 1 and "data.digest is " in raised[0]


def test_init_from_is_compared_by_its_content_not_its_path(monkeypatch):
    """A process without init_from makes new parameters, which differ too."""
    one, other = (shapes.get_config("smoke").unlock() for _ in range(2))
    one.init_from, other.init_from = "models/shapes", "/elsewhere/shapes"
    assert runs.config_without_paths(one) == runs.config_without_paths(other)
    facts = []
    monkeypatch.setattr(agreement, "check", facts.append)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    trained = runs.load("models/shapes", mesh)
    monkeypatch.undo()
    [read] = facts
    assert read["checksum of the parameters"]
    assert read["config"] == runs.config_without_paths(trained.config)["config"]
    raised = outcomes(monkeypatch, read, read | {"checksum of the parameters": "0"})
    assert len(set(raised)) == 1
    assert "checksum of the parameters is" in raised[0]
    raised = outcomes(monkeypatch, {"new parameters": "1"}, read)
    assert len(set(raised)) == 1 and "new parameters is '1' in process 0" in raised[0]
