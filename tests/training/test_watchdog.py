"""Which process is stuck, and what a supervisor reads."""

import json
import threading
import time

import jax
import pytest

from vdm_jax.errors import UserError
from vdm_jax.training import watchdog
from vdm_jax.training.watchdog import LateProcess, Point, Watchdog


def points(*counts: int) -> dict[int, Point]:
    return {
        i: Point(count, 10 + count, "reading", f"host{i}")
        for i, count in enumerate(counts)
    }


def test_the_process_that_others_wait_for_is_late():
    late = LateProcess(60)
    assert late.find(points(3, 2, 4), now=100) is None  # process 1 is behind from now
    assert late.find(points(3, 2, 4), now=159) is None
    process, line = late.find(points(4, 2, 4), now=160)
    assert process == 1
    assert "process 1 on host1 is stuck, last seen at step 12, reading" in line
    assert "waited for 60 s" in line


def test_a_process_that_moves_is_not_late():
    late = LateProcess(60)
    for now, count in enumerate(range(0, 1000, 10)):
        assert late.find(points(count + 5, count), now=50 * now) is None


def test_processes_at_the_same_point_are_not_late_however_long():
    late = LateProcess(60)
    assert late.find(points(7, 7), now=0) is None
    assert late.find(points(7, 7), now=10**6) is None
    # One is ready a moment earlier: the other gets its full time from then on.
    assert late.find(points(8, 7), now=10**6 + 1) is None
    assert late.find(points(8, 7), now=10**6 + 60) is None
    assert late.find(points(8, 7), now=10**6 + 61) is not None


def test_a_process_that_comes_back_gets_its_full_time_again():
    late = LateProcess(60)
    assert late.find(points(8, 7), now=0) is None
    assert late.find(points(8, 8), now=59) is None
    assert late.find(points(9, 8), now=61) is None
    assert late.find(points(9, 8), now=120) is None
    assert late.find(points(9, 8), now=121) is not None


def test_the_heartbeat_is_rewritten_at_points_only(tmp_path, monkeypatch):
    path = tmp_path / "heartbeat.json"
    dog = Watchdog(heartbeat=path)
    first = json.loads(path.read_text())
    assert first["process"] == 0 and first["doing"] == "starting"
    assert abs(first["time"] - time.time()) < 60
    dog.reach(3, "reading a batch")  # too soon after the first
    assert json.loads(path.read_text()) == first
    monkeypatch.setattr(watchdog, "HEARTBEAT_INTERVAL", 0.0)
    dog.reach(4, "training")
    dog.reach()  # a point of the same work
    row = json.loads(path.read_text())
    assert (row["step"], row["doing"]) == (4, "training")
    assert row["time"] >= first["time"]
    assert [p.name for p in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_heartbeat_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    """Later it is reported, and the run continues."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file cannot be"):
        Watchdog(heartbeat=tmp_path / "file" / "heartbeat.json")


def test_a_heartbeat_that_fails_later_is_reported(tmp_path, monkeypatch, capfd):
    dog = Watchdog(heartbeat=tmp_path / "heartbeat.json")
    monkeypatch.setattr(watchdog, "HEARTBEAT_INTERVAL", 0.0)
    monkeypatch.setattr(dog, "_heartbeat", tmp_path / "heartbeat.json" / "x")
    dog.reach(1, "training")
    assert "heartbeat.json" in capfd.readouterr().err


class FailingExchange:
    """An exchange whose first request fails, and that then names a process."""

    requests = 0

    def publish(self, point: Point) -> None:
        self.requests += 1
        if self.requests == 1:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE:\nbusy")

    def verdict(self, seconds: float) -> tuple[int, str]:
        return 1, "process 1 is stuck"


def test_a_request_that_fails_is_reported_and_repeated(monkeypatch, capfd):
    left = []
    monkeypatch.setattr(watchdog.os, "_exit", left.append)
    monkeypatch.setattr(watchdog, "COORDINATOR_EXIT_DELAY", 0.0)
    Watchdog(timeout=0.04)._watch(FailingExchange(), threading.Event())  # pyright: ignore[reportArgumentType]
    assert left == [42]
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "watchdog, again in 0.01 s: UNAVAILABLE: busy", "process 1 is stuck",
    ]  # fmt: skip
